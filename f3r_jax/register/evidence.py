"""What two registered scans show about the quality of the result, without labels.

All values are computed on the coarse grid of `data/affine/coarse.py`, inside the bodies.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from f3r_jax.common.arrays import Matrix
from f3r_jax.data import transforms
from f3r_jax.data.affine import coarse
from f3r_jax.data.affine.coarse import CoarseScan
from f3r_jax.data.affine.search import lowest_mismatch
from f3r_jax.data.affine.start import MARGIN, MULTIPLE, Start, deformation, warped
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.fields import jacobian_determinant
from f3r_jax.ops.threads import in_threads

SHUFFLES = 4
TINY = 1e-9
SIMILAR = 0.9  # of the chosen candidate's merit


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Measures of one registration.

    Attributes:
      seen: percent of the fixed body that is in the moving scan's field of view.
      body_dice: Dice of both bodies in percent, where both scans show something.
      scales: the smallest and the largest stretch of the matrix.
      rotation: of the matrix, in degrees.
      likeness: percent by which the descriptors inside both bodies differ less than those of shuffled voxels.
      information: normalised mutual information inside both bodies, 1 to 2.
      smallest_volume, largest_volume: first and 99th percentile of the Jacobian determinant of the deformation.
      cycle_mm: median distance in the fixed body after a way through this result and a registration back.
      apart_mm: mean distance, inside the body, of the chosen position from the furthest of those that match as well;
        None without a search.
      mirrored: percent by which the mismatch falls if the moving scan is mirrored left to right; negative if it rises.
      upside_down, back_to_front: percent by which the lowest mismatch over all positions falls if the moving scan is
        mirrored along that axis; negative if it rises.
    """

    seen: float
    body_dice: float
    scales: tuple[float, float]
    rotation: float
    likeness: float
    information: float
    smallest_volume: float
    largest_volume: float
    cycle_mm: float
    apart_mm: float | None
    mirrored: float
    upside_down: float
    back_to_front: float


def gather(fixed: CoarseScan, moving: CoarseScan, transform: Transform, start: Start | None = None) -> Evidence | None:
    """Measures a result.

    Args:
      fixed: the fixed scan.
      moving: the moving scan.
      transform: the result.
      start: the search for the position, if there was one.

    Returns:
      The measures, or None if the bodies do not meet.
    """
    as_given, fixed = fixed, coarse.widened(fixed, MARGIN, MULTIPLE)
    u = transforms.resampled(transform, fixed.grid)
    before = coarse.moved_by(moving, transform.matrix, fixed.grid)
    after = warped(before, jnp.asarray(u)[None])
    both, seen = fixed.body & after.body, fixed.seen & after.seen
    if not both.any():
        return None
    upside_down, back_to_front = _flipped(as_given, moving)
    sizes = (fixed.body & seen).sum() + (after.body & seen).sum()
    stretch, rotation = _stretch_and_rotation(transform.matrix)
    jacobian = np.asarray(jacobian_determinant(jnp.asarray(u)[None]))[0][fixed.body]
    smallest, largest = np.percentile(jacobian, [1, 99])
    return Evidence(
        seen=100 * float((fixed.body & after.seen).sum() / fixed.body.sum()),
        body_dice=100 * float(2 * (both & seen).sum() / sizes),
        scales=stretch,
        rotation=rotation,
        likeness=_likeness(fixed, after, both),
        information=coarse.mutual_information(fixed, after),
        smallest_volume=float(smallest),
        largest_volume=float(largest),
        cycle_mm=_cycle(fixed, moving, Transform(fixed.grid, transform.matrix, u), both),
        apart_mm=None if start is None else _apart(start),
        mirrored=_mirrored(fixed, before),
        upside_down=upside_down,
        back_to_front=back_to_front,
    )


def _stretch_and_rotation(matrix: Matrix) -> tuple[tuple[float, float], float]:
    """The smallest and the largest stretch of a matrix, and the angle of its rotation in degrees."""
    left, stretch, right = np.linalg.svd(matrix[:3, :3])
    cosine = (np.trace(left @ right) - 1) / 2
    return (float(stretch[-1]), float(stretch[0])), float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _likeness(fixed: CoarseScan, after: CoarseScan, both: np.ndarray) -> float:
    """The percent by which descriptors differ less than those of shuffled voxels, inside both bodies."""
    f, m = (coarse.descriptors(scan.intensities)[both] for scan in (fixed, after))
    random = np.random.default_rng(0)
    shuffled = np.mean([np.mean((f - m[random.permutation(len(m))]) ** 2) for _ in range(SHUFFLES)])
    return float(100 * (1 - np.mean((f - m) ** 2) / shuffled)) if shuffled > 0 else 0.0


def _cycle(fixed: CoarseScan, moving: CoarseScan, transform: Transform, both: np.ndarray) -> float:
    """The median distance in mm of the body's points after a way there and back; the way back is registered again."""
    there = coarse.widened(moving, MARGIN, MULTIPLE)
    back = np.linalg.inv(transform.matrix)
    way = Transform(there.grid, back, np.asarray(deformation(there, coarse.moved_by(fixed, back, there.grid)))[0])
    index = np.argwhere(both)
    points = index @ fixed.grid.affine[:3, :3].T + fixed.grid.affine[:3, 3]
    returned = transforms.to_moving(way, transforms.to_moving(transform, points))
    return float(np.median(np.linalg.norm(returned - points, axis=1)))


def _apart(start: Start) -> float:
    """The mean distance of the chosen candidate from the furthest close candidate of similar merit, in mm."""
    best, index, grid = start.candidates[0], np.argwhere(start.fixed.body), start.fixed.grid
    points = index @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    goal = transforms.to_moving(start.transform_of(best), points)
    similar = [each for each in start.close_candidates() if each.merit >= SIMILAR * best.merit]
    ends = [transforms.to_moving(start.transform_of(each), points) for each in similar]
    return max((float(np.linalg.norm(end - goal, axis=1).mean()) for end in ends), default=0.0)


def _flipped(fixed: CoarseScan, moving: CoarseScan) -> tuple[float, float]:
    """The percents by which the lowest mismatch falls if the moving scan is mirrored along z, and along y.

    Left to right this shows little: bodies are nearly symmetric.
    """

    def along(axis: int) -> CoarseScan:
        shown, body, seen = (
            np.ascontiguousarray(np.flip(a, axis)) for a in (moving.intensities, moving.body, moving.seen)
        )
        return CoarseScan(shown, body, seen, moving.grid)

    found = [lowest_mismatch(fixed, each) for each in (moving, along(2), along(1))]
    if not np.isfinite(found).all():
        return 0.0, 0.0
    plain, *others = found
    upside_down, back_to_front = (100 * (plain - other) / max(plain, other, TINY) for other in others)
    return upside_down, back_to_front


def _mirrored(fixed: CoarseScan, before: CoarseScan) -> float:
    """The percent by which the mismatch falls if the moving scan is mirrored in its place; both ways are deformed."""
    middle, size = round(2 * float(np.argwhere(before.body)[:, 0].mean())), len(before.body)

    def mirrored(data: np.ndarray, mode: str) -> np.ndarray:
        flipped = data[::-1].astype(np.float32)  # voxel i is now at size - 1 - i, and should be at middle - i
        return ndimage.shift(flipped, (middle - size + 1, 0, 0), order=0, mode=mode)

    seen = mirrored(before.seen, "constant") > 0.5
    scan = CoarseScan(
        mirrored(before.intensities, "nearest"), (mirrored(before.body, "nearest") > 0.5) & seen, seen, before.grid
    )

    def after(each: CoarseScan) -> float:
        return coarse.mismatch(fixed, warped(each, deformation(fixed, each)), each.seen)

    mismatch, other = in_threads(after, (before, scan))
    return 100 * (mismatch - other) / max(mismatch, other, TINY)
