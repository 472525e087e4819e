"""An initial matrix from what the user knows: corresponding landmarks, or labels that both scans share.

Landmarks give a rigid motion, with one scale if they are enough, by least squares that outliers hardly affect. Labels
give a shift and three scales: from the centroids, then by the overlap inside both fields of view.

Letters: n landmarks, k labels, m points.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import ndimage, optimize

from f3r_jax.common.arrays import Matrix
from f3r_jax.data import resample
from f3r_jax.data.affine import coarse
from f3r_jax.data.affine.coarse import CoarseScan
from f3r_jax.data.affine.placement import compared, optimise, optimise_turned
from f3r_jax.data.affine.search import Placement, centre, matrix_of
from f3r_jax.data.affine.start import MARGIN as MARGIN_OF_START
from f3r_jax.data.affine.start import MULTIPLE, Candidate, Start, chosen, deformed
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.data.transforms import apply_matrix
from f3r_jax.ops.restraints import Restraints
from f3r_jax.ops.sources import Source

Points = Float[np.ndarray, "n 3"]
GuidesOn = Callable[[Grid, Matrix], tuple[Sequence[Source], Restraints]]

ROUNDS = 10  # of the reweighted fit
SMALLEST = 0.1  # scale
SPREAD, LEAST = 3.0, 5.0  # as in `ops/restraints.py`: the limit of an outlier, in median errors and in mm
# Eight landmarks of 20 phantom pairs with scales of 0.8 to 1.25: error over body and organs 17.7 and 11.3 mm without a
# scale, 9.8 and 7.0 with one; 10.2 and 7.1 if the errors of landmarks that are left out decide.
FEWEST_WITH_SCALE = 5
FLAT = 5.0  # mm: landmarks that extend less than this across their main axis leave a rotation open
SPACING, MARGIN, BLUR = 6.0, 24.0, 1.0  # mm, mm and voxels, of the grids on which labels are compared
STEP = 0.05  # of the finite differences, in units of 10 mm and of a tenth of the logarithm of a scale
# Per square of the logarithm of a scale, in units of 1 - Dice. Five real pairs of different people, liver alone: mean
# Dice of the liver and of the other three organs 66.8 and 32.8 with a shift, 75.3 and 35.6 at 0.2, 71.2 and 33.9 at 1.
PENALTY = 0.2
# A part of a label outside the other field of view may be right or wrong. It counts as this share of a mismatch, or an
# overlap would become perfect by moving labels out of view.
UNSEEN = 0.1
APART = 40.0  # mm between the shifts that are compared where a field of view cuts a label: its centroid is elsewhere


def from_landmarks(fixed: Points, moving: Points, *, scaled: bool = False) -> Matrix:
    """The rigid motion from the fixed to the moving landmarks, in mm; a shift where they leave a rotation open.

    With `scaled`, five or more landmarks that give a rotation also give one scale.
    """
    return _fitted(fixed, moving, scaled=scaled)[0]


def trust_in(fixed: Points, moving: Points) -> Float[np.ndarray, " n"]:
    """How far each landmark agrees with a rigid motion and a scale that fit most of them, 0 to 1.

    It is 1 for all of fewer than five, because so few do not tell which one is wrong.
    """
    return _fitted(fixed, moving, scaled=True)[1] if len(fixed) >= FEWEST_WITH_SCALE else np.ones(len(fixed))


def _fitted(fixed: Points, moving: Points, *, scaled: bool) -> tuple[Matrix, Float[np.ndarray, " n"]]:
    """The matrix of `from_landmarks`, and the weights of the landmarks."""
    scaled = scaled and len(fixed) >= FEWEST_WITH_SCALE
    weight, matrix = np.ones(len(fixed)), np.eye(4)
    for _ in range(ROUNDS):
        matrix = rigid_motion(fixed, moving, weight, scaled=scaled)
        away = np.linalg.norm(moved(matrix, fixed) - moving, axis=1)
        limit = max(SPREAD * float(np.median(away)), LEAST)
        weight = 1 / (1 + (away / limit) ** 2) ** 2
    return matrix, weight


def moved(matrix: Matrix, points: Points) -> Points:
    """The points after a matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def rigid_motion(
    x: Points, y: Points, weight: Float[np.ndarray, " n"] | None = None, *, scaled: bool = False
) -> Matrix:
    """The weighted least squares rigid motion from points to points (Kabsch); a shift where a rotation is open.

    `scaled` adds one scale (Umeyama), except to a shift.
    """
    weight = np.ones(len(x)) if weight is None else weight
    share = weight / weight.sum()
    centre_x, centre_y = share @ x, share @ y
    matrix = np.eye(4)
    spread = np.linalg.svd((x - centre_x) * np.sqrt(share)[:, None], compute_uv=False)
    if len(x) > 2 and spread[1] > FLAT:
        u, _, v = np.linalg.svd((y - centre_y).T @ ((x - centre_x) * share[:, None]))
        u[:, 2] *= np.sign(np.linalg.det(u @ v))
        turn = u @ v
        stretch = share @ np.sum(((x - centre_x) @ turn.T) * (y - centre_y), axis=1)
        matrix[:3, :3] = turn * (max(stretch / np.sum(spread**2), SMALLEST) if scaled else 1.0)
    matrix[:3, 3] = centre_y - matrix[:3, :3] @ centre_x
    return matrix


def from_labels(fixed: Image, moving: Image, labels: Sequence[int], *, scales: bool = True) -> Matrix:
    """The shift and the scales along x, y and z at which the labels overlap best; `scales` off leaves only the shift.

    Both label maps hold a voxel of each label. Their grids are the fields of view: what one of them cuts off counts
    little.
    """
    sides = [_around(image, labels) for image in (fixed, moving)]
    centres = [grid.affine[:3, :3] @ _centroid(data) + grid.affine[:3, 3] for grid, data in sides]
    (grid, here), (there, data) = sides
    points = (np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3) @ grid.affine[:3, :3].T + grid.affine[:3, 3]).T
    inward, wanted, known = np.linalg.inv(there.affine), here.reshape(len(labels), -1), _seen(fixed.grid, points)

    def matrix_at(x: np.ndarray) -> Matrix:
        matrix = np.diag([*np.exp(0.1 * x[3:]), 1.0])
        matrix[:3, 3] = centres[1] + 10 * x[:3] - matrix[:3, :3] @ centres[0]
        return matrix

    def cost(x: np.ndarray) -> float:
        x = np.pad(x, (0, 6 - len(x)))
        matrix = matrix_at(x)
        world = apply_matrix(matrix, points)
        place = apply_matrix(inward, world)
        found = [ndimage.map_coordinates(volume, place, order=1, mode="constant") for volume in data]
        both = known * (seen := _seen(moving.grid, world))
        counts = both + UNSEEN * (known - both), both + UNSEEN * (seen - both)
        overlaps = [
            2 * (both * a) @ b / ((counts[0] * a) @ a + (counts[1] * b) @ b) for a, b in zip(wanted, found, strict=True)
        ]
        return 1 - float(np.mean(overlaps)) + PENALTY * 0.01 * float(np.sum(x[3:] ** 2))

    begin = np.zeros(6 if scales else 3)
    if any(_is_cut(image, labels) for image in (fixed, moving)):
        shifts = APART / 10 * np.array(list(itertools.product((-1, 0, 1), repeat=3)))
        begin[:3] = min(shifts, key=cost)
    options = {"eps": STEP, "ftol": 1e-4}
    end = optimize.minimize(cost, begin, method="L-BFGS-B", options=options)
    return matrix_at(np.pad(end.x, (0, 6 - len(end.x))))


def overlap(fixed: Image, moving: Image, labels: Sequence[int], matrix: Matrix) -> float:
    """The mean Dice of the labels after a matrix inside both fields of view, 0 to 1, on grids of `SPACING` mm."""
    grid, _ = _around(fixed, labels)
    there = dataclasses.replace(grid, affine=matrix @ grid.affine)
    here, found = (resample.resample_labels(image, on) for image, on in ((fixed, grid), (moving, there)))
    both = resample.field_of_view(fixed.grid, grid) & resample.field_of_view(moving.grid, there)
    pairs = [(both & (here == label), both & (found == label)) for label in labels]
    return float(np.mean([2 * np.sum(a & b) / max(np.sum(a) + np.sum(b), 1) for a, b in pairs]))


def _seen(grid: Grid, world: Float[np.ndarray, "3 m"]) -> Float[np.ndarray, " m"]:
    """Whether points are inside a field of view: 1, falling to 0 within `SPACING` at its edge."""
    voxels, mm = apply_matrix(np.linalg.inv(grid.affine), world), grid.spacing[:, None]
    inside = np.minimum(voxels + 0.5, np.array(grid.shape)[:, None] - 0.5 - voxels) * mm
    return np.clip(inside / SPACING + 0.5, 0, 1).prod(axis=0)


def _is_cut(image: Image, labels: Sequence[int]) -> bool:
    """Whether a label reaches the border of its field of view."""
    at = np.argwhere(np.isin(image.data, labels))
    return bool((at == 0).any() or (at == np.array(image.data.shape) - 1).any())


def start_from(matrices: Sequence[Matrix], fixed: CoarseScan, moving: CoarseScan, guides: GuidesOn) -> Start:
    """The start of a pair whose placement is known: the coarse deformation from the best of some matrices.

    Labels know nothing of the rest of the body, and landmarks have noise. So the first matrix is also optimised with
    MIND: its shift and scales, or its rotation too if it has one. If the scans are alike, the best of all is optimised
    once more, with a rotation. The best is taken as in a search.

    Args:
      matrices: mm of the fixed frame to mm of the moving frame; the first from labels or landmarks.
      fixed: the fixed scan.
      moving: the moving scan.
      guides: makes the sources and restraints of `refine` on a grid, for a matrix.
    """
    wide, pair = coarse.widened(fixed, MARGIN_OF_START, MULTIPLE), compared(fixed, moving)

    def candidate(matrix: Matrix) -> Candidate:
        further, restraints = guides(wide.grid, matrix)
        there = coarse.moved_by(moving, matrix, wide.grid)
        cost = coarse.mismatch(wide, there, there.seen)
        return deformed(matrix, wide, moving, cost=cost, from_headers=False, further=further, restraints=restraints)

    def turned(matrix: Matrix) -> Matrix:
        return optimise_turned(matrix, pair, fixed.grid, moving.grid)[0]

    first = matrices[0]
    if np.allclose(first[:3, :3], np.diag(np.diag(first[:3, :3]))):
        shift = first[:3, :3] @ centre(fixed.grid) + first[:3, 3] - centre(moving.grid)
        known = Placement(shift, np.log(np.diag(first[:3, :3])), 0.0)
        optimised = matrix_of(optimise(known, pair), fixed.grid, moving.grid)
    else:
        optimised = turned(first)
    start = chosen([candidate(each) for each in (*matrices, optimised)], wide, moving)
    if not start.alike:
        return start
    return chosen([*start.candidates, candidate(turned(start.transform.matrix))], wide, moving)


def _around(image: Image, labels: Sequence[int]) -> tuple[Grid, np.ndarray]:
    """A grid along the axes of the world around the labels, and the smoothed labels (k x y z) on it."""
    at = np.argwhere(np.isin(image.data, labels))
    points = at @ image.affine[:3, :3].T + image.affine[:3, 3]
    low, high = points.min(axis=0) - MARGIN, points.max(axis=0) + MARGIN
    size = np.ceil((high - low) / SPACING).astype(int) + 1
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = low
    grid = Grid((int(size[0]), int(size[1]), int(size[2])), affine, image.path)
    each = [Image((image.data == label).astype(np.float32), image.affine, image.path) for label in labels]
    return grid, np.stack([ndimage.gaussian_filter(resample.resample(one, grid), BLUR) for one in each])


def _centroid(data: np.ndarray) -> np.ndarray:
    """The mean of the labels' centroids, in voxels; each label counts the same."""
    return np.mean([ndimage.center_of_mass(volume) for volume in data], axis=0)
