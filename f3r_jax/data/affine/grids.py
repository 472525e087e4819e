"""Reduced scans and grids along the fixed scan's axes, for affine registration.

Local coordinates are mm along the fixed scan's axes, from the centre of its field of view. Sizes are rounded, so that
scans of similar size share compiled functions. Letters: x y z voxels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Integer
from scipy import ndimage

from f3r_jax.common.arrays import Mask, Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.data import preprocess, resample
from f3r_jax.data.nifti import Grid, Image

MULTIPLE = 8  # voxels, sizes are rounded up to multiples of it
DEPTH = 30.0  # mm below the body's surface, from where on a point has full weight


class ReducedScan(NamedTuple):
    """A reduced scan and its mask `seen`: the fraction of mask voxels in each reduced voxel, 1 without a mask."""

    image: Image
    seen: Image


class Frame(NamedTuple):
    """The frame of local coordinates."""

    to_world: Matrix  # local coordinates to mm of the fixed frame
    half: Float64[np.ndarray, "3"]  # half the extent of the fixed field of view, mm
    radius: float  # mm, a typical distance from the centre


def reduce(image: Image, mask: Mask | None, *, spacing: float) -> ReducedScan:
    """Averages a scan over blocks of whole voxels, at most `spacing` mm wide; raises a UserError for an empty mask."""
    if mask is not None and not mask.any():
        raise UserError(f"{image.path}: its mask is empty; expected values above 0 at the voxels to compare")
    block = np.clip(np.floor(spacing / image.spacing + 1e-6), 1, image.shape).astype(int)
    affine = image.affine @ np.diag([*block, 1.0])
    affine[:3, 3] += image.affine[:3, :3] @ ((block - 1) / 2)
    whole = tuple(slice(size // n * n) for size, n in zip(image.shape, block, strict=True))
    parts = np.stack([np.array(image.shape) // block, block], axis=1).ravel()

    def means(data: np.ndarray) -> np.ndarray:
        return data[whole].reshape(parts).mean(axis=(1, 3, 5), dtype=np.float32)

    reduced = means(image.data)
    seen = np.ones_like(reduced) if mask is None else means(mask)
    return ReducedScan(*(Image(data, affine, image.path) for data in (reduced, seen)))


def frame_of(fixed: Image) -> Frame:
    """The local frame of a fixed scan. Its axes are the nearest orthonormal ones, as a header may contain shears."""
    u, _, v = np.linalg.svd(fixed.affine[:3, :3] / fixed.spacing)
    corners = _corners(fixed)
    to_world = np.eye(4)
    to_world[:3, :3], to_world[:3, 3] = u @ v, corners.mean(axis=0)
    half = np.abs((corners - to_world[:3, 3]) @ to_world[:3, :3]).max(axis=0)
    return Frame(to_world, half, float(np.linalg.norm(half) / np.sqrt(3)))


def height(image: Image, frame: Frame) -> float:
    """Extent of a scan in mm along the fixed scan's third axis, as if it were in the fixed scan's frame."""
    return float(np.ptp(_corners(image) @ frame.to_world[:3, 2]))


def grid_size(frame: Frame, spacing: float) -> Integer[np.ndarray, "3"]:
    """Size in voxels of the grid that covers the fixed field of view."""
    return MULTIPLE * np.ceil(2 * frame.half / spacing / MULTIPLE - 1e-6).astype(int)


def voxels_to_local(size: Integer[np.ndarray, "3"], spacing: float) -> Matrix:
    """The matrix from the voxels of a centred grid to local coordinates."""
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = -spacing * (size - 1) / 2
    return matrix


def sample(
    scan: ReducedScan, size: Integer[np.ndarray, "3"], matrix: Matrix
) -> tuple[Float32[np.ndarray, "x y z"], Float32[np.ndarray, "x y z"]]:
    """Samples a scan on a grid: intensities, with edge values outside the field of view, and a mask of 0 and 1.

    `matrix` maps the grid's voxels to mm of the scan's frame.
    """
    x, y, z = map(int, size)
    inward = np.linalg.inv(scan.image.affine) @ matrix
    smoothed = _smoothed(scan.image, float(np.linalg.norm(matrix[:3, 0])))
    data = ndimage.affine_transform(smoothed, inward[:3, :3], inward[:3, 3], (x, y, z), order=1, mode="nearest")
    return data, (resample.resample(scan.seen, Grid((x, y, z), matrix)) > 0.5).astype(np.float32)


def interior(data: Float32[np.ndarray, "x y z"], spacing: float) -> Float32[np.ndarray, "x y z"]:
    """Weights that rise from 0 at the body's surface to 1 at `DEPTH` mm, as fat and skin do not guide the organs."""
    bright = data > preprocess.otsu(data)
    if not bright.any() or (body := preprocess.largest_body(bright)).all():
        return np.ones_like(data)
    return np.minimum(ndimage.distance_transform_edt(body, spacing) / DEPTH, 1).astype(np.float32)


def stack(scan: ReducedScan, spacing: float) -> tuple[Float32[np.ndarray, "x y z 2"], Matrix]:
    """Stacks the intensities, smoothed as in `sample`, and the mask; also returns the matrix from mm to their voxels.

    Both are padded by at least one voxel on every side, where the mask is 0.
    """
    data = _smoothed(scan.image, spacing)
    widths = [(1, 1 + -(size + 2) % MULTIPLE) for size in data.shape]
    to_voxels = np.linalg.inv(scan.image.affine)
    to_voxels[:3, 3] += 1
    return np.stack([np.pad(data, widths, mode="edge"), np.pad(scan.seen.data, widths)], axis=-1), to_voxels


def _smoothed(image: Image, spacing: float) -> Float32[np.ndarray, "x y z"]:
    """Smooths by a Gaussian whose full width at half maximum is `spacing`, whatever the voxel size of the scan.

    This avoids aliasing. It also hides the blur of interpolation, which vanishes where the voxels of both scans
    coincide and would attract the fit there. Without it, copies of 5 mm ended with an error of 1.2 mm.
    """
    return resample.smoothed(image.data, spacing / image.spacing / resample.FWHM)


def _corners(image: Image) -> Float64[np.ndarray, "8 3"]:
    """Corners of the field of view, mm."""
    ends = [(-0.5, size - 0.5) for size in image.shape]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]
