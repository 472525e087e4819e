"""Coarse copies of two scans, along the axes of the patient, and how badly they match.

All grids are along the axes of the world frame (RAS+), with voxels of `SPACING` mm, so no scan is turned against
another. A voxel is `seen` where the scan shows it and the user's mask includes it.

The mismatch of two coarse scans is the mean over the union of both bodies, where both scans are seen, of

    |f - m|^2   where both are body: f and m are the descriptors MIND, and the square is averaged over the channels
    PENALTY     where only one of them is body

So air that agrees with air is no evidence, and a body that moves out of the other one costs something.
Letters: x y z voxels, k channels.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32
from scipy import ndimage

from f3r_jax.common.arrays import Mask
from f3r_jax.data import preprocess
from f3r_jax.data.affine import grids
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.ops.mind import mind

SPACING = 6.0  # mm
BINS = 32  # of the joint histogram, along each axis
PRESET = "mind_ssc_near"
# A little less than the mean of |f - m|^2 for places that have nothing in common, 0.17. With 0.08 the bodies are pushed
# apart; 0.15 and 0.25 give the same result on most pairs.
PENALTY = 0.15


@dataclasses.dataclass(frozen=True)
class CoarseScan:
    """A scan on a coarse grid."""

    intensities: Float32[np.ndarray, "x y z"]  # in [0, 1]; edge values where the scan ends
    body: Bool[np.ndarray, "x y z"]  # seen voxels inside the body
    seen: Bool[np.ndarray, "x y z"]
    grid: Grid

    @functools.cached_property
    def descriptors(self) -> Float32[np.ndarray, "x y z k"]:
        """MIND of the intensities. It is kept, because every candidate of a search is compared with it."""
        return descriptors(self.intensities)


def coarse_scan(image: Image, normalised: Image, modality: str, mask: Mask | None = None) -> CoarseScan:
    """A coarse copy of a scan.

    Args:
      image: the scan as stored, HU for CT.
      normalised: the same with intensities in [0, 1].
      modality: "ct" or "mr".
      mask: mask of the voxels to compare, on the scan's grid.

    Raises:
      UserError: the mask is empty.
    """
    grid = _covering(image.grid)
    size, affine = np.array(grid.shape), grid.affine
    shown_image = preprocess.full_range(image, normalised, modality)
    raw = dataclasses.replace(image, data=np.maximum(image.data, -1024)) if modality == "ct" else image
    shown, seen = grids.sample(grids.reduce(shown_image, mask, spacing=SPACING / 2), size, affine)
    stored, inside = grids.sample(grids.reduce(raw, None, spacing=SPACING / 2), size, affine)
    body = body_of(np.where(inside > 0, stored, stored.min()), modality)
    return CoarseScan(shown.astype(np.float32), body & (seen > 0), seen > 0, grid)


def body_of(data: Float32[np.ndarray, "x y z"], modality: str) -> Bool[np.ndarray, "x y z"]:
    """The body in a coarse volume (`preprocess.body_mask`); all voxels of a constant one."""
    if data.min() == data.max():
        return np.ones(data.shape, bool)
    return preprocess.body_mask(Image(data, np.diag([SPACING, SPACING, SPACING, 1.0])), modality)


def descriptors(intensities: Float32[np.ndarray, "x y z"]) -> Float32[np.ndarray, "x y z k"]:
    """MIND of a coarse volume."""
    return np.asarray(mind(jnp.asarray(intensities)[None, ..., None], preset=PRESET)[0])


def mismatch(fixed: CoarseScan, moved: CoarseScan, seen_before: Mask | None = None) -> float:
    """The mismatch of two scans on the same grid, as the module defines it; infinite without shared body.

    Fixed body that the moving scan showed in `seen_before` and does not show now counts as not matched.
    """
    both = fixed.body & moved.body
    one = (fixed.body ^ moved.body) & fixed.seen & moved.seen
    if seen_before is not None:
        one |= fixed.body & seen_before & ~moved.seen
    if not both.any():
        return float("inf")
    squares = ((fixed.descriptors[both] - moved.descriptors[both]) ** 2).mean(axis=-1)
    return float((squares.sum() + PENALTY * one.sum()) / (both.sum() + one.sum()))


def moved_by(moving: CoarseScan, matrix: np.ndarray, grid: Grid) -> CoarseScan:
    """The moving scan on a grid of the fixed frame, through `matrix`, from mm of the fixed frame to its own."""
    inward = np.linalg.inv(moving.grid.affine) @ matrix @ grid.affine

    def sampled(data: np.ndarray, mode: str) -> np.ndarray:
        volume = data.astype(np.float32)
        return ndimage.affine_transform(volume, inward[:3, :3], inward[:3, 3], grid.shape, order=1, mode=mode)

    seen = sampled(moving.seen, "constant") > 0.5
    return CoarseScan(
        sampled(moving.intensities, "nearest"), (sampled(moving.body, "nearest") > 0.5) & seen, seen, grid
    )


def widened(scan: CoarseScan, margin: int, multiple: int) -> CoarseScan:
    """The same scan on a grid that is wider by `margin` voxels on each side; its sizes are multiples of `multiple`."""
    widths = [(margin, margin + -(size + 2 * margin) % multiple) for size in scan.body.shape]
    affine = scan.grid.affine.copy()
    affine[:3, 3] -= margin * SPACING
    intensities = np.pad(scan.intensities, widths, mode="edge")
    x, y, z = intensities.shape
    return CoarseScan(intensities, np.pad(scan.body, widths), np.pad(scan.seen, widths), Grid((x, y, z), affine))


def _covering(grid: Grid) -> Grid:
    """The coarse grid over the field of view of a scan; its sizes are rounded up as in `grids`."""
    ends = [(-0.5, size - 0.5) for size in grid.shape]
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    corners = corners @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = grids.MULTIPLE * np.ceil((high - low) / SPACING / grids.MULTIPLE - 1e-6).astype(int)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = (low + high) / 2 - SPACING * (size - 1) / 2
    x, y, z = map(int, size)
    return Grid((x, y, z), affine, grid.path)


def mutual_information(fixed: CoarseScan, moved: CoarseScan) -> float:
    """Normalised mutual information (Studholme et al., 1999) inside both bodies: 1 for independent intensities, to 2.

    It is 1 where no voxel is inside both bodies.
    """
    both = fixed.body & moved.body
    if not both.any():
        return 1.0
    counts = np.histogram2d(fixed.intensities[both], moved.intensities[both], BINS)[0]
    joint = counts / counts.sum()
    alone, together = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1)), _entropy(joint.ravel())
    return alone / together if together > 0 else 1.0


def _entropy(probabilities: np.ndarray) -> float:
    known = probabilities[probabilities > 0]
    return float(-np.sum(known * np.log(known)))
