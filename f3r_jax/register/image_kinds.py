"""Images in memory of the libraries that users have: NiBabel, SimpleITK, ANTs, NumPy with an affine.

Letters: x y z voxels, in the order of the image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from f3r_jax.common.errors import UserError
from f3r_jax.data import itk_formats, nifti, nifti_images, volumes
from f3r_jax.data.grids import Affine
from f3r_jax.data.nifti_geometry import check_affine, is_sheared
from f3r_jax.data.stored import StoredVolume

Make = Callable[[np.ndarray, Affine], Any]  # an image from (x y z ...) and an affine (RAS+)
EXPECTED = "a path, an image of NiBabel, SimpleITK or ANTs, or (array, affine)"


def open_image(image: Any, name: str, *, unoriented: str | None = None) -> StoredVolume:
    """A path or an image in memory as a `StoredVolume`; `name` is its name in messages.

    Raises:
      UserError: a file that is not readable, or an object of another kind.
    """
    kind = kind_of(image, name)
    if kind == "path":
        return volumes.open_volume(image, unoriented=unoriented)
    if kind == "nibabel":
        return nifti.stored_volume(image, name, unoriented=unoriented)
    if kind == "SimpleITK":
        return itk_formats.from_memory(image, name)
    data: Any
    data, affine = _of_ants(image) if kind == "ants" else _of_pair(image, name)

    def load(dtype: DTypeLike, index: tuple[int, ...] | None = None) -> np.ndarray:
        return (data if index is None else data[(..., *index)]).astype(dtype)

    return StoredVolume(name, data.shape, affine, data.dtype, load)


def make_like(image: Any, name: str) -> Make:
    """A function that makes images of the same kind: for a path one of NiBabel, for a pair (array, affine)."""
    return {
        "path": nifti_images.to_memory,
        "nibabel": nifti_images.to_memory,
        "SimpleITK": lambda data, affine: itk_formats.to_memory(data, affine, name),
        "ants": lambda data, affine: _to_ants(data, affine, name),
        "array": lambda data, affine: (data, affine),
    }[kind_of(image, name)]


def file_of(image: Any, folder: Path, name: str) -> str:
    """The path of an image; one in memory is written to the folder as NAME.nii first."""
    if kind_of(image, name) == "path":
        return str(image)
    stored = open_image(image, name)
    nifti.write(folder / f"{name}.nii", stored.load(stored.dtype), stored.affine)
    return str(folder / f"{name}.nii")


def kind_of(image: Any, name: str) -> str:
    """The kind of an image: "path", "nibabel", "SimpleITK", "ants" or "array"; a UserError for other objects."""
    if isinstance(image, str | Path):
        return "path"
    if isinstance(image, tuple) and len(image) == 2:
        return "array"
    library = type(image).__module__.partition(".")[0]
    if library in ("nibabel", "SimpleITK", "ants"):
        return library
    raise UserError(f"{name}: a {type(image).__name__}, expected {EXPECTED}")


def _of_pair(image: tuple[Any, Any], name: str) -> tuple[np.ndarray, Affine]:
    data, affine = np.asarray(image[0]), np.asarray(image[1], np.float64)
    if data.ndim < 3 or data.dtype.kind not in "iufb" or affine.shape != (4, 4):
        raise UserError(
            f"{name}: an array of shape {data.shape} and type {data.dtype} with an affine of shape {affine.shape}; "
            "expected real numbers (x, y, z) and a 4 x 4 matrix from voxels to mm, RAS+"
        )
    check_affine(affine, name)
    return (data.astype(np.uint8) if data.dtype.kind == "b" else data), affine


def _of_ants(image: Any) -> tuple[np.ndarray, Affine]:
    affine = itk_formats.affine_of(image.spacing, image.origin, np.asarray(image.direction).ravel().tolist())
    data = image.numpy()
    return (data[:, :, :, None] if image.components > 1 else data), affine


def _to_ants(data: np.ndarray, affine: Affine, name: str) -> Any:
    import ants

    if is_sheared(affine):
        raise UserError(f"{name}: its axes are not orthogonal (gantry tilt?), which ANTs refuses; expected NIfTI")
    if data.dtype.name not in ("uint8", "uint32", "float32", "float64"):  # the types of ANTs
        data = data.astype(np.float32)
    lps = itk_formats.FLIP @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    direction, origin = lps[:3, :3] / spacing, lps[:3, 3]
    vectors = data.ndim == 5
    return ants.from_numpy(
        data[:, :, :, 0] if vectors else data,
        origin=origin.tolist(),
        spacing=spacing.tolist(),
        direction=direction,
        has_components=vectors,
    )
