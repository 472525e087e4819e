"""Resampling of images, labels and points from a file's grid to the working grid."""

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy import ndimage

from f3r_jax.common.arrays import Numbers
from f3r_jax.data.nifti import Grid, Image

FWHM = 2.3548  # full width at half maximum of a Gaussian of standard deviation 1
TRUNCATE = 4.0  # standard deviations, where the Gaussian ends

VOXELS = 2**19  # per slab at most: less than 0.1 GB of coordinates for any grid
THREADS = min(os.cpu_count() or 1, 8)  # SciPy releases Python's lock while sampling; eight slabs need less than 1 GB
SAME = 1e-9  # voxels: the identity but for rounding
PARALLEL = 1e-9  # relative to the largest entry of a matrix: smaller entries are rounding errors of zero

OVERLAP_POINTS = 24  # points per axis for the test whether two fields of view overlap


def working_grid(fixed: Grid, *, shape: Sequence[int], spacing: Numbers) -> Grid:
    """The grid of `shape` and `spacing` (mm) along the fixed image's axes, centred in its field of view."""
    linear = fixed.affine[:3, :3] / fixed.spacing * np.asarray(spacing, np.float64)
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = _centre(fixed) - linear @ ((np.asarray(shape) - 1) / 2)
    x, y, z = (int(size) for size in shape)
    return Grid((x, y, z), affine, fixed.path)


def moving_affine(working: Grid, matrix: np.ndarray) -> np.ndarray:
    """The matrix from working voxels to mm in the moving frame; `matrix` maps mm of the fixed frame to it."""
    return matrix @ working.affine


def translation(shift: Numbers) -> np.ndarray:
    """The 4 x 4 matrix of a shift in mm."""
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix


def resample(image: Image, grid: Grid) -> Float[np.ndarray, "x y z"]:
    """Samples the image at the voxels of `grid`, which is in the image's frame, trilinearly; 0 outside.

    If the grid is coarser than the image, the image is first smoothed by a Gaussian to avoid aliasing. Its width is the
    difference between the point spread functions of the two voxels, both Gaussians whose full width at half maximum is
    the voxel size (Cardoso et al., MICCAI 2015: "Scale factor point spread function matching").
    """
    step = np.linalg.norm((np.linalg.inv(image.affine) @ grid.affine)[:3, :3], axis=1)  # image voxels per grid voxel
    sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / FWHM
    if sigma.max() <= 0.05:
        return _sample(image.data, image, grid, order=1)
    part = _around(image, grid, np.ceil(TRUNCATE * sigma) + 2)
    return _sample(smoothed(part.data, sigma), part, grid, order=1)


def smoothed(data: Float[np.ndarray, "x y z"], sigma: Numbers) -> Float[np.ndarray, "x y z"]:
    """SciPy's Gaussian filter of standard deviations `sigma` (voxels), with edge values outside, in several threads."""
    for axis, width in enumerate(map(float, sigma)):
        if width > 0:
            data = _smoothed_along(data, width, axis)
    return data


def _smoothed_along(data: np.ndarray, width: float, axis: int) -> np.ndarray:
    out, across = np.empty(data.shape, data.dtype), 1 if axis == 0 else 0
    before = (slice(None),) * across

    def fill(slab: slice) -> None:
        part = (*before, slab)
        ndimage.gaussian_filter1d(data[part], width, axis, output=out[part], mode="nearest", truncate=TRUNCATE)

    size = data.shape[across]
    by_slabs((size, *data.shape[:across], *data.shape[across + 1 :]), fill)
    return out


def _around(image: Image, grid: Grid, margin: np.ndarray) -> Image:
    """The part of an image that a grid in its frame covers, and `margin` voxels around it."""
    ends = np.array(list(itertools.product(*((0, size - 1) for size in grid.shape))), float)
    there = to_voxels(ends @ grid.affine[:3, :3].T + grid.affine[:3, 3], image.affine)
    size = np.array(image.shape)
    low = np.clip(np.floor(there.min(axis=0) - margin).astype(int), 0, size - 1)
    high = np.clip(np.ceil(there.max(axis=0) + margin).astype(int) + 1, low + 1, size)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ low
    x, y, z = (slice(a, b) for a, b in zip(low, high, strict=True))
    return Image(image.data[x, y, z], affine, image.path)


def field_of_view(image: Grid, grid: Grid) -> Bool[np.ndarray, "x y z"]:
    """Mask of the voxels of `grid`, which is in the image's frame, inside the image's field of view."""
    matrix = np.linalg.inv(image.affine) @ grid.affine
    axes = np.ogrid[tuple(slice(size) for size in grid.shape)]
    inside = np.ones(grid.shape, bool)
    for row, size in zip(matrix[:3], image.shape, strict=True):
        index = sum(weight * axis for weight, axis in zip(row[:3], axes, strict=True)) + row[3]
        inside &= (index >= -0.5 - 1e-6) & (index <= size - 0.5 + 1e-6)
    return inside


def resample_labels(labels: Image, grid: Grid) -> Shaped[np.ndarray, "x y z"]:
    """Samples a label map at the voxels of `grid` by nearest-neighbour interpolation; 0 outside."""
    return _sample(labels.data, labels, grid, order=0)


def has_overlap(fixed: Grid, moving: Grid, matrix: np.ndarray | None = None) -> bool:
    """Whether two fields of view overlap by more than a 48th of a width.

    Both are in one frame, or `matrix` maps the fixed frame to the moving frame.
    """
    to_moving = np.linalg.inv(moving.affine) @ moving_affine(fixed, np.eye(4) if matrix is None else matrix)
    return _reaches(fixed, moving, to_moving) or _reaches(moving, fixed, np.linalg.inv(to_moving))


def to_voxels(points: Float[np.ndarray, "n 3"], affine: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Converts points in mm to (fractional) voxel indices of the grid with that affine."""
    inverse = np.linalg.inv(affine)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def _sample(data: np.ndarray, image: Image, grid: Grid, *, order: int) -> np.ndarray:
    matrix = np.linalg.inv(image.affine) @ grid.affine
    if grid.shape == image.shape and np.abs(matrix - np.eye(4)).max() < SAME:
        return np.array(data, order="C")
    # Files are stored with x as the fastest axis. Slabs along x of such an array took sixty times as long.
    data, sampled = np.ascontiguousarray(data), np.empty(grid.shape, data.dtype)
    axes = shared_axes(matrix)

    # SciPy's constant mode treats a centre that rounding puts 1e-15 beyond the last voxel as outside: extend, then cut.
    def fill(slab: slice) -> None:
        if axes is not None:
            sampled[slab] = sample_along_axes(data, matrix, axes, grid.shape, slab, order=order)
            return
        offset = matrix[:3, 3] + slab.start * matrix[:3, 0]
        ndimage.affine_transform(data, matrix[:3, :3], offset, output=sampled[slab], order=order, mode="nearest")

    by_slabs(grid.shape, fill)
    sampled[~field_of_view(image.grid, grid)] = 0
    return sampled


def _centre(grid: Grid) -> np.ndarray:
    """Centre of the field of view in mm."""
    return grid.affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2) + grid.affine[:3, 3]


def _reaches(source: Grid, target: Grid, matrix: np.ndarray) -> bool:
    """Whether `matrix` maps any of the regular points in the source's field of view into the target's."""
    ticks = [(np.arange(OVERLAP_POINTS) + 0.5) / OVERLAP_POINTS * size - 0.5 for size in source.shape]
    points = np.stack(np.meshgrid(*ticks, indexing="ij"), axis=-1).reshape(-1, 3) @ matrix[:3, :3].T + matrix[:3, 3]
    return bool(((points >= -0.5) & (points <= np.asarray(target.shape) - 0.5)).all(axis=1).any())


def by_slabs(shape: tuple[int, ...], fill: Callable[[slice], None]) -> None:
    """Calls `fill` in several threads with slices that cover the first axis of a grid, at least one plane each."""
    planes = max(1, VOXELS // (shape[1] * shape[2]))
    slabs = [slice(start, min(start + planes, shape[0])) for start in range(0, shape[0], planes)]
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(fill, slabs))


def shared_axes(matrix: np.ndarray) -> tuple[int, ...] | None:
    """For each axis of a volume the parallel axis of a grid; `matrix` maps grid voxels to volume voxels.

    Returns None if the axes are not parallel.
    """
    linear = np.abs(matrix[:3, :3])
    along = linear > PARALLEL * linear.max()
    if (along.sum(axis=0) == 1).all() and (along.sum(axis=1) == 1).all():
        return tuple(int(axis) for axis in along.argmax(axis=1))
    return None


def sample_along_axes(
    volume: np.ndarray, matrix: np.ndarray, axes: tuple[int, ...], shape: tuple[int, ...], slab: slice, *, order: int
) -> np.ndarray:
    """Samples a slab of a grid from a volume (x y z ...), one axis after the other; outside, the edge value.

    The result is that of SciPy's general interpolation, in a fifth of its time.

    Args:
      volume: floats; any type with order 0.
      matrix: maps voxels of the grid to voxels of the volume.
      axes: the result of `shared_axes`.
      shape: of the whole grid.
      slab: the slice of the grid's first axis.
      order: 1 for trilinear, 0 for the nearest voxel; half-way between two, the upper one.
    """
    ranges = [np.arange(size)[slab if axis == 0 else slice(None)] for axis, size in enumerate(shape)]
    # The axis of the slab comes first, which leaves the least to sample.
    for axis in sorted(range(3), key=lambda axis: axes[axis] != 0):
        last = volume.shape[axis] - 1
        position = np.clip(matrix[axis, axes[axis]] * ranges[axes[axis]] + matrix[axis, 3], 0, last)
        if order == 0:
            volume = volume.take(np.floor(position + 0.5).astype(int), axis)
            continue
        lower = np.minimum(position.astype(int), max(last - 1, 0))
        fraction = (position - lower).astype(volume.dtype).reshape([-1 if a == axis else 1 for a in range(volume.ndim)])
        start = volume.take(lower, axis)
        volume = start + fraction * (volume.take(np.minimum(lower + 1, last), axis) - start)
    return volume.transpose(*np.argsort(axes), *range(3, volume.ndim))
