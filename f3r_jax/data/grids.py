"""Grids and images of voxels in RAS+, their canonical orientation, and the check whether two grids are equal.

Letters: x y z voxels along the axes of a RAS+ grid.
"""

import dataclasses
import itertools

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped

from f3r_jax.common.errors import UserError

Affine = Float64[np.ndarray, "4 4"]  # voxel indices to mm, RAS+
GRID_TOLERANCE = 1e-3  # mm (and mm per voxel): larger differences of two affines mean different grids
EQUALLY_CLOSE = 1e-3  # of the sum of three cosines: axes at 45 degrees fit two directions equally


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of a volume: `affine` maps voxel indices to mm, RAS+; `path` is the file's name in messages."""

    shape: tuple[int, int, int]
    affine: Affine
    path: str = ""

    @property
    def spacing(self) -> np.ndarray:
        """Length of a voxel along x, y, z in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


@dataclasses.dataclass(frozen=True)
class Image:
    """A volume in canonical orientation: (x y z) float32, or integers for labels."""

    data: Shaped[np.ndarray, "x y z"]
    affine: Affine
    path: str = ""
    outside: Bool[np.ndarray, "x y z"] | None = None  # voxels that hold padding; None: no voxel

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along x, y, z."""
        return self.data.shape

    @property
    def spacing(self) -> np.ndarray:
        """Length of a voxel along x, y, z in mm."""
        return self.grid.spacing

    @property
    def grid(self) -> Grid:
        """The grid of the volume."""
        return Grid(self.shape, self.affine, self.path)


def orientation(affine: Float[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3 2"]:
    """For each stored axis the closest axis of RAS+ and the sign, in nibabel's form.

    Of axes that are equally close, as at 45 degrees, always the same one is chosen, so rounding errors do not matter.
    """
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(unit)
    turn = left @ right  # the closest rotation or reflection, without shears
    stored = np.arange(3)
    orders = [np.array(order) for order in itertools.permutations(range(3))]
    fits = np.array([np.abs(turn[order, stored]).sum() for order in orders])
    order = orders[int(np.argmax(fits > fits.max() - EQUALLY_CLOSE))]
    return np.stack([order, np.sign(turn[order, stored])], axis=1).astype(np.float64)


def canonical(data: Shaped[np.ndarray, "x y z *c"], affine: Affine) -> Shaped[np.ndarray, "u v w *c"]:
    """The voxels with their first three axes flipped and swapped to RAS+; `affine` is that of the stored axes."""
    order, signs = orientation(affine).astype(int).T
    flipped = data[tuple(slice(None, None, sign) for sign in signs)]
    return flipped.transpose(*np.argsort(order), *range(3, data.ndim))


def canonical_grid(grid: Grid) -> Grid:
    """The grid of the same voxels in RAS+ order."""
    order, signs = orientation(grid.affine).astype(int).T
    turn = np.zeros((4, 4))  # canonical indices to stored indices
    turn[3, 3] = 1
    shape = [0, 0, 0]
    for axis, (canonical_axis, sign) in enumerate(zip(order, signs, strict=True)):
        turn[axis, canonical_axis] = sign
        turn[axis, 3] = 0 if sign > 0 else grid.shape[axis] - 1
        shape[canonical_axis] = grid.shape[axis]
    x, y, z = shape
    return Grid((x, y, z), grid.affine @ turn, grid.path)


def check_same_grid(image: Grid | Image, labels: Grid | Image, what: str = "label map") -> None:
    """Raises a UserError unless the label map, or `what` it is, is on its image's grid."""
    if image.shape != labels.shape:
        raise UserError(
            f"{labels.path}: {what} of {sizes(labels.shape)} voxels, but its image {image.path} has "
            f"{sizes(image.shape)}; both must be on the same grid"
        )
    difference = np.abs(image.affine - labels.affine).max()
    if difference > GRID_TOLERANCE:
        raise UserError(
            f"{labels.path}: affine of the {what} differs from that of its image {image.path} by {difference:.4g}; "
            "both must be on the same grid"
        )


def sizes(shape: tuple[int, ...]) -> str:
    """The shape as text: 5 x 6 x 7."""
    return " x ".join(map(str, shape))
