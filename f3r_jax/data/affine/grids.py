"""Scans as an affine registration sees them: reduced, and on lattices along the fixed scan's axes.

Local coordinates are mm along the fixed scan's axes about the centre of its field of view. Sizes are rounded, so that
scans of like size share compiled programs. Letters: x y z voxels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Integer
from scipy import ndimage

from f3r_jax.common.arrays import Mask, Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.data import preprocess, resample
from f3r_jax.data.nifti import Grid, Image

MULTIPLE = 8  # voxels that sizes are rounded to
DEPTH = 30.0  # mm below the body's surface at which a point counts in full


class ReducedScan(NamedTuple):
    """A reduced scan, and where it is seen: its field of view, or the part of a mask's voxels in one of its own."""

    image: Image
    seen: Image


class Frame(NamedTuple):
    """Local coordinates."""

    to_world: Matrix  # to mm of the fixed frame
    half: Float64[np.ndarray, "3"]  # extent of the fixed field of view, mm
    radius: float  # mm, a typical distance from the centre


def reduce(image: Image, mask: Mask | None, *, spacing: float) -> ReducedScan:
    """Means over blocks of whole voxels no wider than `spacing` mm; UserError for an empty mask."""
    if mask is not None and not mask.any():
        raise UserError(f"{image.path}: its mask is empty; expected voxels where the scans may be compared")
    seen = np.ones(image.shape, np.float32) if mask is None else mask.astype(np.float32)
    block = np.clip(np.floor(spacing / image.spacing + 1e-6), 1, image.shape).astype(int)
    affine = image.affine @ np.diag([*block, 1.0])
    affine[:3, 3] += image.affine[:3, :3] @ ((block - 1) / 2)
    whole = tuple(slice(size // n * n) for size, n in zip(image.shape, block, strict=True))
    parts = np.stack([np.array(image.shape) // block, block], axis=1).ravel()
    means = (data[whole].reshape(parts).mean(axis=(1, 3, 5), dtype=np.float32) for data in (image.data, seen))
    return ReducedScan(*(Image(data, affine, image.path) for data in means))


def frame_of(fixed: Image) -> Frame:
    """Axes are the nearest orthonormal ones, so that a rotation is one in mm even where a header shears."""
    u, _, v = np.linalg.svd(fixed.affine[:3, :3] / fixed.spacing)
    corners = _corners(fixed)
    to_world = np.eye(4)
    to_world[:3, :3], to_world[:3, 3] = u @ v, corners.mean(axis=0)
    half = np.abs((corners - to_world[:3, 3]) @ to_world[:3, :3]).max(axis=0)
    return Frame(to_world, half, float(np.linalg.norm(half) / np.sqrt(3)))


def height(image: Image, frame: Frame) -> float:
    """Extent in mm along the fixed scan's third axis; of a moving scan as if its axes were the fixed one's."""
    return float(np.ptp(_corners(image) @ frame.to_world[:3, 2]))


def lattice_size(frame: Frame, spacing: float) -> Integer[np.ndarray, "3"]:
    """Voxels along the axes that hold the fixed field of view."""
    return MULTIPLE * np.ceil(2 * frame.half / spacing / MULTIPLE - 1e-6).astype(int)


def lattice(size: Integer[np.ndarray, "3"], spacing: float) -> Matrix:
    """Voxels of a lattice about the centre to local coordinates."""
    matrix = np.diag([spacing, spacing, spacing, 1.0])
    matrix[:3, 3] = -spacing * (size - 1) / 2
    return matrix


def sample(
    scan: ReducedScan, size: Integer[np.ndarray, "3"], matrix: Matrix
) -> tuple[Float32[np.ndarray, "x y z"], Float32[np.ndarray, "x y z"]]:
    """Intensities on a lattice, beyond the field of view the edge's, and 1 where the scan is seen.

    `matrix` takes the lattice's voxels to mm of the scan's frame.
    """
    shape = tuple(map(int, size))
    inward = np.linalg.inv(scan.image.affine) @ matrix
    smoothed = _smoothed(scan.image, float(np.linalg.norm(matrix[:3, 0])))
    data = ndimage.affine_transform(smoothed, inward[:3, :3], inward[:3, 3], shape, order=1, mode="nearest")
    return data, np.float32(resample.resample(scan.seen, Grid(shape, matrix)) > 0.5)


def interior(data: Float32[np.ndarray, "x y z"], spacing: float) -> Float32[np.ndarray, "x y z"]:
    """0 outside the body, 1 from `DEPTH` mm below its surface on: fat and skin are no guide to the organs."""
    body = preprocess.body_mask(Image(data, np.diag([spacing, spacing, spacing, 1.0])), "mr")
    if body.all():
        return np.ones_like(data)
    return np.float32(np.minimum(ndimage.distance_transform_edt(body, spacing) / DEPTH, 1))


def stack(scan: ReducedScan, spacing: float) -> tuple[Float32[np.ndarray, "x y z 2"], Matrix]:
    """Intensities, smoothed as `sample` smooths, and where they are seen; and mm to their voxels.

    Padded by a voxel or more on every side, which counts as not seen.
    """
    data = _smoothed(scan.image, spacing)
    widths = [(1, 1 + -(size + 2) % MULTIPLE) for size in data.shape]
    to_voxels = np.linalg.inv(scan.image.affine)
    to_voxels[:3, 3] += 1
    return np.stack([np.pad(data, widths, mode="edge"), np.pad(scan.seen.data, widths)], axis=-1), to_voxels


def _smoothed(image: Image, spacing: float) -> Float32[np.ndarray, "x y z"]:
    """By a Gaussian as wide at half height as a voxel of the lattice, however fine the scan is.

    Against aliasing, and against the blur of interpolation, which is none where voxels meet voxels and would draw the
    map there: 5 mm copies ended 1.2 mm off without.
    """
    return ndimage.gaussian_filter(image.data, spacing / image.spacing / resample.FWHM, mode="nearest")


def _corners(image: Image) -> Float64[np.ndarray, "8 3"]:
    """Of the field of view, mm."""
    ends = [(-0.5, size - 0.5) for size in image.shape]
    index = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    return index @ image.affine[:3, :3].T + image.affine[:3, 3]
