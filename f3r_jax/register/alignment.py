"""The affine step of a registration: a matrix file, the headers, or a fit."""

import dataclasses

import numpy as np

from f3r_jax.common.arrays import Mask, Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.data import matrix_files, resample
from f3r_jax.data.affine.coarse import coarse_scan
from f3r_jax.data.affine.fit import fit
from f3r_jax.data.affine.guided import start_from
from f3r_jax.data.affine.initial import initial_alignment
from f3r_jax.data.affine.start import Start, find_start
from f3r_jax.register.guidance import UNGUIDED, Guidance
from f3r_jax.register.known_position import known_position
from f3r_jax.register.scans import Scan

AFFINE_STEPS = ("none", "rigid", "affine")


# mm on average over the body. A search that ends closer than this to the headers' frame confirms it: more than the
# motion of a deep breath.
CONFIRMED = 48.0


@dataclasses.dataclass(frozen=True)
class Alignment:
    """A result of the affine step.

    Attributes:
      matrix: mm of the fixed frame to mm of the moving frame.
      initial: the same before the step: the frame of the headers, or the centres of the bodies.
      start: the search that gave the matrix; None for the other ways.
      line: one line of text for the console.
    """

    matrix: Matrix
    initial: Matrix
    start: Start | None
    line: str


def align(fixed: Scan, moving: Scan, how: str, *, both: bool = True, guidance: Guidance = UNGUIDED) -> list[Alignment]:
    """Aligns two scans.

    Args:
      fixed: the fixed scan.
      moving: the moving scan.
      how: one of `AFFINE_STEPS`, or the path of a matrix file.
      both: whether the fit from the initial matrix is wanted in addition to a searched position.
      guidance: labels or landmarks that drive give the position, and nothing is searched.

    Returns:
      One alignment. Where the position had to be searched, `both` is set, and a fit from the initial matrix succeeds
      too: the searched alignment and the fitted one.

    Raises:
      UserError: scans that do not overlap, or a file that is not a matrix.
    """
    if how not in AFFINE_STEPS:
        matrix = matrix_files.read_matrix(how, fixed.stored, moving.stored)
        return [Alignment(matrix, matrix, None, f"affine step: {how}")]
    if how == "none":
        if not resample.has_overlap(fixed.image.grid, moving.image.grid):
            raise UserError(
                f"{moving.image.path}: does not overlap {fixed.image.path} in space by their headers; with "
                "--affine=none expected scans in one frame: omit it, or give a matrix file"
            )
        return [Alignment(np.eye(4), np.eye(4), None, "affine step: none")]
    initial, related = initial_alignment(fixed.image, fixed.modality, moving.image, moving.modality)
    if guidance.drives:
        return [_guided(fixed, moving, how, guidance, initial, related=related)]
    found = _searched(fixed, moving, initial, related=related) if how == "affine" else []
    if found and not both:
        return found
    masks = {"fixed_mask": _voxels(fixed), "moving_mask": _voxels(moving)}
    try:
        end = fit(fixed.normalised, moving.normalised, initial=initial, degrees=how, related=related, **masks)
    except UserError:
        if found:
            return found
        raise
    return [*found, Alignment(end.matrix, initial, None, f"affine step: {how}")]


def _guided(fixed: Scan, moving: Scan, how: str, guidance: Guidance, initial: Matrix, *, related: bool) -> Alignment:
    """The alignment from the labels or landmarks that drive, continued by MIND."""
    known = known_position(fixed, moving, guidance, scales=how == "affine")
    line = f"affine step: {how}, from the {known.what} that drive"
    if how == "affine" and not (related and known.away < CONFIRMED):
        here, there = (
            coarse_scan(scan.image, scan.normalised, scan.modality, _voxels(scan)) for scan in (fixed, moving)
        )
        start = start_from(known.matrix, here, there, known.on_grid)
        return Alignment(start.transform.matrix, initial, start, line)
    try:
        end = fit(
            fixed.normalised,
            moving.normalised,
            initial=known.matrix,
            degrees=how,
            fixed_mask=_voxels(fixed),
            moving_mask=_voxels(moving),
        ).matrix
    except UserError:
        end = known.matrix
    return Alignment(known.better(end), initial, None, line)


def _searched(fixed: Scan, moving: Scan, initial: Matrix, *, related: bool) -> list[Alignment]:
    """The alignment by search; none if it confirms the headers, or if it fails and a fit is possible."""
    coarse = [coarse_scan(scan.image, scan.normalised, scan.modality, _voxels(scan)) for scan in (fixed, moving)]
    try:
        start = find_start(*coarse, headers=related)
    except UserError:
        return []
    if related and distance(start) < CONFIRMED:
        return []
    why = "the headers' frame matches worse" if related else "the headers share no frame"
    line = f"affine step: searched for the position, as {why}"
    return [Alignment(start.transform.matrix, initial, start, line)]


def distance(start: Start) -> float:
    """The distance of the best candidate's matrix from the identity, in mm on average over the fixed body."""
    inside = np.argwhere(start.fixed.body)
    points = np.c_[inside, np.ones(len(inside))] @ start.fixed.grid.affine.T
    return float(np.linalg.norm((points @ (start.candidates[0].matrix - np.eye(4)).T)[:, :3], axis=1).mean())


def _voxels(scan: Scan) -> Mask | None:
    return None if scan.mask is None else scan.mask.data > 0
