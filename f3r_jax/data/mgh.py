"""FreeSurfer's MGH files (.mgh, .mgz): their geometry, and writing them, through nibabel."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from f3r_jax.common.files import replacing
from f3r_jax.data.grids import Affine
from f3r_jax.data.nifti_geometry import Geometry, PathLike, check_affine, declared

ORIENTED = 28  # byte of the header's goodRASFlag, which nibabel sets to 1 when it reads a file
STORED = {"uint8": "uint8", "int8": "int16", "int16": "int16", "float16": "float32", "float32": "float32"}


def geometry(image: Any, path: PathLike, *, unoriented: str | None = None) -> Geometry:
    """The geometry of an image that nibabel opened; raises a UserError if the file has none."""
    affine = np.asarray(image.affine, np.float64)
    if not _is_oriented(image.file_map["image"].filename):
        affine = declared(unoriented, np.asarray(image.header["delta"], np.float64), path, "goodRASFlag is 0")
    check_affine(affine, path)
    return Geometry(affine)


def write(path: PathLike, data: np.ndarray, affine: Affine) -> None:
    """Writes a volume under a temporary name first, as uint8, int16, int32 or float32."""
    dtype = STORED.get(data.dtype.name, "float32" if data.dtype.kind == "f" else "int32")
    with replacing(Path(path)) as temporary:
        nibabel.save(nibabel.MGHImage(data.astype(dtype, copy=False), affine), temporary)


def _is_oriented(file: str | None) -> bool:
    if file is None:
        return True
    with open(file, "rb") as start:
        compressed = start.read(2) == b"\x1f\x8b"
    with (gzip.open if compressed else open)(file, "rb") as stream:
        return any(stream.read(ORIENTED + 2)[ORIENTED:])
