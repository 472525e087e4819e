"""Reading and writing of NIfTI files in canonical orientation; the only module that uses nibabel.

Volumes are returned in RAS+ orientation (axes to the patient's right, anterior, superior), as near as flips and swaps
of axes get. Their affine maps voxel indices to mm in that frame. Oblique affines stay oblique. A file without
orientation codes is read by method 1 of the standard: spacing of the header, axes as stored, centred on zero. Every
error of a file is reported as a `UserError` of one line.

Letters: x y z voxels along the axes of a RAS+ grid.
"""

import dataclasses
import logging
import os
import zlib
from pathlib import Path

import nibabel
import numpy as np
from jaxtyping import Float32, Float64, Shaped

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import replacing

Affine = Float64[np.ndarray, "4 4"]  # voxel indices to mm, RAS+
PathLike = str | os.PathLike

GRID_TOLERANCE = 1e-3  # mm (and mm per voxel): larger differences of two affines mean different grids
LPS = np.array([-1, -1, 1], np.float32)  # RAS to LPS: ITK's axes point to the patient's left, posterior, superior
VECTOR = 1007  # NIfTI's intent code of ITK's fields; ITK reads 1006 as a field in RAS
LABEL_TOLERANCE = 1e-3  # deviation from whole numbers that scaled or float storage may cause
_UNREADABLE = (OSError, EOFError, ValueError, zlib.error, nibabel.spatialimages.HeaderDataError)

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # f3r_jax reports the errors itself


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


def read(path: PathLike) -> Image:
    """Reads a volume as float32; raises a UserError for anything but a finite 3-D NIfTI volume."""
    stored = _open(path)
    data = _voxels(stored, path)
    _check_finite(data, path, "voxels")
    return Image(data, _canonical_affine(stored), str(path))


def read_labels(path: PathLike) -> Image:
    """Reads a label map as uint8 if that fits, else int16; raises a UserError for values that are not whole numbers."""
    image = read(path)
    rounded = np.rint(image.data)
    away = np.abs(image.data - rounded) > LABEL_TOLERANCE
    if away.any():
        raise UserError(
            f"{path}: {np.count_nonzero(away)} voxels are not whole numbers (such as {image.data[away][0]:g}); "
            "a label map holds whole numbers"
        )
    low, high = rounded.min(), rounded.max()
    for dtype in (np.uint8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dataclasses.replace(image, data=rounded.astype(dtype))
    raise UserError(f"{path}: labels from {low:g} to {high:g}; expected them between -32768 and 32767")


def read_grid(path: PathLike) -> Grid:
    """Reads the canonical shape and affine from the header, and checks all that needs no voxels."""
    stored = _open(path)
    orientation = nibabel.io_orientation(stored.affine)
    shape = [0, 0, 0]
    for axis, (canonical, _) in enumerate(orientation.astype(int)):
        shape[canonical] = stored.shape[axis]
    x, y, z = shape
    return Grid((x, y, z), _canonical_affine(stored), str(path))


def read_stored_grid(path: PathLike) -> Grid:
    """Like `read_grid`, but with the axes as stored: for results that must match the file voxel by voxel."""
    stored = _open(path)
    x, y, z = stored.shape[:3]
    return Grid((x, y, z), np.asarray(stored.affine, np.float64), str(path))


def check_same_grid(image: Grid | Image, labels: Grid | Image) -> None:
    """Raises a UserError unless the label map is on its image's grid."""
    if image.shape != labels.shape:
        raise UserError(
            f"{labels.path}: label map of {_sizes(labels.shape)} voxels, but its image {image.path} has "
            f"{_sizes(image.shape)}; both must be on the same grid"
        )
    difference = np.abs(image.affine - labels.affine).max()
    if difference > GRID_TOLERANCE:
        raise UserError(
            f"{labels.path}: affine of the label map differs from that of its image {image.path} by {difference:.4g}; "
            "both must be on the same grid"
        )


def write(path: PathLike, data: np.ndarray, affine: np.ndarray, *, intent: str = "none") -> None:
    """Writes a .nii or .nii.gz file under a temporary name and renames it: a killed run leaves no partial file.

    `data` may be 3-D, or 5-D (x y z 1 3) with `intent="vector"`, ITK's format of displacement fields. 64-bit integers
    and booleans, which NIfTI readers reject, are converted to int32 and uint8.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: unknown format; expected a name ending in .nii or .nii.gz")
    narrow = {"int64": np.int32, "uint64": np.int32, "bool": np.uint8}
    data = np.asarray(data)
    image = nibabel.Nifti1Image(data.astype(narrow.get(data.dtype.name, data.dtype), copy=False), affine)
    image.header.set_intent(intent)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")  # ITK needs both; shears, which a qform cannot represent, stay in the sform
    with replacing(path) as temporary:
        nibabel.save(image, temporary)


def write_field(path: PathLike, field: Float32[np.ndarray, "x y z 3"], affine: np.ndarray) -> None:
    """Writes displacements in mm, RAS+, in ITK's and ANTs' format: (x y z 1 3), mm in LPS, intent vector."""
    vectors = np.empty(field.shape, np.float32, order="F")  # the file's order, which needs no copy when written
    np.multiply(field, LPS, out=vectors)
    write(path, vectors[:, :, :, None], affine, intent="vector")


def read_field(path: PathLike) -> tuple[Float32[np.ndarray, "x y z 3"], Grid]:
    """Reads a displacement field in ITK's or ANTs' format: displacements in mm, RAS+, and its grid as stored.

    Raises:
      UserError: another layout or intent, which ITK would interpret differently, or values that are not finite.
    """
    stored = read_stored(path)
    if stored.shape[3:] != (1, 3):
        found = f"{path}: {len(stored.shape)}-D of {_sizes(stored.shape)} numbers"
        raise UserError(f"{found}; not ITK's format of a field, expected 5-D: X x Y x Z x 1 x 3")
    code, name = int(stored.header["intent_code"]), stored.header.get_intent()[2]
    if code != VECTOR or name.startswith("NREG"):
        raise UserError(f"{path}: intent code {code} {name}; expected {VECTOR} (vector), as ITK and ANTs write fields")
    field = _numbers(stored, path)[:, :, :, 0]
    _check_finite(field, path, "numbers")
    field[..., :2] *= -1
    return field, Grid(tuple(field.shape[:3]), np.asarray(stored.affine, np.float64), str(path))


def _open(path: PathLike) -> nibabel.Nifti1Pair:
    """Reads and checks the header of a 3-D volume; voxels are not read."""
    stored = read_stored(path)
    if any(size != 1 for size in stored.shape[3:]):
        found = f"{path}: {len(stored.shape)}-D of {_sizes(stored.shape)} voxels"
        raise UserError(f"{found}; expected 3-D: extract one volume")
    return stored


def read_stored(path: PathLike) -> nibabel.Nifti1Pair:
    """Reads and checks the header of a volume or field."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; expected a NIfTI volume")
    try:
        stored = nibabel.load(path, mmap=False)
    except nibabel.filebasedimages.ImageFileError as error:
        raise UserError(f"{path}: not a NIfTI file; expected .nii or .nii.gz") from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: unreadable NIfTI header ({_line(error)}); expected .nii or .nii.gz") from error
    if not isinstance(stored, nibabel.Nifti1Pair):  # its subclasses are .nii and NIfTI-2
        raise UserError(f"{path}: a {type(stored).__name__}, not a NIfTI file; expected .nii or .nii.gz")
    dtype = stored.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        raise UserError(f"{path}: voxels of type {_line(dtype)}; expected real numbers, not colour or complex")
    if len(stored.shape) < 3 or 0 in stored.shape:
        raise UserError(f"{path}: {len(stored.shape)}-D of {_sizes(stored.shape)} voxels; expected a 3-D volume")
    _check_affine(stored.affine, path)
    return stored


def _check_affine(affine: np.ndarray, path: PathLike) -> None:
    if not np.isfinite(affine).all():
        raise UserError(f"{path}: the affine holds NaN or infinite values; expected finite values: correct the header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the unit axes is 1 for orthogonal axes of any spacing, and 0 for linearly dependent ones.
    if (lengths < 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        spacing = " x ".join(f"{length:g}" for length in lengths)
        raise UserError(
            f"{path}: singular affine (spacing {spacing} mm); expected three independent axes: correct the header"
        )


def _voxels(stored: nibabel.Nifti1Pair, path: PathLike) -> np.ndarray:
    """Voxels as float32 in canonical orientation."""
    data = _numbers(stored, path).reshape(stored.shape[:3])
    return nibabel.apply_orientation(data, nibabel.io_orientation(stored.affine))


def _numbers(stored: nibabel.Nifti1Pair, path: PathLike) -> np.ndarray:
    """The scaled values of the file as float32."""
    try:
        return stored.get_fdata(dtype=np.float32, caching="unchanged")
    except (*_UNREADABLE, MemoryError) as error:
        raise UserError(f"{path}: cannot read the voxels, the file seems truncated ({_line(error)})") from error


def _check_finite(data: np.ndarray, path: PathLike, what: str) -> None:
    if wrong := data.size - np.count_nonzero(np.isfinite(data)):
        raise UserError(f"{path}: {wrong} of {data.size} {what} are NaN or infinite; all must be finite")


def _canonical_affine(stored: nibabel.Nifti1Pair) -> np.ndarray:
    orientation = nibabel.io_orientation(stored.affine)
    return np.asarray(stored.affine @ nibabel.orientations.inv_ornt_aff(orientation, stored.shape[:3]), np.float64)


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _line(error: object) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
