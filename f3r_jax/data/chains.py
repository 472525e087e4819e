"""Chains of maps between frames, and the warp of volumes and series through them.

A chain maps a point of the target frame to the frame of the image, as a backward warp needs it: its first map is
applied to the point first. Letters: x y z voxels, n points.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from f3r_jax.common.arrays import Matrix, WorldField
from f3r_jax.common.errors import UserError
from f3r_jax.data.grids import GRID_TOLERANCE, Grid
from f3r_jax.data.resample import by_slabs
from f3r_jax.data.sampling import sampler
from f3r_jax.data.stored import StoredVolume, check_finite, whole_numbers, without_padding
from f3r_jax.data.transforms import Points, apply_matrix, sample_field


@dataclasses.dataclass(frozen=True)
class FieldMap:
    """Maps x to x + field(x), in mm; outside its grid the field has its edge value."""

    field: WorldField
    grid: Grid


Chain = Sequence[Matrix | FieldMap]


def map_points(chain: Chain, points: Points) -> Points:
    """The points (n 3) in mm after all maps of the chain."""
    for each in chain:
        if isinstance(each, FieldMap):
            points = points + sample_field(each.field, each.grid, points)
        else:
            points = apply_matrix(each, points.T).T
    return points


def target_grid(chain: Chain) -> Grid:
    """The grid of the first map of a chain, for results without a reference.

    Raises:
      UserError: the first map is a matrix, which has no grid.
    """
    if not chain or not isinstance(chain[0], FieldMap):
        raise UserError("the transform is a matrix, which has no grid; expected --reference=FILE")
    return chain[0].grid


def warp_volume(
    data: Shaped[np.ndarray, "x y z"],
    affine: Matrix,
    chain: Chain,
    grid: Grid,
    *,
    interpolation: str,
    outside: float,
) -> Shaped[np.ndarray, "u v w"]:
    """Warps a volume to a grid: samples it where the chain maps the voxels of the grid.

    Args:
      data: the volume; floats, or any type with "nearest" and "label".
      affine: of the volume, to mm of the frame that the chain maps to.
      chain: from the frame of `grid` to that of the volume.
      grid: the grid of the result.
      interpolation: one of `sampling.INTERPOLATIONS`.
      outside: the value outside the volume.

    Returns:
      The warped volume, of the type of `data`; float64 with "bspline".
    """
    sample, to_voxels = sampler(data, interpolation, outside=outside), np.linalg.inv(affine)
    warped = np.empty(grid.shape, np.float64 if interpolation == "bspline" else data.dtype)
    places = _places(chain, grid)

    def fill(slab: slice) -> None:
        warped[slab] = sample(apply_matrix(to_voxels, places(slab)))

    by_slabs(grid.shape, fill)
    return warped


def warp_stored(
    stored: StoredVolume,
    index: tuple[int, ...] | None,
    chain: Chain,
    grid: Grid,
    *,
    interpolation: str,
    outside: float | None,
) -> Shaped[np.ndarray, "u v w"]:
    """Warps one volume of a file, and converts the result to the type of the file.

    `index` is that of the further axes of a series. Without a value `outside`, it is the lowest value of the volume, or
    0 for labels. NaN is padding; integers are rounded.
    """
    exact = interpolation in ("nearest", "label") and stored.dtype.kind in "iu"
    precise = np.float32 if stored.dtype.itemsize <= 2 or stored.dtype == np.float32 else np.float64
    data = stored.load(stored.dtype if exact else precise, index).reshape(stored.shape[:3])
    if not exact:
        data = without_padding(data, stored.path)[0]
    if outside is None:
        outside = 0.0 if interpolation == "label" else float(data.min())
    warped = warp_volume(data, stored.affine, chain, grid, interpolation=interpolation, outside=outside)
    return as_type(warped, stored.dtype)


def as_labels(stored: StoredVolume) -> StoredVolume:
    """The file as label maps: integers as stored, and floats as integers; a UserError if they are not whole numbers."""
    if stored.dtype.kind in "iu":
        return stored
    whole: Any = whole_numbers(stored.load(np.float64), stored.path, "label map")

    def load(dtype: np.dtype, index: tuple[int, ...] | None = None) -> np.ndarray:
        return (whole if index is None else whole[(..., *index)]).astype(dtype)

    return dataclasses.replace(stored, dtype=whole.dtype, load=load)


def as_type(values: Shaped[np.ndarray, "*shape"], dtype: np.dtype) -> Shaped[np.ndarray, "*shape"]:
    """The values as a type: integers are rounded, and cut off at the limits of the type."""
    if dtype.kind in "iu" and values.dtype.kind == "f":
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype, copy=False)


def check_outside(outside: float | None, dtype: np.dtype, path: str) -> None:
    """Raises a UserError for a value outside that the type of the file cannot hold."""
    if outside is None or dtype.kind == "f":
        return
    limits = np.iinfo(dtype)
    if outside != round(outside) or not limits.min <= outside <= limits.max:
        raise UserError(f"--outside is {outside:g}, but {path} holds {dtype}; expected {limits.min} to {limits.max}")


def checked_field(field: WorldField, grid: Grid) -> FieldMap:
    """A map of a field; raises a UserError for values that are not finite."""
    check_finite(field, grid.path, "numbers")
    return FieldMap(field, grid)


def _places(chain: Chain, grid: Grid) -> Callable[[slice], np.ndarray]:
    """A function that maps the voxels of a slab of the grid through the chain: (3 ...) in mm."""
    first = chain[0] if chain and isinstance(chain[0], FieldMap) and _same(chain[0].grid, grid) else None

    def places(slab: slice) -> np.ndarray:
        x = apply_matrix(grid.affine, np.mgrid[slab, : grid.shape[1], : grid.shape[2]].astype(np.float64))
        if first is not None:  # its voxels are those of the grid
            x = x + np.moveaxis(first.field[slab], -1, 0)
        rest = chain if first is None else chain[1:]
        return map_points(rest, x.reshape(3, -1).T).T.reshape(x.shape) if rest else x

    return places


def _same(one: Grid, other: Grid) -> bool:
    return one.shape == other.shape and float(np.abs(one.affine - other.affine).max()) < GRID_TOLERANCE * 1e-3
