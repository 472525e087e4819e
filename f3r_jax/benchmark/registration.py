"""Ours, SyN, greedy and convexAdam on the same phantom pairs: accuracy, regularity, seconds and memory.

The pairs are those of one seed that no config uses, so no network was trained on them; the MR is fixed, the CT moves,
and no method sees labels or the truth. Every method registers the first pair, then every method the second, and each
registration has a process of its own (`registration_worker`), whose peak memory is the method's. f3r_jax registers the
first pair once before that: its compiled functions are then in JAX's compilation cache, as they are from a user's
second registration of a size on.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from f3r_jax.benchmark.registration_worker import COST_FILE, FIELD_FILE, NETWORKS, OURS, PAIR_FILE
from f3r_jax.benchmark.tables import heading, table
from f3r_jax.common.errors import UserError
from f3r_jax.config import syn_config
from f3r_jax.data import datasets
from f3r_jax.data.cases import Case
from f3r_jax.evaluate import inference, scoring
from f3r_jax.evaluate.classical import BASELINES
from f3r_jax.ops.shapes import Displacement, Volume
from f3r_jax.ops.warp import warp
from f3r_jax.workdir import checkpoints

# Of the phantom. Its first two pairs move: a mean Dice of 72 % before. Configs and README use 0, 1 and 2.
SEED = 1008
FIELD_OF_VIEW = (307.2, 230.4, 230.4)  # mm that have to fit in: those of the configs, the trunk with all organs
COLUMNS = {  # score: (heading of its column, digits)
    "dice": ("Dice, %", 1),
    "liver_dice": ("liver Dice, %", 1),
    "hd95_mm": ("HD95, mm", 1),
    "epe_mm": ("end-point error, mm", 2),
    "sd_log_jacobian": ("SDlogJ", 3),
    "folding_percent": ("folding, %", 3),
    "seconds": ("seconds", 1),
    "compile_seconds": ("of them tracing and reading", 1),
}

Note = Callable[[str], None]


def fitting_spacing(shape: tuple[int, ...]) -> float:
    """Edge in mm, a multiple of 0.1, of the smallest cubic voxels with which the phantom's trunk fits into a shape."""
    return max(math.ceil(10 * length / size) / 10 for length, size in zip(FIELD_OF_VIEW, shape, strict=True))


def check_checkpoint(checkpoint: str) -> None:
    """Raises a UserError unless it is a run's folder with a checkpoint of a network that warps CT to MR."""
    config = checkpoints.load_config(checkpoints.find(Path(checkpoint), None))
    if config.data.direction != "ct_to_mr":
        raise UserError(
            f"--checkpoint={checkpoint}: was trained with data.direction {config.data.direction}, expected ct_to_mr"
        )


def measure_registration(
    *, shape: tuple[int, ...], spacing: float, cases: int, checkpoint: str | None, note: Note
) -> dict:
    """What was measured: scores before, and of each method and case the scores and the cost, or an "error"."""
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    config = syn_config(option="").data
    config.update({"shape": shape, "spacing": (spacing,) * 3, "validation_cases": 0, "test_cases": 0})
    config.cases = max(cases, datasets.MIN_TRAINING_CASES)  # made on demand
    organs = datasets.organs_of(config)
    report = {"seed": SEED, "spacing": spacing, "left_out": left_out(), "before": []}
    methods = [*OURS, *(NETWORKS if checkpoint else ()), *(name for name in BASELINES if BASELINES[name].installed)]
    report["methods"] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory(prefix="registrations-") as folder:
        config.root = folder
        dataset = datasets.open_dataset(config, seed=SEED)
        for number, name in enumerate(list(dataset.makers)[:cases]):
            case = dataset.load(name)
            _write_pair(case, Path(folder))
            report["before"].append(before(case, organs))
            note(f"pair {number + 1} of {cases}: Dice {report['before'][-1]['dice']:.1f} before")
            if number == 0:
                report |= _first(methods, Path(folder), checkpoint, note)
            for method in methods:
                found = measure(method, case, organs, folder=Path(folder), checkpoint=checkpoint)
                report["methods"][method].append(found)
                note(f"  {method}: {found['error'] if 'error' in found else format_progress(found)}")
    return report


def left_out() -> list[str]:
    """A line for each rival that isn't installed."""
    return [
        f"{name} is left out, its package is not installed: make bench EXTRAS=peers, or pip install {rival.package}"
        for name, rival in BASELINES.items()
        if not rival.installed
    ]


def measure(method: str, case: Case, organs: dict, *, folder: Path, checkpoint: str | None) -> dict:
    """Scores and cost of one registration, or {"error"}."""
    try:
        field, cost = register_in_worker(method, folder=folder, checkpoint=checkpoint)
    except ChildProcessError as error:
        return {"error": str(error)}
    return scores(case, field, organs) | cost


def register_in_worker(method: str, *, folder: Path, checkpoint: str | None) -> tuple[np.ndarray, dict]:
    """(displacement, cost) of the pair in the folder; ChildProcessError with the process's last words if it failed."""
    job = {"method": method, "folder": str(folder), "checkpoint": checkpoint}
    # A cache in the folder starts empty, so that the first registration compiles whatever this machine compiled before.
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "f3r_jax.benchmark.registration_worker", json.dumps(job)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | settings,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        raise ChildProcessError("killed: out of memory?")
    if done.returncode:
        raise ChildProcessError((done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1])
    return np.load(folder / FIELD_FILE), json.loads((folder / COST_FILE).read_text())


def scores(case: Case, field: np.ndarray, organs: dict) -> dict[str, float]:
    """Accuracy and regularity of a displacement."""
    displacement = jnp.asarray(field)[None]

    def known(_: dict, moving: Volume, __: Volume) -> tuple[Displacement, Volume]:
        return displacement, warp(moving, displacement)

    found = scoring.score(case, inference.register_case(known, {}, case), organs)
    return overlap(found) | {name: found[name] for name in ("epe_mm", "sd_log_jacobian", "folding_percent")}


def before(case: Case, organs: dict) -> dict[str, float]:
    """Accuracy before registration."""
    still = inference.Registration(np.zeros((*case.fixed.shape, 3), np.float32), case.moving, case.moving_labels)
    found = scoring.score(case, still, organs)["before"]
    return overlap(found) | {"epe_mm": found["epe_mm"]}


def overlap(found: dict) -> dict[str, float]:
    """Mean Dice and HD95 over the organs that the case shows, and the liver's Dice."""
    known = found["organs"].values()
    means = {name: float(np.nanmean([organ[name] for organ in known])) for name in ("dice", "hd95_mm")}
    return means | {"liver_dice": found["organs"]["liver"]["dice"]}


def format_progress(found: dict) -> str:
    """A line of progress."""
    return f"Dice {found['dice']:.1f}, {found['seconds']:.1f} s, {peak(found):.0f} MiB"


def peak(found: dict) -> float:
    """Peak memory in MiB: the accelerator's own where one was used."""
    return found["device_peak_mib"] or found["peak_mib"]


def as_markdown(report: dict) -> str:
    """The table, and what was measured how."""
    found = report["registration"]
    edge = f"{found['spacing']:g}"
    count = len(found["before"])
    lines = [
        heading(report, device=found["device"]),
        f"{count} phantom pair{'s' * (count > 1)} (seed {found['seed']}, {edge} mm), CT to MR; mean (minimum-maximum) "
        "over pairs. Dice and HD95: means over liver, spleen and kidneys; end-point error: mean over their voxels. "
        "Seconds are those of the registration alone, without imports. Ours found its programs in JAX's "
        "compilation cache; what it still took to trace and read programs is told apart, as is the first "
        "registration of a size, which compiles them all. Each registration ran in a process of its own: peak memory, "
        "of it after the imports.",
        table([row_of("before", found["before"], None)] + [
            row_of(name, cases, found["first_seconds"].get(name))
            for name, cases in found["methods"].items() if any("error" not in case for case in cases)
        ]),
        *(f"Failed: {name}, pair {number + 1}: {case['error']}." for name, number, case in failures(found)),
        *found["left_out"],
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def failures(found: dict) -> Iterable[tuple[str, int, dict]]:
    """(method, number of the case, what was measured) of each registration that failed."""
    for name, cases in found["methods"].items():
        yield from ((name, number, case) for number, case in enumerate(cases) if "error" in case)


def row_of(name: str, cases: list[dict], first_seconds: float | None) -> dict[str, str]:
    """A row of the table: the cases that ended well; what a method has not stays empty."""
    count, cases = len(cases), [case for case in cases if "error" not in case]
    cells = {"method": name if len(cases) == count else f"{name} ({len(cases)} of {count} pairs)"}
    for key, (label, digits) in COLUMNS.items():
        cells[label] = format_range([case[key] for case in cases], digits) if key in cases[0] else ""
    cells["first, s"] = "" if first_seconds is None else f"{first_seconds:.1f}"
    costs = [case for case in cases if "peak_mib" in case]
    memory = f"{max(map(peak, costs)):.0f} ({max(case['imported_mib'] for case in costs):.0f})" if costs else ""
    return cells | {"peak MiB (imports)": memory}


def format_range(values: list[float], digits: int) -> str:
    """As in 87.3 (85.1-89.4)."""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low}-{high})"


def _write_pair(case: Case, folder: Path) -> None:
    np.savez(folder / PAIR_FILE, fixed=case.fixed, moving=case.moving, spacing=case.spacing)


def _first(methods: list[str], folder: Path, checkpoint: str | None, note: Note) -> dict:
    """The first registration of each of ours, which compiles: the device, and seconds by method."""
    found = {"device": "cpu", "first_seconds": {}}
    for method in methods:
        if method not in BASELINES:
            try:
                _, cost = register_in_worker(method, folder=folder, checkpoint=checkpoint)
            except ChildProcessError as error:
                note(f"  {method}, the first time: {error}")
                continue
            found["device"], found["first_seconds"][method] = cost["device"], cost["seconds"]
            note(f"  {method}, the first time: {cost['seconds']:.1f} s")
    return found
