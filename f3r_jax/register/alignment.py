"""The affine step of a registration: a matrix file, the headers, or a fit."""

import dataclasses
from pathlib import Path

import numpy as np

from f3r_jax.common.arrays import Mask, Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.data import itk_affine, resample
from f3r_jax.data.affine.coarse import coarse_scan
from f3r_jax.data.affine.fit import fit
from f3r_jax.data.affine.initial import initial_alignment
from f3r_jax.data.affine.start import Start, find_start
from f3r_jax.register.scans import Scan

AFFINE_STEPS = ("none", "rigid", "affine")


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The result of the affine step.

    Attributes:
      matrix: mm of the fixed frame to mm of the moving frame.
      initial: the same before the step: the frame of the headers, or the centres of the bodies.
      start: the search for a start; None if it was not needed.
      trusted: whether the headers' frame was the best start, or was asked for.
      line: one line of text for the console.
    """

    matrix: Matrix
    initial: Matrix
    start: Start | None
    trusted: bool
    line: str


def align(fixed: Scan, moving: Scan, how: str) -> Alignment:
    """Aligns two scans.

    Args:
      fixed: the fixed scan.
      moving: the moving scan.
      how: one of `AFFINE_STEPS`, or the path of a matrix file.

    Raises:
      UserError: scans that do not overlap, or a file that is not a matrix.
    """
    if how not in AFFINE_STEPS:
        matrix = itk_affine.read_matrix(Path(how))
        return Alignment(matrix, matrix, None, trusted=True, line=f"affine step: {how}")
    if how == "none":
        if not resample.has_overlap(fixed.image.grid, moving.image.grid):
            raise UserError(
                f"{moving.image.path}: does not overlap {fixed.image.path} in space by their headers; with "
                "--affine=none expected scans in one frame: omit it, or give a matrix file"
            )
        return Alignment(np.eye(4), np.eye(4), None, trusted=True, line="affine step: none")
    initial, related = initial_alignment(fixed.image, fixed.modality, moving.image, moving.modality)
    masks = {"fixed_mask": _voxels(fixed), "moving_mask": _voxels(moving)}
    start = None
    if how == "affine":
        coarse = [coarse_scan(scan.image, scan.normalised, scan.modality, _voxels(scan)) for scan in (fixed, moving)]
        start = find_start(*coarse, headers=related)
    if start is not None and not start.candidates[0].from_headers:
        why = "the headers' frame matches worse" if related else "the headers share no frame"
        line = f"affine step: searched for the position, as {why}"
        return Alignment(start.transform.matrix, initial, start, trusted=False, line=line)
    found = fit(fixed.normalised, moving.normalised, initial=initial, degrees=how, related=related, **masks)
    return Alignment(found.matrix, initial, start, trusted=True, line=f"affine step: {how}")


def _voxels(scan: Scan) -> Mask | None:
    return None if scan.mask is None else scan.mask.data > 0
