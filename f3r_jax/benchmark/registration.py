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
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from f3r_jax.benchmark.registration_tables import RegisteredPair, Registrations
from f3r_jax.benchmark.registration_worker import COST_FILE, FIELD_FILE, NETWORKS, OURS, PAIR_FILE, RegistrationCost
from f3r_jax.common.arrays import VoxelField
from f3r_jax.common.errors import UserError
from f3r_jax.config import syn_config
from f3r_jax.data import datasets
from f3r_jax.data.cases import Case
from f3r_jax.evaluate import inference, metrics, scoring
from f3r_jax.evaluate.classical import BASELINES
from f3r_jax.evaluate.scores import FieldScores
from f3r_jax.evaluate.scoring import Organs
from f3r_jax.workdir import trained_network

# Seed of the phantom. Mean Dice of its first two pairs is 72 % before registration. Configs and README use 0, 1 and 2.
SEED = 1008
FIELD_OF_VIEW = (307.2, 230.4, 230.4)  # mm, as in the configs: the trunk with all organs
Note = Callable[[str], None]


def fitting_spacing(shape: tuple[int, ...]) -> float:
    """Smallest voxel size in mm, a multiple of 0.1, at which the phantom's trunk fits into a shape."""
    return max(math.ceil(10 * length / size) / 10 for length, size in zip(FIELD_OF_VIEW, shape, strict=True))


def check_checkpoint(checkpoint: str) -> None:
    """Raises a UserError unless the run or file of weights holds a network that warps CT to MR."""
    network = trained_network.load(Path(checkpoint))
    if not network.any_modality and (direction := network.config.data.direction) != "ct_to_mr":
        raise UserError(f"--checkpoint={checkpoint}: trained with data.direction {direction}, expected ct_to_mr")


def measure_registration(
    *, shape: tuple[int, ...], spacing: float, cases: int, checkpoint: str | None, note: Note
) -> Registrations:
    """Registers the pairs with all methods."""
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    config = syn_config(option="").data
    config.update({"shape": shape, "spacing": (spacing,) * 3, "validation_cases": 0, "test_cases": 0})
    config.cases = max(cases, datasets.MIN_TRAINING_CASES)  # cases are generated when they are loaded
    organs = datasets.organs_of(config)
    names = [*OURS, *(NETWORKS if checkpoint else ()), *(name for name in BASELINES if BASELINES[name].installed)]
    earlier: list[RegisteredPair] = []
    methods: dict[str, list[RegisteredPair]] = {name: [] for name in names}
    first: dict[str, RegistrationCost] = {}
    with tempfile.TemporaryDirectory(prefix="registrations-") as made:
        folder = Path(made)
        config.root = made
        dataset = datasets.open_dataset(config, seed=SEED)
        for number, name in enumerate(list(dataset.makers)[:cases]):
            case = dataset.load(name)
            _write_pair(case, folder)
            earlier.append(RegisteredPair(before(case, organs)))
            note(f"pair {number + 1} of {cases}: Dice {earlier[-1].scores['dice']:.1f} before")
            if number == 0:
                first = _first(names, folder, checkpoint, note)
            for method in names:
                found = measure(method, case, organs, folder=folder, checkpoint=checkpoint)
                methods[method].append(found)
                note(f"  {method}: {found.error or format_progress(found)}")
    device = next((cost.device for cost in reversed(first.values())), "cpu")
    seconds = {method: cost.seconds for method, cost in first.items()}
    return Registrations(SEED, spacing, left_out(), earlier, methods, device, seconds)


def left_out() -> list[str]:
    """One line for each baseline that is not installed."""
    return [
        f"{name} is skipped, its package is not installed: make bench EXTRAS=peers, or pip install {baseline.package}"
        for name, baseline in BASELINES.items()
        if not baseline.installed
    ]


def measure(method: str, case: Case, organs: Organs, *, folder: Path, checkpoint: str | None) -> RegisteredPair:
    """Scores and cost of one registration, or the error if it failed."""
    try:
        field, cost = register_in_worker(method, folder=folder, checkpoint=checkpoint)
    except ChildProcessError as error:
        return RegisteredPair(error=str(error))
    return RegisteredPair(scores(case, field, organs), cost)


def register_in_worker(method: str, *, folder: Path, checkpoint: str | None) -> tuple[VoxelField, RegistrationCost]:
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
    return np.load(folder / FIELD_FILE), RegistrationCost(**json.loads((folder / COST_FILE).read_text()))


def scores(case: Case, displacement: VoxelField, organs: Organs) -> dict[str, float]:
    """Accuracy and regularity scores of a displacement."""
    warped_labels = inference.warp_labels(case.moving_labels, displacement)
    return accuracy(scoring.score_field(case, displacement, warped_labels, organs)) | {
        "sd_log_jacobian": metrics.sd_log_jacobian(displacement),
        "folding_percent": metrics.folding_percent(displacement),
    }


def before(case: Case, organs: Organs) -> dict[str, float]:
    """Accuracy scores before registration."""
    zero = np.zeros((*case.fixed.shape, 3), np.float32)
    return accuracy(scoring.score_field(case, zero, case.moving_labels, organs))


def accuracy(found: FieldScores) -> dict[str, float]:
    """Mean Dice and HD95 over the organs in the field of view, the Dice of the liver, and the end-point error."""
    assert found.organs is not None and found.epe_mm is not None  # a phantom has ground truth
    known = found.organs.values()
    means = {name: float(np.nanmean([organ[name] for organ in known])) for name in ("dice", "hd95_mm")}
    return means | {"liver_dice": found.organs["liver"]["dice"], "epe_mm": found.epe_mm}


def format_progress(found: RegisteredPair) -> str:
    """Text of a progress line."""
    assert found.cost is not None  # it did not fail
    return f"Dice {found.scores['dice']:.1f}, {found.cost.seconds:.1f} s, {found.cost.peak:.0f} MiB"


def _write_pair(case: Case, folder: Path) -> None:
    np.savez(folder / PAIR_FILE, fixed=case.fixed, moving=case.moving, spacing=case.spacing)


def _first(methods: Sequence[str], folder: Path, checkpoint: str | None, note: Note) -> dict[str, RegistrationCost]:
    """Runs the first registration of each f3r_jax method, which compiles; returns the costs by method."""
    found = {}
    for method in methods:
        if method not in BASELINES:
            try:
                _, cost = register_in_worker(method, folder=folder, checkpoint=checkpoint)
            except ChildProcessError as error:
                note(f"  {method}, the first time: {error}")
                continue
            found[method] = cost
            note(f"  {method}, the first time: {cost.seconds:.1f} s")
    return found
