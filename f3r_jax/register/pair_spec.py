"""One pair to register, from files to files: what a command line asks for, or a row of a table."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from f3r_jax.common import provenance
from f3r_jax.common.errors import UserError
from f3r_jax.config import ORGANS
from f3r_jax.data import itk_affine, nifti
from f3r_jax.register import output_files, pipeline, scans
from f3r_jax.register.scans import Scan
from f3r_jax.workdir import trained_network
from f3r_jax.workdir.trained_network import Network

SIDES = ("fixed", "moving")


@dataclasses.dataclass(frozen=True)
class Files:
    """One scan and what goes with it; a modality of None is told by the intensities."""

    path: str
    modality: str | None = None  # "ct" | "mr"
    mask: str | None = None
    labels: str | None = None
    landmarks: str | None = None


@dataclasses.dataclass(frozen=True)
class PairSpec:
    """A pair, and all else that its result hangs on."""

    fixed: Files
    moving: Files
    settings: pipeline.Settings
    organs: Mapping[str, tuple[int, ...]] | None  # label values; all if None
    ct_window: tuple[float, float]
    learn2reg: bool  # whether the field is written in that form too


def check_pair(task: PairSpec, network: Network | None) -> None:
    """Raises a UserError for a mistake that shows without reading voxels."""
    pipeline.refinement(task.settings)
    if task.settings.affine not in pipeline.AFFINE_STEPS:
        itk_affine.read_matrix(Path(task.settings.affine))
    if network is not None and task.moving.modality is not None:
        pipeline.check_direction(network, task.moving.modality, task.moving.path)
    if task.learn2reg:
        nifti.check_same_grid(nifti.read_grid(task.fixed.path), nifti.read_grid(task.moving.path))


def network_of(settings: pipeline.Settings) -> Network | None:
    """The network of the checkpoint, if there is one."""
    return trained_network.load(settings.checkpoint, settings.step) if settings.checkpoint else None


def register_pair(
    task: PairSpec, output: Path, *, network: Network | None, command: str, note: Callable[[str], None] | None = None
) -> dict:
    """Registers a pair and writes the result to a folder; returns what `summary.json` holds.

    Args:
      task: the pair.
      output: where the result goes; what an older one left there is replaced.
      network: that of the settings' checkpoint.
      command: what was typed, for `summary.json`.
      note: takes a line as each part ends; None: nothing is shown.

    Raises:
      UserError: files that can't be read or don't fit, or scans that can't be registered.
    """
    fixed, moving = (_read(task, side, note) for side in SIDES)
    if note and fixed.modality == moving.modality:
        note(f"both scans are {fixed.modality.upper()}: MIND serves, a network for CT and MR may not")
    organs = _organs_in(fixed, moving, task.organs)
    found = pipeline.register_scans(fixed, moving, task.settings, network=network, note=note)
    facts = {
        "fixed_modality": fixed.modality,
        "moving_modality": moving.modality,
        "settings": recorded(task, network),
        "command": command,
        "versions": provenance.versions(),
    }
    with output_files.staged_folder(output) as folder:
        return output_files.write(folder, fixed, moving, found, organs=organs, learn2reg=task.learn2reg, facts=facts)


def recorded(task: PairSpec, network: Network | None) -> dict[str, object]:
    """The settings as JSON keeps them, by flag: two results with the same ones are the same."""
    sides = {side: getattr(task, side) for side in SIDES}
    values = {side: files.path for side, files in sides.items()}
    for side, files in sides.items():
        values |= {f"{side}_{name}": value for name, value in vars(files).items() if name != "path"}
    values |= vars(task.settings) | {"step": network and network.step}
    values |= {"organs": task.organs, "ct_window": task.ct_window, "learn2reg": task.learn2reg}
    return json.loads(json.dumps(values, default=str))


def _read(task: PairSpec, side: str, note: Callable[[str], None] | None) -> Scan:
    files = getattr(task, side)
    options = {name: value for name, value in vars(files).items() if name != "path"}
    scan = scans.read(files.path, **options, ct_window=task.ct_window)
    if note:
        how = "as given" if files.modality else f"by its intensities; --{side}_modality says otherwise"
        note(f"{side}: {files.path}, {scan.modality.upper()} ({how})")
    return scan


def _organs_in(fixed: Scan, moving: Scan, organs: Mapping[str, Sequence[int]] | None) -> dict[str, tuple[int, ...]]:
    """The label values to score by organ: those given, or all that occur, named as in the configs where they can be.

    Raises:
      UserError: a value that neither label map holds.
    """
    if fixed.labels is None or moving.labels is None:
        return {}
    found = set(np.unique(fixed.labels.data)) | set(np.unique(moving.labels.data))
    found = {int(value) for value in found} - {0}
    if organs is not None:
        for name, values in organs.items():
            if not found & set(values):
                raise UserError(
                    f"{fixed.labels.path}, {moving.labels.path}: no voxel of {name} ({', '.join(map(str, values))}), "
                    f"found the labels {', '.join(map(str, sorted(found)))}"
                )
        return {name: tuple(values) for name, values in organs.items()}
    names = {values[0]: name for name, values in ORGANS.items()}
    return {names.get(value, f"label_{value}"): (value,) for value in sorted(found)}
