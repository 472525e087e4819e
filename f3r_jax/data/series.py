"""Writing of a series of volumes one after the other, so that one volume is in memory at a time."""

import gzip
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import replacing
from f3r_jax.data import nifti_images, volumes
from f3r_jax.data.chains import Chain, as_labels, check_outside, warp_stored
from f3r_jax.data.grids import Affine, Grid
from f3r_jax.data.stored import StoredVolume

Volume = Shaped[np.ndarray, "x y z"]


def indices(axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The indices of the further axes of a series in the order of a NIfTI file: the first one varies fastest."""
    for number in range(math.prod(axes)):
        yield tuple(int(each) for each in np.unravel_index(number, axes, order="F"))


def write(
    path: Path, grid: Grid, axes: tuple[int, ...], dtype: np.dtype, volume: Callable[[tuple[int, ...]], Volume]
) -> None:
    """Writes a volume, or a series with further `axes`, under a temporary name first.

    NIfTI files are written volume by volume; other formats hold the whole series in memory.

    Args:
      path: its name decides the format.
      grid: the grid of every volume.
      axes: the sizes of the further axes; () for a volume.
      dtype: the type of the file.
      volume: makes the volume of an index of the further axes.
    """
    check_format(path, axes)
    if not axes:
        volumes.write(path, volume(()), grid.affine)
    elif volumes.format_of(path) == "nifti":
        header = nifti_images.series_header((*grid.shape, *axes), dtype, grid.affine)
        with replacing(path) as temporary, _opened(temporary) as file:
            file.write(header)
            for index in indices(axes):
                file.write(volume(index).astype(dtype, copy=False).tobytes(order="F"))
    else:
        whole: Any = np.empty((*grid.shape, *axes), dtype, order="F")
        for index in indices(axes):
            whole[(..., *index)] = volume(index)
        volumes.write(path, whole, grid.affine)


def warped(
    stored: StoredVolume, chain: Chain, grid: Grid, *, interpolation: str, outside: float | None, labels: bool
) -> tuple[np.ndarray, Affine]:
    """A volume or all volumes of a series, warped to a grid: (x y z ...) of the type of the file, and the affine."""
    stored, outside = prepared(stored, outside, labels=labels)
    warp = partial(warp_stored, stored, chain=chain, grid=grid, interpolation=interpolation, outside=outside)
    axes = stored.shape[3:]
    if not axes:
        return warp(None), grid.affine
    whole: Any = np.empty((*grid.shape, *axes), stored.dtype, order="F")
    for index in indices(axes):
        whole[(..., *index)] = warp(index)
    return whole, grid.affine


def prepared(stored: StoredVolume, outside: float | None, *, labels: bool) -> tuple[StoredVolume, float | None]:
    """The file with whole numbers for labels, and the value outside: 0 for labels and vectors if it is not given.

    Raises:
      UserError: labels that are not whole numbers, or a value that the type of the file cannot hold.
    """
    stored = as_labels(stored) if labels else stored
    if outside is None and (labels or len(stored.shape) == 5):
        outside = 0.0
    check_outside(outside, stored.dtype, stored.path)
    return stored, outside


def check_format(path: Path, axes: tuple[int, ...]) -> None:
    """Raises a UserError if the format of the file's name does not hold a series with these further axes."""
    volumes.check_name(path)
    kind = volumes.format_of(path)
    vectors = len(axes) == 2 and axes[0] == 1
    most = {"nifti": 2, "mha": 1, "mgz": 1, "nrrd": 0}[kind]
    if len(axes) > most and not (vectors and kind in ("mha", "nrrd")):
        found = "vectors" if vectors else f"a series of {' x '.join(map(str, axes))} volumes"
        raise UserError(f"{path}: {kind.upper()} does not hold {found} with their orientation; expected .nii.gz")


def _opened(path: Path) -> gzip.GzipFile:
    if path.name.endswith(".gz"):
        return gzip.GzipFile(path, "wb", compresslevel=1, mtime=0)
    return open(path, "wb")  # type: ignore[return-value]  # both have `write`
