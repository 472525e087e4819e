"""The affine step of a registration: a matrix file, the headers, or a fit."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from f3r_jax.common.arrays import Mask, Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.data import matrix_files, resample, transforms
from f3r_jax.data.affine.coarse import CoarseScan, coarse_scan, mismatch, moved_by
from f3r_jax.data.affine.fit import fit
from f3r_jax.data.affine.guided import start_from
from f3r_jax.data.affine.initial import initial_alignment
from f3r_jax.data.affine.start import Start, find_start, warped
from f3r_jax.data.transforms import Transform
from f3r_jax.register.guidance import UNGUIDED, Guidance
from f3r_jax.register.known_position import known_position
from f3r_jax.register.scans import Scan

AFFINE_STEPS = ("none", "rigid", "affine")
# mm on average over the body. A search that ends closer than this to the headers' frame confirms it: more than the
# motion of a deep breath.
CONFIRMED = 48.0
# A fit in the confirmed frame whose mismatch is this many times that of the search has failed: where half of the moving
# view is missing, some fits ended 50 mm off.
WORSE = 1.05


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


def align(
    fixed: Scan,
    moving: Scan,
    coarse: tuple[CoarseScan, CoarseScan],
    how: str,
    *,
    both: bool = True,
    guidance: Guidance = UNGUIDED,
) -> tuple[list[Alignment], Start | None]:
    """Aligns two scans.

    Args:
      fixed: the fixed scan.
      moving: the moving scan.
      coarse: their coarse copies.
      how: one of `AFFINE_STEPS`, or the path of a matrix file.
      both: whether a second alignment is wanted in addition to a searched position, for a registration without the
        coarse deformation.
      guidance: labels or landmarks that drive give the position; a search only adds one that they allow.

    Returns:
      One alignment. Where the position had to be searched and `both` is set, there may be two. The second is a fit that
      begins at the matrix of the search, for scans that are alike, or in the headers' frame if they share one. The
      second value is the search, also where it confirms the headers; None where there was none.

    Raises:
      UserError: scans that do not overlap, or a file that is not a matrix.
    """
    if how not in AFFINE_STEPS:
        matrix = matrix_files.read_matrix(how, fixed.stored, moving.stored)
        return [Alignment(matrix, matrix, None, f"affine step: {how}")], None
    if how == "none":
        if not resample.has_overlap(fixed.image.grid, moving.image.grid):
            raise UserError(
                f"{moving.image.path}: does not overlap {fixed.image.path} in space by their headers; with "
                "--affine=none expected scans in one frame: omit it, or give a matrix file"
            )
        return [Alignment(np.eye(4), np.eye(4), None, "affine step: none")], None
    initial, related = initial_alignment(fixed.image, fixed.modality, moving.image, moving.modality)
    if guidance.drives:
        return _guided(fixed, moving, coarse, how, guidance, initial, related=related, both=both), None
    search = _search(coarse, related=related) if how == "affine" else None
    found = _searched(search, initial, related=related)
    if found and not both:
        return found, search
    alike = search is not None and search.alike
    if found and not related and not alike:
        return found, search
    begin, near, line = initial, related, "from a fit in the headers' frame" if found else f"affine step: {how}"
    if found and search is not None and alike and not _headers_are_close(search):
        begin, near, line = search.transform.matrix, True, "from a fit that begins at its matrix"
    masks = {"fixed_mask": mask_of(fixed), "moving_mask": mask_of(moving)}
    try:
        end = fit(fixed.normalised, moving.normalised, initial=begin, degrees=how, related=near, **masks)
    except UserError:
        if found:
            return found, search
        raise
    if search is not None and not found:
        known = search.transform.matrix
        if _mismatch(search, end.matrix) > WORSE * _mismatch(search, known):
            line = f"affine step: {how}, by the search, as the fit in the headers' frame matches worse"
            return [Alignment(known, initial, None, line)], search
    return [*found, Alignment(end.matrix, initial, None, line)], search


def _guided(
    fixed: Scan,
    moving: Scan,
    coarse: tuple[CoarseScan, CoarseScan],
    how: str,
    guidance: Guidance,
    initial: Matrix,
    *,
    related: bool,
    both: bool,
) -> list[Alignment]:
    """The alignments from the labels or landmarks that drive, continued by MIND."""
    known = known_position(fixed, moving, guidance, scales=how == "affine")
    line = f"affine step: {how}, from the {known.what} that drive"
    if how == "affine" and not (related and known.distance(np.eye(4)) < CONFIRMED):
        search = _search(coarse, related=related)
        begins = known.begins(None if search is None else search.transform.matrix)
        start = start_from(begins, *coarse, known.on_grid)
        found = Alignment(start.transform.matrix, initial, start, line)
        if not both or not start.alike:
            return [found]
        # Not the matrix that fits the deformation: beyond the moving field of view, that is extrapolated.
        return [found, Alignment(start.candidates[0].matrix, initial, None, "from its matrix alone")]
    masks = {"fixed_mask": mask_of(fixed), "moving_mask": mask_of(moving)}
    try:
        end = fit(fixed.normalised, moving.normalised, initial=known.matrix, degrees=how, related=True, **masks).matrix
    except UserError:
        end = known.matrix
    return [Alignment(end if known.allows(end) else known.matrix, initial, None, line)]


def coarse_copies(fixed: Scan, moving: Scan) -> tuple[CoarseScan, CoarseScan]:
    """Coarse copies of the fixed and the moving scan, with their masks."""
    one, other = (coarse_scan(each.image, each.normalised, each.modality, mask_of(each)) for each in (fixed, moving))
    return one, other


def _search(coarse: tuple[CoarseScan, CoarseScan], *, related: bool) -> Start | None:
    """The search for the position; None if no position shows enough of a body."""
    try:
        return find_start(*coarse, headers=related)
    except UserError:
        return None


def _searched(search: Start | None, initial: Matrix, *, related: bool) -> list[Alignment]:
    """The alignment by a search; none without one, or if it confirms the headers of scans that are alike."""
    if search is None:
        return []
    why = "the headers' frame matches worse" if related else "the headers share no frame"
    if related and distance(search) < CONFIRMED:
        if search.alike:
            return []
        why = "the scans differ much in their headers' frame"
    line = f"affine step: searched for the position, as {why}"
    return [Alignment(search.transform.matrix, initial, search, line)]


def mismatch_of(start: Start, transform: Transform) -> float:
    """The mismatch of the coarse scans of a start after a transform."""
    moved = moved_by(start.moving, transform.matrix, start.fixed.grid)
    u = jnp.asarray(transforms.resampled(transform, start.fixed.grid))[None]
    return mismatch(start.fixed, warped(moved, u), moved.seen)


def _mismatch(search: Start, matrix: Matrix) -> float:
    """The same after a matrix alone."""
    grid = search.fixed.grid
    return mismatch_of(search, Transform(grid, matrix, np.zeros((*grid.shape, 3), np.float32)))


def _headers_are_close(search: Start) -> bool:
    """Whether a placement that began in the headers' frame matches about as well as the best one."""
    return any(each.from_headers for each in (search.candidates[0], *search.close_candidates()))


def distance(start: Start) -> float:
    """The distance of the best candidate's matrix from the identity, in mm on average over the fixed body."""
    inside = np.argwhere(start.fixed.body)
    points = np.c_[inside, np.ones(len(inside))] @ start.fixed.grid.affine.T
    return float(np.linalg.norm((points @ (start.candidates[0].matrix - np.eye(4)).T)[:, :3], axis=1).mean())


def mask_of(scan: Scan) -> Mask | None:
    """The scan's mask, or None."""
    return None if scan.mask is None else scan.mask.data > 0
