"""NRRD and MetaImage (MHA, MHD) through SimpleITK, an optional package; `dicom.py` reads DICOM.

ITK's axes are LPS; f3r_jax's are RAS+. A vector image (x y z with c components) has the shape x y z 1 c, as in NIfTI.
Letters: x y z voxels along the axes of the file, c components.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable, replacing
from f3r_jax.data.grids import Affine
from f3r_jax.data.nifti_geometry import PathLike, check_affine, declared, is_sheared
from f3r_jax.data.optional import simpleitk
from f3r_jax.data.stored import StoredVolume

NRRD, META = (".nrrd", ".nhdr"), (".mha", ".mhd")
SUFFIXES = (*NRRD, *META)
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # LPS to RAS and back


def open_volume(path: PathLike, *, unoriented: str | None = None) -> StoredVolume:
    """Reads and checks the header of a volume or a series of volumes; voxels are not read.

    Raises:
      UserError: SimpleITK is missing, the file is damaged, or an NRRD file has no orientation.
    """
    path = Path(path)
    check_readable(path, "a volume")
    sitk = simpleitk(path, f"{path.suffix.lstrip('.').upper()}")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path}: unreadable header ({reason(error)}); expected NRRD or MetaImage") from error
    size = reader.GetSize()
    if len(size) < 3 or min(size) < 1:
        found = " x ".join(map(str, size))
        raise UserError(f"{path}: {len(size)}-D of {found} voxels; expected a 3-D volume")
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise UserError(f"{path}: complex voxels; expected real numbers")
    affine = affine_of(reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())
    if path.suffix.lower() in NRRD and "NRRD_space" not in reader.GetMetaDataKeys():
        affine = declared(unoriented, np.asarray(reader.GetSpacing()[:3]), path, "no field `space`")
    check_affine(affine, path)
    count = reader.GetNumberOfComponents()
    return StoredVolume(
        path=str(path),
        shape=(*size, *_components(len(size), count)),
        affine=affine,
        dtype=dtype_of(sitk, reader.GetPixelID()),
        load=partial(_read, sitk, str(path), len(size), count),
    )


def from_memory(image: Any, name: str) -> StoredVolume:
    """An image of SimpleITK as a `StoredVolume`; `name` is its name in messages."""
    sitk = simpleitk(name, "an image of SimpleITK")
    size, count = image.GetSize(), image.GetNumberOfComponentsPerPixel()
    if len(size) < 3:
        raise UserError(f"{name}: {len(size)}-D; expected a 3-D volume")
    affine = affine_of(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    check_affine(affine, name)

    def load(dtype: DTypeLike, index: tuple[int, ...] | None = None) -> np.ndarray:
        return _numbers(sitk, image, len(size), count, dtype, index)

    shape = (*size, *_components(len(size), count))
    return StoredVolume(name, shape, affine, dtype_of(sitk, image.GetPixelID()), load)


def to_memory(data: np.ndarray, affine: Affine, name: str) -> Any:
    """An image of SimpleITK from (x y z), (x y z t) or (x y z 1 c) and an affine (RAS+).

    Raises:
      UserError: SimpleITK is missing, or the axes are not orthogonal, which ITK does not support.
    """
    sitk = simpleitk(name, "an image of SimpleITK")
    if is_sheared(affine):
        raise UserError(f"{name}: its axes are not orthogonal (gantry tilt?), which ITK refuses; expected NIfTI")
    vector = data.ndim == 5
    if vector:
        data = data[:, :, :, 0]
    order = (2, 1, 0, 3) if vector else tuple(reversed(range(data.ndim)))
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(order)), isVector=vector)
    lps = FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    dimension = image.GetDimension()
    direction = np.eye(dimension)
    direction[:3, :3] = lps[:3, :3] / spacing
    image.SetSpacing([*map(float, spacing), *[1.0] * (dimension - 3)])
    image.SetOrigin([*map(float, lps[:3, 3]), *[0.0] * (dimension - 3)])
    image.SetDirection(direction.ravel().tolist())
    return image


def write(path: PathLike, data: np.ndarray, affine: Affine) -> None:
    """Writes a volume, a series or vectors as NRRD or MetaImage, compressed, under a temporary name first."""
    path = Path(path)
    image = to_memory(data, affine, str(path))
    sitk = simpleitk(path, path.suffix)
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def affine_of(spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]) -> Affine:
    """The affine (RAS+) of ITK's spacing, origin and direction, of which the first three axes are used."""
    size = len(spacing)
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(direction, (size, size))[:3, :3] * np.asarray(spacing[:3])
    lps[:3, 3] = origin[:3]
    return FLIP @ lps


def dtype_of(sitk: Any, pixel: int) -> np.dtype:
    """NumPy's type of a pixel type of SimpleITK."""
    words = sitk.GetPixelIDValueAsString(pixel).replace("vector of ", "")
    if "float" in words:
        return np.dtype(np.float64 if "64" in words else np.float32)
    bits = next(bits for bits in (8, 16, 32, 64) if f"{bits}-bit" in words)
    return np.dtype(f"{'u' if 'unsigned' in words else ''}int{bits}")


def read_transform(path: Path) -> Any:
    """The transform of SimpleITK in a file of ITK, such as HDF5; raises a UserError if there is none."""
    check_readable(path, "a transform of ITK")
    try:
        return simpleitk(path, "a transform in HDF5").ReadTransform(str(path))
    except RuntimeError as error:
        raise UserError(f"{path}: not a transform of ITK ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """The last line of an exception of SimpleITK, which has the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).removeprefix("sitk::ERROR: ")[:120]


def _components(dimension: int, count: int) -> tuple[int, ...]:
    return () if count == 1 else (*[1] * (4 - dimension), count)


def _read(
    sitk: Any, path: str, dimension: int, count: int, dtype: DTypeLike, index: tuple[int, ...] | None = None
) -> np.ndarray:
    try:
        image = sitk.ReadImage(path)
    except (RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: cannot read the voxels, the file seems truncated ({reason(error)})") from error
    return _numbers(sitk, image, dimension, count, dtype, index)


def _numbers(
    sitk: Any, image: Any, dimension: int, count: int, dtype: DTypeLike, index: tuple[int, ...] | None
) -> np.ndarray:
    array = sitk.GetArrayViewFromImage(image)
    order = tuple(reversed(range(dimension)))
    data = array.transpose(*order, dimension) if count > 1 else array.transpose(order)
    if count > 1 and dimension == 3:
        data = data[:, :, :, None]
    return np.array(data if index is None else data[(slice(None),) * 3 + index], dtype, order="F")
