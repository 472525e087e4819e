"""Checks of the files of what takes part in a registration, before any work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from f3r_jax.common.errors import UserError
from f3r_jax.data import resample, volumes
from f3r_jax.data.landmarks import read_landmarks
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.register.guidance import (
    Guidance,
    check_apart,
    check_landmarks_inside,
    check_positive,
    driving_labels,
    parts_of,
)


@runtime_checkable  # for the type checks of the tests
class FilesOfScan(Protocol):
    """The files of one scan, as `pair_spec.Files` has them."""

    @property
    def path(self) -> str: ...
    @property
    def labels(self) -> str | None: ...
    @property
    def landmarks(self) -> str | None: ...
    @property
    def rigid(self) -> str | None: ...
    @property
    def preserve(self) -> str | None: ...
    @property
    def extra(self) -> Sequence[str]: ...
    @property
    def unoriented(self) -> str | None: ...


def check_files(fixed: FilesOfScan, moving: FilesOfScan, guidance: Guidance, grids: Sequence[Grid]) -> None:
    """Raises a UserError for what shall take part and cannot. Reads label maps and masks, and no scan.

    `grids` are those of the fixed and the moving scan.
    """
    check_positive(guidance)
    sides = (fixed, moving)
    if guidance.labels_weight > 0:
        here, there = (_labels(side.labels, side) for side in sides)
        driving_labels(here, there, guidance)
    if guidance.landmarks_weight > 0:
        for side, grid in zip(sides, grids, strict=True):
            if not side.landmarks:
                raise UserError(f"--landmarks_weight needs landmarks of both scans, found none of {side.path}")
            check_landmarks_inside(read_landmarks(Path(side.landmarks)), grid, side.landmarks)
    _check_sequences(fixed, moving, grids)
    for side in sides[1:]:
        if side.rigid or side.preserve:
            raise UserError(f"{side.rigid or side.preserve}: a mask of the moving scan; expected one of the fixed scan")
    rigid, preserve = (_labels(file, fixed) for file in (fixed.rigid, fixed.preserve))
    for mask in (rigid, preserve):
        if mask is not None:
            parts_of(mask)
    if rigid is not None and preserve is not None:
        check_apart(rigid, preserve)


def _labels(file: str | None, side: FilesOfScan) -> Image | None:
    return volumes.read_labels(file, unoriented=side.unoriented) if file else None


def _check_sequences(fixed: FilesOfScan, moving: FilesOfScan, grids: Sequence[Grid]) -> None:
    """Raises a UserError for further sequences that do not pair up or are elsewhere than their scan."""
    if fixed.extra and moving.extra and len(fixed.extra) != len(moving.extra):
        raise UserError(
            f"{fixed.extra[0]}: {len(fixed.extra)} further sequences of the fixed scan and {len(moving.extra)} of the "
            "moving scan; expected as many of both, or of one scan only"
        )
    for side, grid in zip((fixed, moving), grids, strict=True):
        for file in side.extra:
            if not resample.has_overlap(grid, volumes.read_grid(file, unoriented=side.unoriented)):
                raise UserError(f"{file}: does not overlap {side.path} in space; expected a sequence of the same frame")
