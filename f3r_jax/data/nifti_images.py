"""Images of NiBabel in memory, with the header that f3r_jax writes."""

import gzip

import nibabel
import numpy as np

from f3r_jax.data.nifti_geometry import is_sheared

NARROWED = {"int64": np.int32, "uint64": np.int32, "bool": np.uint8}  # types that NIfTI readers reject
LEVEL = 4  # of gzip: 6 takes twice the time for a few percent
DATA = 352  # byte where the voxels of a .nii file begin


def to_memory(data: np.ndarray, affine: np.ndarray, intent: str | None = None) -> nibabel.Nifti1Image:
    """An image of NiBabel with the header that `write` writes; without an intent, 5-D data are vectors."""
    image = nibabel.Nifti1Image(data.astype(NARROWED.get(data.dtype.name, data.dtype), copy=False), affine)
    _set_header(image, affine, intent or ("vector" if data.ndim == 5 else "none"))
    return image


def series_header(shape: tuple[int, ...], dtype: np.dtype, affine: np.ndarray) -> bytes:
    """The bytes of a .nii file before its voxels; an axis of components (x y z t c) makes the voxels vectors."""
    image = nibabel.Nifti1Image(np.broadcast_to(np.zeros((), dtype), shape), affine)
    _set_header(image, affine, "vector" if len(shape) == 5 else "none")
    image.header["vox_offset"] = DATA
    image.header["magic"] = b"n+1"
    image.header.set_slope_inter(1, 0)
    return bytes(image.header.binaryblock) + bytes(DATA - len(image.header.binaryblock))


def compressed(data: np.ndarray, affine: np.ndarray, *, slope: float = 1.0) -> bytes:
    """The bytes of a .nii.gz file whose values are `data * slope`; equal data are equal bytes."""
    image = to_memory(data, affine)
    image.header.set_slope_inter(slope, 0)
    return gzip.compress(image.to_bytes(), LEVEL, mtime=0)


def _set_header(image: nibabel.Nifti1Image, affine: np.ndarray, intent: str) -> None:
    image.header.set_intent(intent)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    # ITK needs both. A qform cannot represent shears: it is left out, so that ITK refuses the file instead of reading
    # voxels some mm away.
    image.set_qform(affine, code="unknown" if is_sheared(affine) else "scanner")
