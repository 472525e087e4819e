"""Benchmarks networks against PyTorch and VoxelMorph, and registrations against classical baselines.

    python -m f3r_jax.benchmark --suite --markdown=BENCHMARKS.md [--sections=small,memory] [--checkpoint=runs/mrb]

measures everything (`suite`; a few hours on two cores). The same command resumes an interrupted suite. Single
measurements:

    python -m f3r_jax.benchmark --parameters
    python -m f3r_jax.benchmark --variant=mrb,wo_f3d --shape=144,144,128 --what=parameters,forward,memory,torch
    python -m f3r_jax.benchmark --what=conv,torch --repeats=9 --json=conv.json --markdown=BENCHMARKS.md
    python -m f3r_jax.benchmark --what=registration --shape=144,144,128 --checkpoint=runs/mrb --markdown=BENCHMARKS.md

Every subject runs in its own process, so its peak memory is measured alone. The speed of a machine drifts, so subjects
to compare are timed alternately (A B A B), and the ratio is the median over the pairs. Both must fit into memory at
once. Registrations are described in `registration`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import flags
from ml_collections import ConfigDict

from f3r_jax.benchmark import registration, registration_tables, suite, workloads
from f3r_jax.benchmark.environment import PACKAGES, current_environment
from f3r_jax.benchmark.measurement import Measurements
from f3r_jax.benchmark.tables import as_markdown, replace_section, section_name
from f3r_jax.benchmark.timing import measure
from f3r_jax.common import cli
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import json_safe, write_text
from f3r_jax.models import LABELS, build, check_shape, count_parameters
from f3r_jax.models.f3rnet import VARIANTS, F3RNet

WHAT = ("parameters", "compile", "forward", "train", "memory", "conv", "sweep", "torch")
REGISTRATION = suite.REGISTRATION
SUITE, ALONE, OTHERWISE = "--suite", "--what=registration", ""
OPTIONS = {  # the flags that each kind of measurement takes
    SUITE: ("sections", "record", "fresh", "minutes", "checkpoint"),
    ALONE: ("what", "shape", "json", "cases", "spacing", "checkpoint"),
    OTHERWISE: ("what", "shape", "json", "variant", "repeats"),
}

FLAGS = flags.FLAGS
flags.DEFINE_list("variant", ["mrb", "wo_f3d"], f"Networks: {', '.join(VARIANTS)}.")
flags.DEFINE_list("shape", ["64", "64", "64"], "Voxels of the volume along x, y, z.")
flags.DEFINE_list(
    "what",
    list(WHAT),
    "What to measure. 'forward', 'train': these passes (both if only 'compile' or 'memory' is given). 'compile', "
    "'memory': compile time and peak memory of the passes. 'conv': convolutions of f3r_jax and of XLA. 'sweep': train "
    "steps of three lambdas together and one after another. 'torch': compare each with PyTorch. 'parameters': number "
    "of parameters. 'registration' (alone): register phantom pairs with f3r_jax and with the classical baselines.",
)
flags.DEFINE_integer("repeats", 5, "Timed runs of each subject, after a warm-up of one second or at least one run.")
flags.DEFINE_integer("cases", 2, "Number of pairs to register.")
flags.DEFINE_float(
    "spacing", None, "Voxel size of the pairs in mm; by default the smallest at which the trunk fits into --shape."
)
flags.DEFINE_string(
    "checkpoint", None, "Training run, weights or `builtin`: measured too, with and without instance optimisation."
)
flags.DEFINE_string("json", None, "JSON file for all measurements.")
flags.DEFINE_string(
    "markdown", None, "Markdown file for the tables; its section of the same shape and device is replaced."
)
flags.DEFINE_bool("suite", False, "Measure everything, section by section; finished sections are skipped.")
flags.DEFINE_list("sections", list(suite.NAMES), "Sections of the suite to measure.")
flags.DEFINE_string(
    "record", "runs/bench", "Folder for the suite's measurements; an interrupted suite resumes from it."
)
flags.DEFINE_bool("fresh", False, "Measure finished sections of the suite again.")
flags.DEFINE_float(
    "minutes", None, f"Start nothing new after this many minutes; the exit status is then {suite.UNFINISHED}."
)
flags.DEFINE_bool("parameters", False, "Only print one line per network: NAME COUNT.")
GROUPS = {
    "The suite": ("suite", "sections", "record", "fresh", "minutes", "markdown"),
    "A single measurement": ("what", "variant", "shape", "repeats", "json"),
    "Registration of pairs": ("cases", "spacing", "checkpoint"),
    "Other": ("parameters",),
}


def main(argv: Sequence[str]) -> int:
    """Measures what the flags ask for; returns the exit status, 1 if a process failed."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: options are written --name=value")
    if FLAGS.parameters:
        counts = parameters(VARIANTS) | {
            LABELS[name]: count_parameters(build(ConfigDict({"name": name, "flow_init": 0.0, "diffeomorphic": False})))
            for name in LABELS
        }
        print("\n".join(f"{name} {count}" for name, count in counts.items()))
        return 0
    check_flags()
    if FLAGS.suite:
        return whole()
    shape = tuple(int(size) for size in FLAGS.shape)
    found = (registrations if REGISTRATION in FLAGS.what else networks)(shape)
    print(f"\n{found.markdown}")
    if FLAGS.json:
        write_text(Path(FLAGS.json), json.dumps(json_safe(found.numbers), indent=1) + "\n")
    if FLAGS.markdown:
        replace_section(Path(FLAGS.markdown), found.markdown, name=found.section)
    return int(found.failed)


def whole() -> int:
    """Measures the suite; returns the exit status."""
    page = Path(FLAGS.markdown) if FLAGS.markdown else None
    started = suite.start(record=Path(FLAGS.record), page=page, minutes=FLAGS.minutes, checkpoint=FLAGS.checkpoint)
    return suite.run_suite(FLAGS.sections, started, fresh=FLAGS.fresh)


class Output(NamedTuple):
    """What a measurement prints and writes."""

    numbers: dict[str, Any]  # for --json
    markdown: str
    section: str  # of the Markdown file
    failed: bool


def networks(shape: tuple[int, ...]) -> Output:
    """Measures networks and convolutions."""
    target = workloads.Target("", tuple(name for name in workloads.installed() if name in FLAGS.what))
    if "torch" in FLAGS.what:
        print("".join(f"{line}\n" for line in workloads.left_out(["torch"], target)), end="")
    wanted = workloads.single(target, what=FLAGS.what, variants=FLAGS.variant, shape=shape)
    environment, counts = current_environment(), parameters(FLAGS.variant) if "parameters" in FLAGS.what else {}
    rows = [measure(workload, repeats=FLAGS.repeats) for workload in wanted]
    device = next((row.results["jax"].set_up.device for row in rows if row.results), "cpu")
    numbers = environment.to_json() | {"shape": shape, "repeats": FLAGS.repeats, "parameters": counts}
    numbers["measurements"] = [row.to_json() for row in rows]
    found = Measurements(environment, device, FLAGS.repeats, rows)
    text, failed = as_markdown(found, what=FLAGS.what, parameters=counts), any(row.error is not None for row in rows)
    return Output(numbers, text, section_name(shape, device), failed)


def registrations(shape: tuple[int, ...]) -> Output:
    """Measures registrations."""
    found = registration.measure_registration(
        shape=shape,
        spacing=FLAGS.spacing or registration.fitting_spacing(shape),
        cases=FLAGS.cases,
        checkpoint=FLAGS.checkpoint,
        note=lambda line: print(line, flush=True),
    )
    baselines = [baseline.package for baseline in registration.BASELINES.values()]
    environment = current_environment((*PACKAGES, *baselines))
    numbers = environment.to_json() | {"shape": shape, REGISTRATION: found.to_json()}
    name = f"Registration, {' x '.join(map(str, shape))} on {found.device}"
    text = registration_tables.as_markdown(found, environment)
    return Output(numbers, text, name, failed=any(found.failures()))


def parameters(variants: Iterable[str]) -> dict[str, int]:
    """Number of parameters of each variant, by the paper's name; no parameters are created."""
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    return {VARIANTS[variant].label: count_parameters(F3RNet(VARIANTS[variant])) for variant in variants}


# Checks of the flags


def check_flags() -> None:
    """Raises `UserError` for the first invalid flag."""
    given = FLAGS.flag_values_dict()
    known = {"what": (*WHAT, REGISTRATION), "variant": VARIANTS, "sections": suite.NAMES}
    for flag, values in known.items():
        if not given[flag]:
            raise UserError(f"--{flag}: expected at least one of {', '.join(values)}")
        if unknown := [value for value in given[flag] if value not in values]:
            raise UserError(f"--{flag}: unknown {unknown[0]!r}; known are {', '.join(values)}")
    check_meaning()
    if len(FLAGS.shape) != 3 or not all(size.isdecimal() and int(size) > 0 for size in FLAGS.shape):
        raise UserError(f"--shape={','.join(FLAGS.shape)}: expected three sizes in voxels, like 64,64,64")
    check_shape(tuple(int(size) for size in FLAGS.shape), "--shape")
    for flag in ("repeats", "cases"):
        if given[flag] < 1:
            raise UserError(f"--{flag}={given[flag]}: expected 1 or more")
    for flag, unit in (("spacing", "a length in mm"), ("minutes", "a time")):
        if given[flag] is not None and not 0 < given[flag] < float("inf"):
            raise UserError(f"--{flag}={given[flag]}: expected {unit}, above 0")
    for path in filter(None, (FLAGS.json, FLAGS.markdown)):
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path}: no such folder; create it first")
        if Path(path).is_dir():
            raise UserError(f"{path}: a folder, where a file was expected")
    if (record := Path(FLAGS.record)).exists() and not record.is_dir():
        raise UserError(f"--record={record}: a file, where a folder was expected")
    if FLAGS.checkpoint:
        registration.check_checkpoint(FLAGS.checkpoint)


def check_meaning() -> None:
    """Raises `UserError` for a flag that does not apply to this kind of measurement."""
    way = SUITE if FLAGS.suite else ALONE if REGISTRATION in FLAGS.what else OTHERWISE
    if way == ALONE and len(FLAGS.what) > 1:
        raise UserError(f"--what={','.join(FLAGS.what)}: registration is measured alone; use a separate command")
    for flag in dict.fromkeys(name for names in OPTIONS.values() for name in names):
        if FLAGS[flag].present and flag not in OPTIONS[way]:
            ways = " or ".join(each for each in OPTIONS if each and flag in OPTIONS[each])
            raise UserError(f"--{flag}: has no meaning {f'with {way}' if way else f'without {ways}'}; leave it out")


if __name__ == "__main__":
    cli.run_main(main, GROUPS)
