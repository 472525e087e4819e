"""A volume as its file stores it, whatever the format, and what is read from it.

Each format's module opens a file as a `StoredVolume`: the header is read and checked, the numbers are not read yet.
NaN voxels are padding: they are outside the field of view and get the lowest value of the volume.

Letters: x y z voxels along the axes of the file, or along those of a RAS+ grid after reading.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Shaped

from f3r_jax.common.errors import UserError
from f3r_jax.data.grids import Affine, Grid, Image, canonical, canonical_grid, sizes

LABEL_TOLERANCE = 1e-3  # deviation from whole numbers that scaled or float storage may cause
LABEL_TYPES = (np.uint8, np.int16, np.int32)
DISTINCT = 1024  # steps of float32 that the range of intensities must have; MIND and Otsu's threshold need some


@dataclasses.dataclass(frozen=True)
class StoredVolume:
    """The header of a volume, and how to read its numbers.

    Attributes:
      path: the name of the file in messages.
      shape: x y z, then any further axes: time, and components after it.
      affine: voxel indices as stored to mm, RAS+.
      dtype: the type that holds the values: the stored type, or float32 if stored integers are scaled.
      load: reads the values as a type, all of them or at an index of the further axes.
      notes: lines that a user should know about the header.
    """

    path: str
    shape: tuple[int, ...]
    affine: Affine
    dtype: np.dtype
    load: Callable[..., np.ndarray]  # (dtype, index=None) -> (x y z ...), or (x y z) with an index
    notes: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The grid with the axes as stored."""
        x, y, z = self.shape[:3]
        return Grid((x, y, z), self.affine, self.path)


def image_of(stored: StoredVolume) -> Image:
    """The volume as float32 in canonical orientation, its NaN padding filled with the lowest value.

    Raises:
      UserError: not 3-D, infinite voxels, no voxel with a value, or no contrast that float32 resolves.
    """
    check_3d(stored)
    data = canonical(stored.load(np.float32).reshape(stored.shape[:3]), stored.affine)
    data, outside = without_padding(data, stored.path)
    low, high = float(data.min()), float(data.max())
    if 0 < high - low < DISTINCT * float(np.spacing(np.float32(max(abs(low), abs(high))))):
        raise UserError(
            f"{stored.path}: its intensities, {low:.9g} to {high:.9g}, differ by less than float32 can resolve; "
            "expected contrast: subtract the offset"
        )
    return Image(data, canonical_grid(stored.grid).affine, stored.path, outside)


def labels_of(stored: StoredVolume, what: str = "label map") -> Image:
    """The label map in canonical orientation as the smallest of uint8, int16 and int32; NaN is label 0.

    `what` is the kind of file in messages.

    Raises:
      UserError: not 3-D, or values that are infinite, not whole numbers or beyond 32 bits.
    """
    check_3d(stored)
    # float32 has no room for labels beyond 2**24.
    numbers = stored.load(np.float32 if stored.dtype.itemsize <= 2 else np.float64).reshape(stored.shape[:3])
    data = whole_numbers(canonical(numbers, stored.affine), stored.path, what)
    return Image(data, canonical_grid(stored.grid).affine, stored.path)


def whole_numbers(values: Shaped[np.ndarray, "*shape"], path: str, what: str) -> Shaped[np.ndarray, "*shape"]:
    """The values as the smallest of uint8, int16 and int32; NaN becomes 0. `what` is the kind of file in messages.

    Raises:
      UserError: values that are infinite, not whole numbers or beyond 32 bits.
    """
    filled = np.where(np.isnan(values), 0, values)
    check_finite(filled, path, "voxels")
    rounded = np.rint(filled)
    away = np.abs(filled - rounded) > LABEL_TOLERANCE
    if away.any():
        raise UserError(
            f"{path}: {np.count_nonzero(away)} voxels are not whole numbers (such as {filled[away][0]:g}); "
            f"a {what} holds whole numbers"
        )
    low, high = rounded.min(), rounded.max()
    for dtype in LABEL_TYPES:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return rounded.astype(dtype)
    raise UserError(f"{path}: labels from {low:g} to {high:g}; expected them between -2147483648 and 2147483647")


def mask_of(stored: StoredVolume) -> tuple[Image, str | None]:
    """The mask, above 0 inside, and a line if it was soft: values between 0 and 1 are thresholded at 0.5."""
    try:
        return labels_of(stored, "mask"), None
    except UserError:
        check_3d(stored)
        data = canonical(stored.load(np.float32).reshape(stored.shape[:3]), stored.affine)
        data = np.where(np.isnan(data), 0, data)
        if not (np.isfinite(data).all() and data.min() >= 0 and data.max() <= 1):
            raise
    hard = (data >= 0.5).astype(np.uint8)
    percent = 100 * np.mean((data > 0) & (data < 1))
    line = f"{stored.path}: a soft mask, {percent:.3g} % of voxels between 0 and 1; it is thresholded at 0.5"
    return Image(hard, canonical_grid(stored.grid).affine, stored.path), line


def without_padding(
    data: Shaped[np.ndarray, "*shape"], path: str
) -> tuple[Shaped[np.ndarray, "*shape"], np.ndarray | None]:
    """The values with NaN replaced by the lowest value, and where NaN was; None if nowhere."""
    padding = np.isnan(data)
    if not padding.any():
        check_finite(data, path, "voxels")
        return data, None
    if padding.all():
        raise UserError(f"{path}: every voxel is NaN; expected values")
    filled = np.where(padding, np.nanmin(data), data)
    check_finite(filled, path, "voxels")
    return filled, padding


def check_3d(stored: StoredVolume) -> None:
    """Raises a UserError for a series of volumes."""
    if any(size != 1 for size in stored.shape[3:]):
        found = f"{stored.path}: {len(stored.shape)}-D of {sizes(stored.shape)} voxels"
        raise UserError(f"{found}; expected 3-D: extract one volume")


def check_finite(data: np.ndarray, path: str, what: str) -> None:
    """Raises a UserError that counts the numbers that are NaN or infinite."""
    if wrong := data.size - np.count_nonzero(np.isfinite(data)):
        raise UserError(f"{path}: {wrong} of {data.size} {what} are NaN or infinite; all must be finite")
