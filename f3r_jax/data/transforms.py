"""Transforms of world space: an affine and a displacement, converted to fields on any grid and applied to images.

A field on a grid contains, for the voxel at x (mm, RAS+), the vector from x to the point that x is mapped to. Images
are warped backward: the warped image at x is the image at x + field(x). Outside the working grid the displacement has
its edge value. The module uses NumPy and SciPy, with coordinates in double precision. Large grids are processed in
slabs by several threads.

Letters: x y z voxels of a grid, n points, A_w affine of the working grid, M matrix, u displacement, p voxel of the
working grid. Frames are those of the fixed and of the moving scan.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Float64, Shaped
from scipy import ndimage

from f3r_jax.common.arrays import WorldField
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.data.resample import by_slabs, sample_along_axes, shared_axes
from f3r_jax.ops.fields import invert

Points = Float[np.ndarray, "n 3"]  # mm, RAS+

OUTSIDE = 0.5  # voxels beyond the outermost centres, the edge of their voxels, as in ITK
ROUNDING = 1e-6  # voxels
NEWTON, SOLVED = 20, 1e-3  # maximum number of iterations, and the error in mm at which they stop
NUDGE = 0.05  # mm, step of the finite differences; a displacement is nearly linear within one voxel
SINGULAR = 0.02  # for smaller Jacobian determinants the Jacobian is replaced by the identity


@dataclasses.dataclass(frozen=True)
class Transform:
    """Maps the point A_w p of voxel p of `grid` in the fixed frame to M A_w (p + u(p)) in the moving frame.

    Attributes:
      grid: the working grid; its affine maps voxels to mm of the fixed frame.
      matrix: M, from mm of the fixed frame to mm of the moving frame (RAS+).
      displacement: u, in voxels of `grid`.
    """

    grid: Grid
    matrix: Float64[np.ndarray, "4 4"]
    displacement: Float32[np.ndarray, "x y z 3"]


def to_moving(transform: Transform, points: Points) -> Float64[np.ndarray, "n 3"]:
    """Maps points of the fixed frame to the corresponding points of the moving frame, in mm."""
    p = apply_matrix(np.linalg.inv(transform.grid.affine), np.asarray(points, np.float64).T)
    return apply_matrix(transform.matrix @ transform.grid.affine, p + _sample(transform.displacement, p)).T


def field_on(transform: Transform, grid: Grid) -> WorldField:
    """The field of the whole transform, M A_w (p + u(p)) - x, at each voxel x of a grid of the fixed frame."""
    to_working = np.linalg.inv(transform.grid.affine) @ grid.affine
    from_working = transform.matrix @ transform.grid.affine
    linear, rest = from_working[:3, :3].astype(np.float32), from_working @ to_working - grid.affine
    look_up = _look_up(transform.displacement, to_working, grid.shape)
    field = np.empty((3, *grid.shape), np.float32)

    def fill(slab: slice) -> None:
        field[:, slab] = _turned(linear, look_up(slab)) + _affine(rest, grid.shape, slab)

    by_slabs(grid.shape, fill)
    return np.moveaxis(field, 0, -1)


def deformation_on(transform: Transform, grid: Grid) -> WorldField:
    """The field of the deformation without M, A_w (p + u(p)) - x, at each voxel of a grid of the fixed frame."""
    return field_on(dataclasses.replace(transform, matrix=np.eye(4)), grid)


def followed_by(
    deformation: WorldField, matrix: Float64[np.ndarray, "4 4"], grid: Grid, *, in_place: bool = False
) -> WorldField:
    """The field M (x + d(x)) - x at each voxel x of `grid`, from a deformation d on it, or in its place."""
    linear, rest = matrix[:3, :3].astype(np.float32), (matrix - np.eye(4)) @ grid.affine
    field = np.moveaxis(deformation, -1, 0) if in_place else np.empty((3, *grid.shape), np.float32)

    def fill(slab: slice) -> None:
        field[:, slab] = _turned(linear, np.moveaxis(deformation[slab], -1, 0)) + _affine(rest, grid.shape, slab)

    by_slabs(grid.shape, fill)
    return np.moveaxis(field, 0, -1)


def inverse(transform: Transform) -> tuple[Transform, dict[str, float]]:
    """The inverse transform, from the moving frame to the fixed frame, and statistics of its error.

    Its working grid is that of `transform`, mapped to the moving frame by M. Outside it the inverse displacement has
    its edge value.

    Returns:
      The inverse, and statistics of the residual |v(q) + u(q + v(q))| in voxels over the working grid: `mean`, `p99`,
      `max`, and `unsolved_percent`, the percentage of voxels where it exceeds 0.1, for instance where the field folds.
    """
    solution, left = invert(jnp.asarray(transform.displacement)[None])
    displacement, residual = np.asarray(solution[0]), np.asarray(left[0])
    statistics = {
        "mean": float(residual.mean()),
        "p99": float(np.percentile(residual, 99)),
        "max": float(residual.max()),
        "unsolved_percent": float(100 * np.mean(residual > 0.1)),
    }
    carried = dataclasses.replace(transform.grid, affine=transform.matrix @ transform.grid.affine)
    return Transform(carried, np.linalg.inv(transform.matrix), displacement), statistics


def solve(
    carry: Callable[[Points], Points], targets: Points, start: Points
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, " n"]]:
    """Solves `carry(points) = targets`; returns the points and the remaining errors, both in mm.

    Newton's method from `start`; a step that does not reduce the error is halved. An inverse field is exact at its
    voxels only, and this corrects its error between voxels. An error may remain where the transform folds.
    """
    points = np.array(start, np.float64)
    away, length = carry(points) - targets, np.ones(len(points))
    error = np.linalg.norm(away, axis=1)
    for _ in range(NEWTON):
        if (error <= SOLVED).all():
            break
        slopes = [(carry(points + nudge) - carry(points - nudge)) / (2 * NUDGE) for nudge in NUDGE * np.eye(3)]
        jacobian = np.stack(slopes, axis=-1)
        jacobian[np.linalg.det(jacobian) < SINGULAR] = np.eye(3)
        trial = points - length[:, None] * np.linalg.solve(jacobian, away[..., None])[..., 0]
        trial_away = carry(trial) - targets
        trial_error = np.linalg.norm(trial_away, axis=1)
        better = trial_error < error
        points[better], away[better], error[better] = trial[better], trial_away[better], trial_error[better]
        length = np.where(better, np.minimum(2 * length, 1), length / 2)
    return points, error


def to_fixed(transform: Transform, back: Transform, points: Points) -> Float64[np.ndarray, "n 3"]:
    """Maps points of the moving frame to the fixed frame, in mm: inverts `to_moving`; `back` is the `inverse`."""
    return solve(partial(to_moving, transform), points, to_moving(back, points))[0]


def resampled(transform: Transform, grid: Grid) -> Float32[np.ndarray, "x y z 3"]:
    """The displacement of the transform on another working grid, in voxels of that grid."""
    return _in_voxels(deformation_on(transform, grid), grid)


def sample_field(field: WorldField, grid: Grid, points: Points) -> Float32[np.ndarray, "n 3"]:
    """Samples a field at points in mm, trilinearly; outside its grid, the edge value."""
    return _sample(field, apply_matrix(np.linalg.inv(grid.affine), np.asarray(points, np.float64).T)).T


def resample_field(field: WorldField, grid: Grid, target: Grid) -> Float32[np.ndarray, "x2 y2 z2 3"]:
    """Samples a field at the voxels of another grid, trilinearly; outside its grid, the edge value."""
    look_up = _look_up(field, np.linalg.inv(grid.affine) @ target.affine, target.shape)
    out = np.empty((3, *target.shape), np.float32)

    def fill(slab: slice) -> None:
        out[:, slab] = look_up(slab)

    by_slabs(target.shape, fill)
    return np.moveaxis(out, 0, -1)


def learn2reg_field(transform: Transform, grid: Grid) -> Float32[np.ndarray, "x y z 3"]:
    """The field of the whole transform in voxels of `grid`, which Learn2Reg's evaluator adds to voxel indices.

    `grid` is the grid of the files as stored. The moving image must be on the same grid.
    """
    return _in_voxels(field_on(transform, grid), grid)


def warp_image(
    image: Image, field: WorldField, grid: Grid, *, order: int = 1, outside: float = 0.0
) -> Shaped[np.ndarray, "x y z"]:
    """Warps an image: samples it at x + field(x) for each voxel x of `grid`.

    Edges and rounding are those of ITK's resampling: up to half a voxel beyond the outermost voxel centres the image
    has its edge value, and half-way between two labels the upper voxel's label is used.

    Args:
      image: the volume, in the frame that the field maps to.
      field: displacements in mm on `grid`.
      grid: the grid of the result.
      order: 1 for images (trilinear), 0 for label maps (nearest neighbour).
      outside: the value outside the image.

    Returns:
      The warped volume: float32, or the image's type with order 0.
    """
    if field.shape[:3] != grid.shape:
        raise ValueError(f"a field of {field.shape[:3]} voxels for a grid of {grid.shape}; both must be equal")
    from_mm = np.linalg.inv(image.affine)
    matrix, last = from_mm @ grid.affine, np.reshape(image.shape, (3, 1, 1, 1)) - 1
    warped = np.empty(grid.shape, np.float32 if order else image.data.dtype)

    def fill(slab: slice) -> None:
        index = apply_matrix(matrix, _indices(grid.shape, slab))
        index += np.einsum("ij,xyzj->ixyz", from_mm[:3, :3], field[slab])
        ndimage.map_coordinates(image.data, index, output=warped[slab], order=order, mode="nearest")
        beyond = np.maximum(-index, index - last).max(axis=0)
        warped[slab][beyond > OUTSIDE + ROUNDING] = outside

    by_slabs(grid.shape, fill)
    return warped


def _sample(vectors, index):
    """Samples vectors (x y z 3) at voxel positions (3 ...), trilinearly, as (3 ...); outside, the edge value."""
    return np.stack([ndimage.map_coordinates(vectors[..., c], index, order=1, mode="nearest") for c in range(3)])


def _look_up(vectors: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> Callable[[slice], np.ndarray]:
    """A function that samples the vectors (3 ...) on a slab of a grid of `shape`.

    `matrix` maps voxels of that grid to voxels of the vectors.
    """
    axes = shared_axes(matrix)
    if axes is None:
        return lambda slab: _sample(vectors, apply_matrix(matrix, _indices(shape, slab)))
    return lambda slab: np.moveaxis(sample_along_axes(vectors, matrix, axes, shape, slab, order=1), -1, 0)


def _in_voxels(field, grid):
    """Converts vectors in mm to vectors in voxels of the grid."""
    return field @ np.linalg.inv(grid.affine)[:3, :3].T.astype(np.float32)


def apply_matrix(matrix, points):
    """Applies an affine map to points (3 ...)."""
    turned = (matrix[:3, :3] @ points.reshape(3, -1)).reshape(points.shape)
    return turned + matrix[:3, 3].reshape(3, *[1] * (points.ndim - 1))


def _turned(linear, vectors):
    """Applies a linear map to vectors (3 ...)."""
    return (linear @ vectors.reshape(3, -1)).reshape(vectors.shape)


def _affine(matrix, shape, slab):
    """Applies an affine map to the indices of a slab; returns (3 ...)."""
    axes = np.ogrid[slab, : shape[1], : shape[2]]
    return np.stack(
        [sum(weight * axis for weight, axis in zip(row, axes, strict=False)) + row[3] for row in matrix[:3]]
    )


def _indices(shape: tuple[int, ...], slab: slice) -> Float64[np.ndarray, "3 x y z"]:
    return np.mgrid[slab, : shape[1], : shape[2]].astype(np.float64)
