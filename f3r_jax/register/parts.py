"""Parts that move rigidly or keep their volume: the last correction of a field, and a report per part.

Instance optimisation leaves a small error in each part. Here the part gets its best rigid motion exactly, or is scaled
about its centroid to its volume. The change fades out over `FADE` mm around the part. Letters: x y z voxels of the
working grid, n voxels of a part.
"""

import dataclasses
from collections.abc import Callable
from typing import TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer
from scipy import ndimage

from f3r_jax.common.arrays import Matrix, VoxelField
from f3r_jax.data import resample
from f3r_jax.data.affine.guided import rigid_motion
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.fields import jacobian_determinant
from f3r_jax.register.guidance import parts_of
from f3r_jax.register.scans import Scan

FADE = 12.0  # mm
BORDER = 1.8  # voxels around a part that belong to its interpolation
ROUNDS = 4  # of the volume's correction, which changes the volume by finite differences

Points = Float[np.ndarray, "_n 3"]
Goal = Callable[[Transform, Integer[np.ndarray, "n 3"], Integer[np.ndarray, "_m 3"]], Points]


class PartReport(TypedDict):
    """What became of a part. Volumes are in the fixed scan (before) and of its image in the moving scan (after)."""

    kind: str  # "rigid" | "preserve"
    label: int  # value of the mask
    volume_ml_before: float
    volume_ml_after: float
    jacobian_mean: float
    jacobian_min: float
    jacobian_max: float
    rotation_degrees: float
    translation_mm: float
    residual_mm: float  # of the best rigid motion, mean
    residual_mm_max: float


def corrected(transform: Transform, fixed: Scan) -> Transform:
    """The transform after the last correction of the rigid and the preserved parts of the fixed scan."""
    for mask, goal in ((fixed.rigid, _rigid_goal), (fixed.preserve, _preserved_goal)):
        if mask is None:
            continue
        for _ in range(1 if goal is _rigid_goal else ROUNDS):
            transform = _corrected(transform, resample.resample_labels(parts_of(mask), transform.grid), goal)
    return transform


def _corrected(transform: Transform, index: Integer[np.ndarray, "x y z"], goal: Goal) -> Transform:
    """The transform with the parts moved to their goals, and what surrounds them in part."""
    if not (index > 0).any():  # outside the working grid
        return transform
    grid, edge = transform.grid, float(transform.grid.spacing.min())
    to_moving = transform.matrix @ grid.affine
    away, nearest = ndimage.distance_transform_edt(index == 0, return_indices=True)
    boxes = ndimage.find_objects(index)
    change = np.zeros_like(transform.displacement)
    for part in np.unique(index[index > 0]):
        inside, place = np.argwhere(index == part), boxes[part - 1]
        box = tuple(slice(max(each.start - 3, 0), each.stop + 3) for each in place)
        around = np.zeros(index.shape, bool)
        around[box] = (away[box] <= BORDER) & (index[tuple(nearest[(slice(None), *box)])] == part)
        at = np.argwhere(around)
        before = at + transform.displacement[tuple(at.T)]
        wanted = goal(transform, inside, at)
        change[tuple(at.T)] = _apply(np.linalg.inv(to_moving), wanted) - before
    core = away <= BORDER
    away, nearest = ndimage.distance_transform_edt(~core, return_indices=True)
    fade = 0.5 + 0.5 * np.cos(np.pi * np.clip(away * edge / FADE, 0, 1))
    change = change[tuple(nearest)] * fade[..., None].astype(np.float32)
    return dataclasses.replace(transform, displacement=transform.displacement + change.astype(np.float32))


def _rigid_goal(transform: Transform, inside: Integer[np.ndarray, "n 3"], at: Integer[np.ndarray, "_m 3"]) -> Points:
    """The places of voxels `at` in the moving frame, mm, after the best rigid motion of the voxels `inside`."""
    x, y = _moved(transform, inside)
    return _apply(rigid_motion(x, y), _apply(transform.grid.affine, at))


def _preserved_goal(
    transform: Transform, inside: Integer[np.ndarray, "n 3"], at: Integer[np.ndarray, "_m 3"]
) -> Points:
    """The places of voxels `at` in the moving frame, mm, scaled about the part's centroid to the part's volume."""
    scale = jacobian(transform)[tuple(inside.T)].mean() ** (-1 / 3)
    centre = _moved(transform, inside)[1].mean(axis=0)
    return centre + scale * (_moved(transform, at)[1] - centre)


def report(transform: Transform, fixed: Scan) -> list[PartReport]:
    """One entry per part of the rigid and the preserved mask, on the working grid."""
    entries: list[PartReport] = []
    voxel = float(abs(np.linalg.det(transform.grid.affine[:3, :3]))) / 1000
    determinant = jacobian(transform)
    for kind, mask in (("rigid", fixed.rigid), ("preserve", fixed.preserve)):
        if mask is None:
            continue
        parts = parts_of(mask)
        index = resample.resample_labels(parts, transform.grid)
        for part in np.unique(index[index > 0]):
            inside = np.argwhere(index == part)
            values = determinant[tuple(inside.T)]
            x, y = _moved(transform, inside)
            matrix = rigid_motion(x, y)
            left = np.linalg.norm(_apply(matrix, x) - y, axis=1)
            turn = np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1)))
            entries.append(
                PartReport(
                    kind=kind,
                    label=_value(mask, parts, int(part)),
                    volume_ml_before=len(inside) * voxel,
                    volume_ml_after=float(values.sum()) * voxel,
                    jacobian_mean=float(values.mean()),
                    jacobian_min=float(values.min()),
                    jacobian_max=float(values.max()),
                    rotation_degrees=float(turn),
                    translation_mm=float(np.linalg.norm(y.mean(axis=0) - x.mean(axis=0))),
                    residual_mm=float(left.mean()),
                    residual_mm_max=float(left.max()),
                )
            )
    return entries


def line(entry: PartReport) -> str:
    """The report of a part as text."""
    return (
        f"{entry['kind']} part, label {entry['label']}: volume {entry['volume_ml_before']:.2f} -> "
        f"{entry['volume_ml_after']:.2f} ml, Jacobian {entry['jacobian_mean']:.3f} ({entry['jacobian_min']:.3f} to "
        f"{entry['jacobian_max']:.3f}), turned {entry['rotation_degrees']:.1f} degrees, moved "
        f"{entry['translation_mm']:.1f} mm, residual {entry['residual_mm']:.2f} mm (at most "
        f"{entry['residual_mm_max']:.2f})"
    )


def jacobian(transform: Transform) -> Float[np.ndarray, "x y z"]:
    """The Jacobian determinant of the whole transform, matrix included."""
    scale = abs(np.linalg.det(transform.matrix[:3, :3]))
    return np.asarray(jacobian_determinant(jnp.asarray(transform.displacement)[None]))[0] * scale


def _value(mask: Image, parts: Image, part: int) -> int:
    return int(mask.data[parts.data == part][0])


def _moved(transform: Transform, voxels: Integer[np.ndarray, "n 3"]) -> tuple[Points, Points]:
    """The places of voxels in the fixed and in the moving frame, in mm."""
    u: VoxelField = transform.displacement
    grid: Grid = transform.grid
    matrix: Matrix = transform.matrix @ grid.affine
    return _apply(grid.affine, voxels), _apply(matrix, voxels + u[tuple(voxels.T)])


def _apply(matrix: Matrix, points: np.ndarray) -> Points:
    return points @ matrix[:3, :3].T + matrix[:3, 3]
