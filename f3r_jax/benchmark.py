"""What the networks cost, also against PyTorch; and how well and fast pairs are registered, against the rivals.

    python -m f3r_jax.benchmark --parameters
    python -m f3r_jax.benchmark --variant=mrb,wo_f3d --shape=144,144,128 --what=parameters,forward,memory,torch
    python -m f3r_jax.benchmark --what=conv,torch --repeats=9 --json=conv.json --markdown=BENCHMARKS.md
    python -m f3r_jax.benchmark --what=registration --shape=144,144,128 --checkpoint=runs/mrb --markdown=BENCHMARKS.md

Every subject gets a fresh process, whose peak memory is its own. Subjects to compare are timed in turn, A B A B, and
the ratio is the median over the pairs, because the speed of a machine drifts; both need to fit into memory at once.
Registrations are described in `registration_benchmark`.
"""

import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from f3r_jax import cli, registration_benchmark
from f3r_jax.benchmark_tables import as_markdown, replace_section, section_name
from f3r_jax.errors import UserError
from f3r_jax.models import LABELS, build, check_shape, count_parameters
from f3r_jax.models.f3rnet import VARIANTS, F3RNet
from f3r_jax.results import finite
from f3r_jax.timing import measure
from f3r_jax.workdir import commit, versions, write_text

WHAT = ("parameters", "compile", "forward", "train", "memory", "conv", "sweep", "torch")
REGISTRATION = "registration"
KERNELS = ((3, 3, 3), (3, 3, 1), (1, 1, 3))
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")
OPTIONS = {False: ("variant", "repeats"), True: ("cases", "spacing", "checkpoint")}  # of registration: False, True

FLAGS = flags.FLAGS
flags.DEFINE_list("variant", ["mrb", "wo_f3d"], f"Networks: {', '.join(VARIANTS)}.")
flags.DEFINE_list("shape", ["64", "64", "64"], "Voxels of the volume along x, y, z.")
flags.DEFINE_list(
    "what",
    list(WHAT),
    "What to measure: the passes 'forward' and 'train' (both, where only 'compile' or 'memory' is asked for); "
    "'compile' and 'memory' of these; 'conv': our convolution against XLA's own; 'sweep': a train step of three "
    "lambdas as one program against one after another; 'torch': each against PyTorch; 'parameters'. "
    "Or 'registration' alone: pairs of the phantom, registered by ours and by the classical rivals.",
)
flags.DEFINE_integer("repeats", 5, "Timed runs of each, after one that isn't counted.")
flags.DEFINE_integer("cases", 2, "Pairs to register.")
flags.DEFINE_float(
    "spacing", None, "Edge of their voxels in mm; the smallest with which the trunk fits in if not given."
)
flags.DEFINE_string("checkpoint", None, "Folder of a training run: its network registers too, alone and refined.")
flags.DEFINE_string("json", None, "File for everything measured.")
flags.DEFINE_string(
    "markdown", None, "File for the tables; the section of the same shape and device in it is replaced."
)
flags.DEFINE_bool("parameters", False, "Print a line NAME COUNT for each network, and measure nothing.")


def main(argv: list[str]) -> int:
    """Measures what the flags ask for; the exit status is 1 when a process died over it."""
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
    shape = tuple(int(size) for size in FLAGS.shape)
    report, text, name, failed = (registrations if REGISTRATION in FLAGS.what else networks)(shape)
    print(f"\n{text}")
    if FLAGS.json:
        write_text(Path(FLAGS.json), json.dumps(finite(report), indent=1) + "\n")
    if FLAGS.markdown:
        replace_section(Path(FLAGS.markdown), text, name=name)
    return int(failed)


def networks(shape: tuple[int, ...]) -> tuple[dict, str, str, bool]:
    """(report, its Markdown, the name of its section, whether anything failed) for the networks and convolutions."""
    groups = plan(what=FLAGS.what, variants=FLAGS.variant, shape=shape)
    report = environment() | {"shape": shape, "repeats": FLAGS.repeats}
    report["parameters"] = parameters(FLAGS.variant) if "parameters" in FLAGS.what else {}
    report["measurements"] = [measure(jobs, repeats=FLAGS.repeats) for jobs in groups]
    failed = any("error" in result for result in report["measurements"])
    return report, as_markdown(report, what=FLAGS.what), section_name(report), failed


def registrations(shape: tuple[int, ...]) -> tuple[dict, str, str, bool]:
    """The same for the registrations."""
    if FLAGS.checkpoint:
        registration_benchmark.check_checkpoint(FLAGS.checkpoint)
    found = registration_benchmark.run(
        shape=shape,
        spacing=FLAGS.spacing or registration_benchmark.fitting_spacing(shape),
        cases=FLAGS.cases,
        checkpoint=FLAGS.checkpoint,
        note=lambda line: print(line, flush=True),
    )
    rivals = [rival.package for rival in registration_benchmark.RIVALS.values()]
    report = environment((*PACKAGES, *rivals)) | {"shape": shape, REGISTRATION: found}
    name = f"Registration, {' x '.join(map(str, shape))} on {found['device']}"
    failed = any(registration_benchmark.failures(found))
    return report, registration_benchmark.as_markdown(report), name, failed


# What to measure


def check_flags() -> None:
    """Raises `UserError` at the first flag that can't be meant."""
    for flag, values, known in (("what", FLAGS.what, (*WHAT, REGISTRATION)), ("variant", FLAGS.variant, VARIANTS)):
        if not values:
            raise UserError(f"--{flag}: expected at least one of {', '.join(known)}")
        if unknown := [value for value in values if value not in known]:
            raise UserError(f"--{flag}: unknown {unknown[0]!r}; known are {', '.join(known)}")
    alone = REGISTRATION in FLAGS.what
    if alone and len(FLAGS.what) > 1:
        raise UserError(f"--what={','.join(FLAGS.what)}: registration is measured alone, in a run of its own")
    if idle := [flag for flag in OPTIONS[not alone] if FLAGS[flag].present]:
        raise UserError(
            f"--{idle[0]}: has no meaning {'with' if alone else 'without'} --what=registration; leave it out"
        )
    if len(FLAGS.shape) != 3 or not all(size.isdecimal() and int(size) > 0 for size in FLAGS.shape):
        raise UserError(f"--shape={','.join(FLAGS.shape)}: expected three sizes in voxels, like 64,64,64")
    check_shape(tuple(int(size) for size in FLAGS.shape), "--shape")
    for flag in ("repeats", "cases"):
        if FLAGS[flag].value < 1:
            raise UserError(f"--{flag}={FLAGS[flag].value}: expected 1 or more")
    if FLAGS.spacing is not None and not 0 < FLAGS.spacing < float("inf"):
        raise UserError(f"--spacing={FLAGS.spacing}: expected a length in mm, above 0")
    for path in filter(None, (FLAGS.json, FLAGS.markdown)):
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path}: no such folder; make it first")
        if Path(path).is_dir():
            raise UserError(f"{path}: a folder, where a file was expected")


def plan(*, what: list[str], variants: list[str], shape: tuple[int, ...]) -> list[list[dict]]:
    """The groups of jobs to be timed in turn; the first of a group is ours."""
    others = ["torch"] if "torch" in what else []
    if others and importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so nothing is compared with it: pip install 'f3r_jax[bench]'")
        others = []
    passes = [name for name in ("forward", "train") if name in what]
    if not passes and {"compile", "memory"} & set(what):
        passes = ["forward", "train"]
    tasks = [{"what": name, "variant": variant, "shape": shape} for variant in variants for name in passes]
    groups = [[{"who": who, **task} for who in ("jax", *others)] for task in tasks]
    if "sweep" in what:
        tasks = [{"what": "sweep", "variant": variant, "shape": shape} for variant in variants]
        groups += [[{"who": who, **task} for who in ("jax", "alone")] for task in tasks]
    if "conv" in what:
        half = tuple(max(1, size // 2) for size in shape)
        tasks = [
            {"what": name, "kernel": kernel, "channels": channels, "shape": size}
            for channels, size in ((16, shape), (32, half))
            for kernel in KERNELS
            for name in ("conv", "conv_gradient")
        ]
        groups += [[{"who": who, **task} for who in ("jax", "xla", *others)] for task in tasks]
    return groups


def parameters(variants: Iterable[str]) -> dict[str, int]:
    """Number of parameters under the paper's names, without making any."""
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    return {VARIANTS[variant].label: count_parameters(F3RNet(VARIANTS[variant])) for variant in variants}


def environment(packages: Sequence[str] = PACKAGES) -> dict:
    """Machine, versions, date, commit and command."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "command": shlex.join(["python", "-m", "f3r_jax.benchmark", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": {"cpu": models[0] if models else platform.machine(), "cores": cores, "memory_gib": round(memory, 1)},
        "versions": versions(packages),
    }


if __name__ == "__main__":
    cli.run(main)
