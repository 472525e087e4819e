"""Scores of a registration in NumPy and SciPy: overlap, surface distance and regularity, from label maps and fields.

Letters: x y z voxels of the fixed grid, n landmarks. Overlap is in percent, distance in mm.

A surface is the set of voxels of a mask that have one of their 6 face neighbours outside it. Everything beyond the
volume counts as outside. So an organ cut by the field of view has a surface there, as in MONAI and DeepMind's
surface-distance (SimpleITK's contour filters leave it out). Distances are between voxel centres, and each voxel has
weight one, as in MONAI (DeepMind's weights by area).

An organ that neither label map has is no observation: its scores are NaN and `summarise` leaves them out. An organ that
only one of them has is lost: Dice 0 and infinite distance. `summarise` keeps these, so the mean is infinite too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Real
from scipy.ndimage import map_coordinates
from scipy.spatial import KDTree

from f3r_jax.common.arrays import LabelMap, Mask, Spacing, VoxelField

SMALLEST_DETERMINANT = 1e-9  # lower bound before the logarithm, as in Learn2Reg


def dice(a: Mask, b: Mask) -> float:
    """Dice overlap of two masks in percent; NaN when both are empty."""
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return float(200.0 * np.count_nonzero(a & b) / total) if total else float("nan")


def surface_distances(a: Mask, b: Mask, spacing: Spacing) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm from each surface voxel of `a` to the surface of `b`, and from each of `b` to that of `a`.

    If one mask is empty, the other's distances are infinite.
    """
    points_a, points_b = _surface_points(a, spacing), _surface_points(b, spacing)
    return _nearest(points_a, points_b), _nearest(points_b, points_a)


def average_surface_distance(a: Mask, b: Mask, spacing: Spacing) -> float:
    """Average symmetric surface distance in mm: the mean over the surface voxels of both masks, pooled.

    The paper gives no formula. Pooling (Heimann et al., IEEE TMI 2009, and MONAI) weights all surface voxels equally.
    With the mean of two directed means, a fragment would count as much as a whole organ.
    """
    return _average(surface_distances(a, b, spacing))


def hd95(a: Mask, b: Mask, spacing: Spacing) -> float:
    """95 % Hausdorff distance in mm: the larger of the two directed 95th percentiles."""
    return _hd95(surface_distances(a, b, spacing))


def organ_scores(
    fixed_labels: LabelMap, warped_labels: LabelMap, *, organs: Mapping[str, Sequence[int]], spacing: Spacing
) -> dict[str, dict[str, float]]:
    """Scores of each organ, {name: {"dice", "asd_mm", "hd95_mm"}}; an organ is the union of its label values."""
    scores = {}
    for name, values in organs.items():
        fixed, warped = _cut(np.isin(fixed_labels, values), np.isin(warped_labels, values))
        distances = surface_distances(fixed, warped, spacing)
        scores[name] = {"dice": dice(fixed, warped), "asd_mm": _average(distances), "hd95_mm": _hd95(distances)}
    return scores


def _cut(a: Mask, b: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Both masks in the smallest box that contains both, with the voxels around it that there are."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(a.any(axis=others) | b.any(axis=others))
        box.append(slice(max(found[0] - 1, 0), found[-1] + 2) if len(found) else slice(0, 1))
    return a[tuple(box)], b[tuple(box)]


def jacobian_determinant(displacement: VoxelField) -> Float[np.ndarray, "x y z"]:
    """Determinant of d phi / dp by central differences, one-sided at the border, in float64.

    It is 1 where volume is preserved and at most 0 where the map folds. It is the same in voxels and in mm.
    """
    u = displacement.astype(np.float64)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (np.gradient(u[..., component]) for component in range(3))
    xx, yy, zz = xx + 1, yy + 1, zz + 1
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)


def folding_percent(displacement: VoxelField) -> float:
    """Percent of all voxels where the Jacobian determinant is at most zero."""
    return 100.0 * float(np.mean(jacobian_determinant(displacement) <= 0))


def sd_log_jacobian(displacement: VoxelField) -> float:
    """Standard deviation over all voxels of the log of the Jacobian determinant, clipped from below at 1e-9."""
    return float(np.std(np.log(np.maximum(jacobian_determinant(displacement), SMALLEST_DETERMINANT))))


def end_point_error_mm(
    displacement: VoxelField, truth: VoxelField, spacing: Spacing, mask: Mask | None = None
) -> float:
    """Mean distance in mm between two fields, over all voxels or over `mask`; NaN for an empty mask."""
    error = np.linalg.norm((displacement.astype(np.float64) - truth) * np.asarray(spacing), axis=-1)
    error = error if mask is None else error[mask]
    return float(error.mean()) if error.size else float("nan")


def target_registration_error(
    fixed_points: Real[np.ndarray, "n 3"],
    moving_points: Real[np.ndarray, "n 3"],
    displacement: VoxelField,
    *,
    affine: Real[np.ndarray, "4 4"],
) -> Float[np.ndarray, "n"]:  # noqa: F821
    """Distance in mm between each fixed landmark, mapped by phi, and its moving landmark.

    Points are in mm of the world frame to which `affine` maps the fixed grid's voxels. The moving volume is in the same
    frame. The field is interpolated linearly, and beyond the grid its edge value is used.
    """
    voxels = (fixed_points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    shifts = [map_coordinates(displacement[..., axis], voxels.T, np.float64, 1, "nearest") for axis in range(3)]
    mapped = (voxels + np.stack(shifts, axis=-1)) @ affine[:3, :3].T + affine[:3, 3]
    return np.linalg.norm(mapped - moving_points, axis=-1)


@dataclass(frozen=True)
class Statistics:
    """Mean, standard deviation and number of the known values."""

    mean: float
    std: float
    count: int


def summarise(values: Sequence[float]) -> Statistics:
    """Statistics of a score over cases.

    NaN is left out and not counted. The deviation is the sample's (n - 1), and 0 for one case. Without cases both are
    NaN. With an infinite value the mean is infinite and the deviation NaN.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return Statistics(float("nan"), float("nan"), 0)
    finite = bool(np.isfinite(known).all())
    std = np.std(known, ddof=min(1, known.size - 1)) if finite else float("nan")
    return Statistics(float(known.mean()), float(std), known.size)


def _surface_points(mask: Mask, spacing: Spacing) -> np.ndarray:
    """Centres in mm of the surface voxels of a mask, (points, 3)."""
    if not mask.any():
        return np.empty((0, 3))
    # Cropped to the organ: most of a volume is background, and the six comparisons below read every voxel.
    kept = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    box = tuple(slice(indices[0], indices[-1] + 1) for indices in kept)
    padded = np.pad(mask[box], 1)
    interior = padded.copy()
    for axis in range(3):
        interior &= np.roll(padded, 1, axis) & np.roll(padded, -1, axis)
    corner = np.array([part.start for part in box]) - 1
    return (np.argwhere(padded & ~interior) + corner) * np.asarray(spacing, np.float64)


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Distance from each point to the nearest of the others; infinite if there are none."""
    # A k-d tree of surface voxels is exact, and several times faster than distance transforms of the volume.
    return KDTree(others).query(points)[0] if len(others) and len(points) else np.full(len(points), np.inf)


def _average(distances: tuple[np.ndarray, np.ndarray]) -> float:
    pooled = np.concatenate(distances)
    return float(pooled.mean()) if pooled.size else float("nan")


def _hd95(distances: tuple[np.ndarray, np.ndarray]) -> float:
    # If one mask is empty, only the other has distances, all infinite.
    percentiles = [_percentile95(directed) for directed in distances if directed.size]
    return max(percentiles, default=float("nan"))


def _percentile95(distances: np.ndarray) -> float:
    # Interpolating between infinities would give NaN.
    return float(np.percentile(distances, 95)) if np.isfinite(distances).all() else float("inf")
