"""An initial matrix from what the user knows: corresponding landmarks, or labels that both scans share.

Landmarks give a rigid motion, by least squares that outliers hardly affect. Labels give a shift and three scales: from
the centroids, then by the overlap. Letters: n landmarks, k labels, m points.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import ndimage, optimize

from f3r_jax.common.arrays import Matrix
from f3r_jax.data import resample
from f3r_jax.data.affine import coarse
from f3r_jax.data.affine.coarse import CoarseScan
from f3r_jax.data.affine.placement import compared, optimise
from f3r_jax.data.affine.search import Placement, centre, matrix_of
from f3r_jax.data.affine.start import MARGIN as MARGIN_OF_START
from f3r_jax.data.affine.start import MULTIPLE, Start, chosen, deformed
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.ops.restraints import Restraints
from f3r_jax.ops.sources import Source

Points = Float[np.ndarray, "n 3"]
GuidesOn = Callable[[Grid, Matrix], tuple[Sequence[Source], Restraints]]

ROUNDS = 10  # of the reweighted fit
SPREAD, LEAST = 3.0, 5.0  # as in `ops/restraints.py`: the limit of an outlier, in median errors and in mm
FLAT = 5.0  # mm: landmarks that extend less than this across their main axis leave a rotation open
SPACING, MARGIN, BLUR = 6.0, 24.0, 1.0  # mm, mm and voxels, of the grids on which labels are compared
STEP = 0.05  # of the finite differences, in units of 10 mm and of a tenth of the logarithm of a scale
# Per square of the logarithm of a scale, in units of 1 - Dice. Five real pairs of different people, liver alone: mean
# Dice of the liver and of the other three organs 66.8 and 32.8 with a shift, 75.3 and 35.6 at 0.2, 71.2 and 33.9 at 1.
PENALTY = 0.2


def from_landmarks(fixed: Points, moving: Points) -> Matrix:
    """The rigid motion from the fixed to the moving landmarks, in mm; a shift where they leave a rotation open."""
    weight, matrix = np.ones(len(fixed)), np.eye(4)
    for _ in range(ROUNDS):
        matrix = rigid_motion(fixed, moving, weight)
        away = np.linalg.norm(moved(matrix, fixed) - moving, axis=1)
        limit = max(SPREAD * float(np.median(away)), LEAST)
        weight = 1 / (1 + (away / limit) ** 2) ** 2
    return matrix


def moved(matrix: Matrix, points: Points) -> Points:
    """The points after a matrix."""
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def rigid_motion(x: Points, y: Points, weight: Float[np.ndarray, " n"] | None = None) -> Matrix:
    """The weighted least squares rigid motion from points to points (Kabsch); a shift where a rotation is open."""
    weight = np.ones(len(x)) if weight is None else weight
    share = weight / weight.sum()
    centre_x, centre_y = share @ x, share @ y
    matrix = np.eye(4)
    spread = np.linalg.svd((x - centre_x) * np.sqrt(share)[:, None], compute_uv=False)
    if len(x) > 2 and spread[1] > FLAT:
        u, _, v = np.linalg.svd((y - centre_y).T @ ((x - centre_x) * share[:, None]))
        u[:, 2] *= np.sign(np.linalg.det(u @ v))
        matrix[:3, :3] = u @ v
    matrix[:3, 3] = centre_y - matrix[:3, :3] @ centre_x
    return matrix


def from_labels(fixed: Image, moving: Image, labels: Sequence[int], *, scales: bool = True) -> Matrix:
    """The shift and the scales along x, y and z at which the labels overlap best; `scales` off leaves only the shift.

    Both label maps hold a voxel of each label.
    """
    sides = [_around(image, labels) for image in (fixed, moving)]
    centres = [grid.affine[:3, :3] @ _centroid(data) + grid.affine[:3, 3] for grid, data in sides]
    (grid, here), (there, data) = sides
    points = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3) @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    inward, wanted = np.linalg.inv(there.affine), here.reshape(len(labels), -1)

    def matrix_at(x: np.ndarray) -> Matrix:
        matrix = np.diag([*np.exp(0.1 * x[3:]), 1.0])
        matrix[:3, 3] = centres[1] + 10 * x[:3] - matrix[:3, :3] @ centres[0]
        return matrix

    def cost(x: np.ndarray) -> float:
        x = np.pad(x, (0, 6 - len(x)))
        change = inward @ matrix_at(x)
        place = change[:3, :3] @ points.T + change[:3, 3:]
        found = [ndimage.map_coordinates(volume, place, order=1, mode="constant") for volume in data]
        overlaps = [2 * (a @ b) / (a @ a + b @ b) for a, b in zip(wanted, found, strict=True)]
        return 1 - float(np.mean(overlaps)) + PENALTY * 0.01 * float(np.sum(x[3:] ** 2))

    options = {"eps": STEP, "ftol": 1e-4}
    end = optimize.minimize(cost, np.zeros(6 if scales else 3), method="L-BFGS-B", options=options)
    return matrix_at(np.pad(end.x, (0, 6 - len(end.x))))


def overlap(fixed: Image, moving: Image, labels: Sequence[int], matrix: Matrix) -> float:
    """The mean Dice of the labels after a matrix, 0 to 1, on grids of `SPACING` mm."""
    grid, _ = _around(fixed, labels)
    there = dataclasses.replace(grid, affine=matrix @ grid.affine)
    here, found = (resample.resample_labels(image, on) for image, on in ((fixed, grid), (moving, there)))
    pairs = [(here == label, found == label) for label in labels]
    return float(np.mean([2 * np.sum(a & b) / max(np.sum(a) + np.sum(b), 1) for a, b in pairs]))


def start_from(matrix: Matrix, fixed: CoarseScan, moving: CoarseScan, guides: GuidesOn) -> Start:
    """The start of a pair whose placement is known: the coarse deformation from a matrix.

    Labels know nothing of the rest of the body. So a shift with scales is also optimised with MIND, and the better of
    both is taken, as in a search. `guides` makes the sources and restraints of `refine` on a grid, for a matrix.
    """
    wide = coarse.widened(fixed, MARGIN_OF_START, MULTIPLE)
    matrices = [matrix]
    if np.allclose(matrix[:3, :3], np.diag(np.diag(matrix[:3, :3]))):
        shift = moved(matrix, centre(fixed.grid)) - centre(moving.grid)
        known = Placement(shift, np.log(np.diag(matrix[:3, :3])), 0.0)
        matrices.append(matrix_of(optimise(known, compared(fixed, moving)), fixed.grid, moving.grid))
    candidates = []
    for each in matrices:
        further, restraints = guides(wide.grid, each)
        there = coarse.moved_by(moving, each, wide.grid)
        cost = coarse.mismatch(wide, there, there.seen)
        candidates.append(
            deformed(each, wide, moving, cost=cost, from_headers=False, further=further, restraints=restraints)
        )
    return chosen(candidates, wide, moving)


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
