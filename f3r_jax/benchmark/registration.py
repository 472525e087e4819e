"""Compares f3r_jax, SyN, greedy and convexAdam on the same phantom pairs: accuracy, regularity, time and memory.

No config uses the seed of these pairs, so no network was trained on them. The MR is fixed, the CT is moving. No method
receives the labels or the ground truth. Every method registers the first pair, then every method the second. Each
registration runs in its own process (`registration_worker`), so its peak memory is measured alone.

f3r_jax first registers the first pair once without being compared. Its compiled functions are then in JAX's
compilation cache, as they are for a user from the second registration of a size on.
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

# Seed of the phantom. Mean Dice of its first two pairs is 72 % before registration. Configs and README use 0, 1 and 2.
SEED = 1008
FIELD_OF_VIEW = (307.2, 230.4, 230.4)  # mm, as in the configs: the trunk with all organs
COLUMNS = {  # score: (heading of its column, digits)
    "dice": ("Dice, %", 1),
    "liver_dice": ("liver Dice, %", 1),
    "hd95_mm": ("HD95, mm", 1),
    "epe_mm": ("end-point error, mm", 2),
    "sd_log_jacobian": ("SDlogJ", 3),
    "folding_percent": ("folding, %", 3),
    "seconds": ("seconds", 1),
    "compile_seconds": ("of these, tracing and cache reads", 1),
}

Note = Callable[[str], None]


def fitting_spacing(shape: tuple[int, ...]) -> float:
    """Smallest voxel size in mm, a multiple of 0.1, at which the phantom's trunk fits into a shape."""
    return max(math.ceil(10 * length / size) / 10 for length, size in zip(FIELD_OF_VIEW, shape, strict=True))


def check_checkpoint(checkpoint: str) -> None:
    """Raises a UserError unless the folder holds a checkpoint of a network that warps CT to MR."""
    config = checkpoints.load_config(checkpoints.find(Path(checkpoint), None))
    if config.data.direction != "ct_to_mr":
        raise UserError(
            f"--checkpoint={checkpoint}: trained with data.direction {config.data.direction}, expected ct_to_mr"
        )


def measure_registration(
    *, shape: tuple[int, ...], spacing: float, cases: int, checkpoint: str | None, note: Note
) -> dict:
    """Registers the pairs with all methods.

    Returns the scores before registration, and the scores and cost (or an "error") of each method and case.
    """
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    config = syn_config(option="").data
    config.update({"shape": shape, "spacing": (spacing,) * 3, "validation_cases": 0, "test_cases": 0})
    config.cases = max(cases, datasets.MIN_TRAINING_CASES)  # cases are generated when they are loaded
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
    """One line for each baseline that is not installed."""
    return [
        f"{name} is skipped, its package is not installed: make bench EXTRAS=peers, or pip install {baseline.package}"
        for name, baseline in BASELINES.items()
        if not baseline.installed
    ]


def measure(method: str, case: Case, organs: dict, *, folder: Path, checkpoint: str | None) -> dict:
    """Scores and cost of one registration, or {"error": message} if it failed."""
    try:
        field, cost = register_in_worker(method, folder=folder, checkpoint=checkpoint)
    except ChildProcessError as error:
        return {"error": str(error)}
    return scores(case, field, organs) | cost


def register_in_worker(method: str, *, folder: Path, checkpoint: str | None) -> tuple[np.ndarray, dict]:
    """Registers the pair in the folder: (displacement, cost).

    Raises:
      ChildProcessError: the process failed; the message is its last line.
    """
    job = {"method": method, "folder": str(folder), "checkpoint": checkpoint}
    # The cache is in the folder and starts empty, so the first registration always compiles.
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
    """Accuracy and regularity scores of a displacement."""
    displacement = jnp.asarray(field)[None]

    def known(_: dict, moving: Volume, __: Volume) -> tuple[Displacement, Volume]:
        return displacement, warp(moving, displacement)

    found = scoring.score(case, inference.register_case(known, {}, case), organs)
    return overlap(found) | {name: found[name] for name in ("epe_mm", "sd_log_jacobian", "folding_percent")}


def before(case: Case, organs: dict) -> dict[str, float]:
    """Accuracy scores before registration."""
    still = inference.Registration(np.zeros((*case.fixed.shape, 3), np.float32), case.moving, case.moving_labels)
    found = scoring.score(case, still, organs)["before"]
    return overlap(found) | {"epe_mm": found["epe_mm"]}


def overlap(found: dict) -> dict[str, float]:
    """Mean Dice and HD95 over the organs in the field of view, and the Dice of the liver."""
    known = found["organs"].values()
    means = {name: float(np.nanmean([organ[name] for organ in known])) for name in ("dice", "hd95_mm")}
    return means | {"liver_dice": found["organs"]["liver"]["dice"]}


def format_progress(found: dict) -> str:
    """Text of a progress line."""
    return f"Dice {found['dice']:.1f}, {found['seconds']:.1f} s, {peak(found):.0f} MiB"


def peak(found: dict) -> float:
    """Peak memory in MiB; with an accelerator, that of its own memory."""
    return found["device_peak_mib"] or found["peak_mib"]


def as_markdown(report: dict) -> str:
    """The section of the Markdown file: how it was measured, and the table."""
    found = report["registration"]
    edge = f"{found['spacing']:g}"
    count = len(found["before"])
    lines = [
        heading(report, device=found["device"]),
        f"{count} phantom {'pairs' if count > 1 else 'pair'} (seed {found['seed']}, {edge} mm), CT to MR; mean "
        "(minimum-maximum) over pairs. Dice and HD95 are means over liver, spleen and kidneys; the end-point error "
        "is a mean over their voxels. Seconds are those of the registration, without imports. f3r_jax read its "
        "compiled functions from JAX's compilation cache. Tracing and cache reads are listed separately, as is the "
        "first registration of a size, which compiles. Each registration ran in its own process; peak memory is "
        "that of the process, and in parentheses that after the imports.",
        table([row_of("before", found["before"], None)] + [
            row_of(name, cases, found["first_seconds"].get(name))
            for name, cases in found["methods"].items() if any("error" not in case for case in cases)
        ]),
        *(f"Failed: {name}, pair {number + 1}: {case['error']}." for name, number, case in failures(found)),
        *found["left_out"],
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def failures(found: dict) -> Iterable[tuple[str, int, dict]]:
    """(method, index of the case, result) of each failed registration."""
    for name, cases in found["methods"].items():
        yield from ((name, number, case) for number, case in enumerate(cases) if "error" in case)


def row_of(name: str, cases: list[dict], first_seconds: float | None) -> dict[str, str]:
    """A row of the table over the cases that did not fail; cells without a value are empty."""
    count, cases = len(cases), [case for case in cases if "error" not in case]
    cells = {"method": name if len(cases) == count else f"{name} ({len(cases)} of {count} pairs)"}
    for key, (label, digits) in COLUMNS.items():
        cells[label] = format_range([case[key] for case in cases], digits) if key in cases[0] else ""
    cells["first, s"] = "" if first_seconds is None else f"{first_seconds:.1f}"
    costs = [case for case in cases if "peak_mib" in case]
    memory = f"{max(map(peak, costs)):.0f} ({max(case['imported_mib'] for case in costs):.0f})" if costs else ""
    return cells | {"peak MiB (imports)": memory}


def format_range(values: list[float], digits: int) -> str:
    """Mean, minimum and maximum as in 87.3 (85.1-89.4)."""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low}-{high})"


def _write_pair(case: Case, folder: Path) -> None:
    np.savez(folder / PAIR_FILE, fixed=case.fixed, moving=case.moving, spacing=case.spacing)


def _first(methods: list[str], folder: Path, checkpoint: str | None, note: Note) -> dict:
    """Runs the first registration of each f3r_jax method, which compiles: the device, and the seconds by method."""
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
