"""The registration of one pair, from input files to output files.

A pair comes from the flags of the command or from a row of a table.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from f3r_jax.common import memory, provenance, result_folder
from f3r_jax.common.errors import UserError
from f3r_jax.config import ORGANS
from f3r_jax.data import matrix_files, nifti, volumes
from f3r_jax.data.grids import Grid, sizes
from f3r_jax.data.landmarks import check_landmarks, read_landmarks
from f3r_jax.register import alignment, exports, network_stage, output_files, pipeline, scans, uncertainty
from f3r_jax.register.guidance_files import check_files
from f3r_jax.register.scans import OrganLabels, Scan
from f3r_jax.workdir import trained_network
from f3r_jax.workdir.trained_network import Network

SIDES = ("fixed", "moving")
OPTIONS = ("unoriented", "check_modality")  # the same for both scans
LATER = ("exclude", "rigid", "preserve", "extra")  # recorded only where they are set, as earlier versions lack them


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one scan. A modality of None is detected from the intensities."""

    path: str
    modality: str | None = None  # "ct" | "mr"
    mask: str | None = None
    labels: str | None = None
    landmarks: str | None = None
    exclude: str | None = None  # mask of voxels that take no part
    rigid: str | None = None  # mask of parts that move rigidly; of the fixed scan
    preserve: str | None = None  # mask of parts that keep their volume; of the fixed scan
    extra: Sequence[str] = ()  # further sequences in the same frame
    unoriented: str | None = None  # axes of files without orientation codes, such as RAS
    check_modality: bool = True  # whether intensities that contradict the modality are an error

    @property
    def takes_part(self) -> bool:
        """Whether a further sequence or a mask other than that of the voxels to compare takes part."""
        return bool(self.exclude or self.rigid or self.preserve or self.extra)


@dataclasses.dataclass(frozen=True)
class PairSpec:
    """A pair to register and every setting that affects its result."""

    fixed: Files
    moving: Files
    settings: pipeline.Settings
    organs: Mapping[str, tuple[int, ...]] | None  # label values; all if None
    ct_window: tuple[float, float]
    learn2reg: bool  # whether to write the field in Learn2Reg's format too
    uncertainty: bool = False  # whether to register again in other ways and write the spread
    formats: tuple[str, ...] = ()  # of `exports.FORMATS`, written in addition to NIfTI
    viewer: bool = True  # whether the page has the interactive viewer


def check_pair(task: PairSpec, network: Network | None) -> None:
    """Raises a UserError for mistakes that can be found without reading voxels."""
    pipeline.refinement(task.settings)
    grids = [_checked_grid(getattr(task, side)) for side in SIDES]
    if task.fixed.landmarks and task.moving.landmarks:
        check_landmarks(Path(task.fixed.landmarks), Path(task.moving.landmarks))
    if task.settings.spacing is not None:
        memory.check_voxels(
            min(np.prod(np.multiply(grid.shape, grid.spacing)) for grid in grids) / task.settings.spacing**3,
            f"--spacing={task.settings.spacing:g}",
        )
    if task.settings.affine not in alignment.AFFINE_STEPS:
        stored = (
            volumes.read_stored_grid(files.path, unoriented=files.unoriented) for files in (task.fixed, task.moving)
        )
        matrix_files.read_matrix(task.settings.affine, *stored)
    if (network := _used(task, network)) is not None and task.moving.modality is not None:
        network_stage.check_direction(network, task.moving.modality, task.moving.path)
    if task.learn2reg:
        _check_one_grid(*grids)
    exports.check(task.formats, grids[0], task.moving.path)
    check_files(task.fixed, task.moving, task.settings.guidance, grids)


def _checked_grid(files: Files) -> Grid:
    """The grid of a scan; raises a UserError for files that cannot be read or do not match."""
    grid = volumes.read_grid(files.path, unoriented=files.unoriented)
    scans.check_size(grid)
    if files.mask:
        scans.check_mask_grid(grid, volumes.read_grid(files.mask, unoriented=files.unoriented))
    maps = (("mask", files.exclude), ("mask", files.rigid), ("mask", files.preserve), ("label map", files.labels))
    for kind, file in maps:
        if file:
            nifti.check_same_grid(grid, volumes.read_grid(file, unoriented=files.unoriented), kind)
    if files.landmarks:
        read_landmarks(Path(files.landmarks))
    return grid


def _check_one_grid(fixed: Grid, moving: Grid) -> None:
    """Raises a UserError unless both scans are on one grid."""
    try:
        nifti.check_same_grid(fixed, moving, "moving scan")
    except UserError as error:
        raise UserError(
            f"--learn2reg needs both scans on one grid, found {sizes(fixed.shape)} and {sizes(moving.shape)} voxels or "
            f"another frame: {error}"
        ) from error


def notes_on(task: PairSpec) -> list[str]:
    """What a user should know about the headers of the scans."""
    sides = (task.fixed, task.moving)
    return [note for files in sides for note in volumes.notes_on(files.path, unoriented=files.unoriented)]


def least_size(task: PairSpec) -> int:
    """The bytes that the result takes at least; compression saves two thirds at most of most results."""
    grid = volumes.read_grid(task.fixed.path, unoriented=task.fixed.unoriented)
    return int(4 * 8 * np.prod(grid.shape, dtype=np.int64) // 3)  # two images and two fields of float32


def network_of(settings: pipeline.Settings) -> Network | None:
    """Loads the network of the checkpoint; None without a checkpoint."""
    return trained_network.load(settings.checkpoint, settings.step) if settings.checkpoint else None


def _used(task: PairSpec, network: Network | None) -> Network | None:
    """The network of all pairs, for a pair that has a checkpoint."""
    return network if task.settings.checkpoint else None


def register_pair(
    task: PairSpec, output: Path, *, network: Network | None, command: str, note: Callable[[str], None] | None = None
) -> dict:
    """Registers a pair and writes the result to a folder; returns the content of `summary.json`.

    Args:
      task: the pair.
      output: the folder for the result, which `result_folder.reserved` has reserved; an older result is replaced.
      network: the network of the settings' checkpoint; not used if they have none.
      command: the command line, for `summary.json`.
      note: called with one line of text after each stage; None prints nothing.

    Raises:
      UserError: files that cannot be read or do not match, or scans that cannot be registered.
    """
    fixed, moving = (_read(task, side, note) for side in SIDES)
    network = _used(task, network)
    if note and network and fixed.modality == moving.modality and not network.any_modality:
        note(f"both scans are {fixed.modality.upper()}: MIND works, a network for CT and MR may not")
    organs = _organs_in(fixed, moving, task.organs)
    found = pipeline.register_scans(fixed, moving, task.settings, network=network, note=note)
    spread = None
    if task.uncertainty:
        begin = time.perf_counter()
        spread = uncertainty.uncertainty(fixed, moving, found, task.settings, network)
        seconds = time.perf_counter() - begin
        found = dataclasses.replace(found, seconds=found.seconds | {"uncertainty": seconds})
        if note:
            note(f"uncertainty: {np.median(spread):.1f} mm in the median voxel ({seconds:.1f} s)")
    facts = {
        "fixed_modality": fixed.modality,
        "moving_modality": moving.modality,
        "settings": recorded(task, network),
        "command": command,
        "versions": provenance.versions(),
    }
    with result_folder.staged(output, output_files.FILES) as folder:
        formats = exports.resolved(task.formats, task.moving.path)
        return output_files.write(
            folder,
            fixed,
            moving,
            found,
            organs=organs,
            spread=spread,
            learn2reg=task.learn2reg,
            facts=facts,
            formats=formats,
            viewer=task.viewer,
        )


def recorded(task: PairSpec, network: Network | None) -> dict[str, object]:
    """The settings as stored in JSON, one key per flag. Results with equal settings are interchangeable."""
    sides = {side: getattr(task, side) for side in SIDES}
    values = {side: files.path for side, files in sides.items()}
    for side, files in sides.items():
        given = {name: value for name, value in vars(files).items() if value or name not in LATER}
        values |= {f"{side}_{name}": value for name, value in given.items() if name not in ("path", *OPTIONS)}
    # Only where they are set, because the results of earlier versions do not have them.
    values |= {"unoriented": task.fixed.unoriented} if task.fixed.unoriented else {}
    values |= {"format": task.formats} if task.formats else {}
    values |= {} if task.fixed.check_modality else {"check_modality": False}
    values |= {"uncertainty": True} if task.uncertainty else {}
    values |= {} if task.viewer else {"viewer": False}
    values |= {name: value for name, value in vars(task.settings).items() if value is not None or name != "memory"}
    values |= {"step": (network := _used(task, network)) and network.step}
    values |= values.pop("guidance").changed()
    values |= {"organs": task.organs, "ct_window": task.ct_window, "learn2reg": task.learn2reg}
    return json.loads(json.dumps(values, default=str))


def _read(task: PairSpec, side: str, note: Callable[[str], None] | None) -> Scan:
    files = getattr(task, side)
    options = {name: value for name, value in vars(files).items() if name != "path"}
    scan = scans.read(files.path, **options, ct_window=task.ct_window)
    if note:
        how = "as given" if files.modality else f"by its intensities; change it with --{side}_modality"
        note(f"{side}: {files.path}, {scan.modality.upper()} ({how})")
        for line in scan.notes:
            note(f"note: {line}")
    return scan


def _organs_in(fixed: Scan, moving: Scan, organs: Mapping[str, tuple[int, ...]] | None) -> OrganLabels | None:
    """The organs to score: the given ones, or all that occur; None without any.

    Values that the configs name get that name, others `label_N`.

    Raises:
      UserError: an organ of which neither label map has a voxel.
    """
    if fixed.labels is None or moving.labels is None:
        return None
    found = set(np.unique(fixed.labels.data)) | set(np.unique(moving.labels.data))
    found = {int(value) for value in found} - {0}
    if organs is not None:
        for name, values in organs.items():
            if not found & set(values):
                raise UserError(
                    f"{fixed.labels.path}, {moving.labels.path}: no voxel of {name} ({', '.join(map(str, values))}), "
                    f"found the labels {', '.join(map(str, sorted(found)))}"
                )
        return OrganLabels(fixed.labels, moving.labels, organs) if organs else None
    names = {values[0]: name for name, values in ORGANS.items()}
    named = {names.get(value, f"label_{value}"): (value,) for value in sorted(found)}
    return OrganLabels(fixed.labels, moving.labels, named) if named else None
