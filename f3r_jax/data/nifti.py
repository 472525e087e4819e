"""Reading and writing of NIfTI files in canonical orientation; the only module that uses nibabel.

Volumes are returned in RAS+ orientation (axes to the patient's right, anterior, superior), as near as flips and swaps
of axes get. Their affine maps voxel indices to mm in that frame. Oblique affines stay oblique. `nifti_geometry`
documents which map of the header is used. A file without orientation codes is refused, unless `unoriented` declares the
axes of the file, such as "RAS". Every error of a file is reported as a `UserError` of one line.

Letters: x y z voxels along the axes of a RAS+ grid.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float32

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable, replacing
from f3r_jax.data.grids import GRID_TOLERANCE, Affine, Grid, Image, check_same_grid, orientation, sizes
from f3r_jax.data.nifti_geometry import PathLike, geometry, is_sheared

__all__ = ["GRID_TOLERANCE", "Affine", "Grid", "Image", "PathLike", "check_same_grid"]  # also used as names of `nifti`

LPS = np.array([-1, -1, 1], np.float32)  # RAS to LPS: ITK's axes point to the patient's left, posterior, superior
VECTOR = 1007  # NIfTI's intent code of ITK's fields; ITK reads 1006 as a field in RAS
LABEL_TOLERANCE = 1e-3  # deviation from whole numbers that scaled or float storage may cause
DISTINCT = 1024  # steps of float32 that the range of intensities must have; MIND and Otsu's threshold need some
MOST_COMPRESSED = 1100  # gzip shrinks data to a 1032nd at best

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # f3r_jax reports the errors itself


def read(path: PathLike, *, unoriented: str | None = None) -> Image:
    """Reads a volume as float32; raises a UserError for anything but a finite 3-D NIfTI volume."""
    stored = _open(path, unoriented)
    data = _voxels(stored, path)
    _check_finite(data, path, "voxels")
    low, high = float(data.min()), float(data.max())
    if 0 < high - low < DISTINCT * float(np.spacing(np.float32(max(abs(low), abs(high))))):
        raise UserError(
            f"{path}: its intensities, {low:.9g} to {high:.9g}, differ by less than float32 can resolve; expected "
            "contrast: subtract the offset"
        )
    return Image(data, _canonical_affine(stored), str(path))


def read_labels(path: PathLike, *, unoriented: str | None = None, what: str = "label map") -> Image:
    """Reads a label map as uint8 if that fits, else int16; raises a UserError for values that are not whole numbers.

    `what` is the kind of file in messages.
    """
    image = read(path, unoriented=unoriented)
    rounded = np.rint(image.data)
    away = np.abs(image.data - rounded) > LABEL_TOLERANCE
    if away.any():
        raise UserError(
            f"{path}: {np.count_nonzero(away)} voxels are not whole numbers (such as {image.data[away][0]:g}); "
            f"a {what} holds whole numbers"
        )
    low, high = rounded.min(), rounded.max()
    for dtype in (np.uint8, np.int16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dataclasses.replace(image, data=rounded.astype(dtype))
    raise UserError(f"{path}: labels from {low:g} to {high:g}; expected them between -32768 and 32767")


def read_grid(path: PathLike, *, unoriented: str | None = None) -> Grid:
    """Reads the canonical shape and affine from the header, and checks all that needs no voxels."""
    stored = _open(path, unoriented)
    shape = [0, 0, 0]
    for axis, (canonical, _) in enumerate(orientation(stored.affine).astype(int)):
        shape[canonical] = stored.shape[axis]
    x, y, z = shape
    return Grid((x, y, z), _canonical_affine(stored), str(path))


def read_stored_grid(path: PathLike, *, unoriented: str | None = None) -> Grid:
    """Like `read_grid`, but with the axes as stored: for results that must match the file voxel by voxel."""
    stored = _open(path, unoriented)
    x, y, z = stored.shape[:3]
    return Grid((x, y, z), np.asarray(stored.affine, np.float64), str(path))


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
    # ITK needs both. A qform cannot represent shears: it is left out, so that ITK refuses the file instead of reading
    # voxels some mm away.
    image.set_qform(affine, code="unknown" if is_sheared(affine) else "scanner")
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
        found = f"{path}: {len(stored.shape)}-D of {sizes(stored.shape)} numbers"
        raise UserError(f"{found}; not ITK's format of a field, expected 5-D: X x Y x Z x 1 x 3")
    code, name = int(stored.header["intent_code"]), stored.header.get_intent()[2]
    if code != VECTOR or name.startswith("NREG"):
        raise UserError(f"{path}: intent code {code} {name}; expected {VECTOR} (vector), as ITK and ANTs write fields")
    field = _numbers(stored, path)[:, :, :, 0]
    _check_finite(field, path, "numbers")
    field[..., :2] *= -1
    return field, Grid(tuple(field.shape[:3]), np.asarray(stored.affine, np.float64), str(path))


def read_stored(path: PathLike, *, unoriented: str | None = None) -> nibabel.Nifti1Pair:
    """Reads and checks the header of a volume or field; the result's `affine` is the geometry that is used, in mm."""
    stored = _load(path)
    affine = geometry(stored.header, path, unoriented=unoriented).affine
    return type(stored)(stored.dataobj, affine, stored.header, file_map=stored.file_map)


def notes_on(path: PathLike, *, unoriented: str | None = None) -> tuple[str, ...]:
    """Lines that a user should know about the header: a choice between two geometries, converted units, shears."""
    return geometry(_load(path).header, path, unoriented=unoriented).notes


def _open(path: PathLike, unoriented: str | None) -> nibabel.Nifti1Pair:
    """Reads and checks the header of a 3-D volume; voxels are not read."""
    stored = read_stored(path, unoriented=unoriented)
    if any(size != 1 for size in stored.shape[3:]):
        found = f"{path}: {len(stored.shape)}-D of {sizes(stored.shape)} voxels"
        raise UserError(f"{found}; expected 3-D: extract one volume")
    return stored


def _load(path: PathLike) -> nibabel.Nifti1Pair:
    check_readable(Path(path), "a NIfTI volume (.nii or .nii.gz)")
    try:
        with np.errstate(all="ignore"):
            stored = nibabel.load(path, mmap=False)
    except nibabel.filebasedimages.ImageFileError as error:
        raise UserError(f"{path}: not a NIfTI file; expected .nii or .nii.gz") from error
    except Exception as error:  # a damaged header can make nibabel raise nearly anything
        raise UserError(f"{path}: unreadable NIfTI header ({_line(error)}); expected .nii or .nii.gz") from error
    if not isinstance(stored, nibabel.Nifti1Pair):  # its subclasses are .nii and NIfTI-2
        raise UserError(f"{path}: a {type(stored).__name__}, not a NIfTI file; expected .nii or .nii.gz")
    dtype = stored.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        raise UserError(f"{path}: voxels of type {_line(dtype)}; expected real numbers, not colour or complex")
    if len(stored.shape) < 3 or min(stored.shape) < 1:
        raise UserError(f"{path}: {len(stored.shape)}-D of {sizes(stored.shape)} voxels; expected a 3-D volume")
    proxy: Any = stored.dataobj
    offset = proxy.offset  # the header's own is set to 0
    if stored.header.is_single and offset < stored.header.sizeof_hdr:
        raise UserError(f"{path}: its voxels begin at byte {offset}, inside the header; expected byte 352")
    _check_size(stored, path)
    return stored


def _check_size(stored: nibabel.Nifti1Pair, path: PathLike) -> None:
    """Raises a UserError if the file is too small for the voxels that its header announces."""
    needed = stored.get_data_dtype().itemsize
    for size in stored.shape:
        needed *= int(size)
    file = Path(stored.file_map["image"].filename or path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected the voxels of {path}")
    held = file.stat().st_size * (1 if file.suffix in (".nii", ".img") else MOST_COMPRESSED)
    if needed > held:
        raise UserError(
            f"{path}: cannot read the voxels, the file seems truncated: {file.stat().st_size} bytes for "
            f"{sizes(stored.shape)} voxels"
        )


def _voxels(stored: nibabel.Nifti1Pair, path: PathLike) -> np.ndarray:
    """Voxels as float32 in canonical orientation."""
    data = _numbers(stored, path).reshape(stored.shape[:3])
    return nibabel.apply_orientation(data, orientation(stored.affine))


def _numbers(stored: nibabel.Nifti1Pair, path: PathLike) -> np.ndarray:
    """The scaled values of the file as float32."""
    try:
        with np.errstate(all="ignore"):
            return stored.get_fdata(dtype=np.float32, caching="unchanged")
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory for {sizes(stored.shape)} voxels") from error
    except Exception as error:  # damaged data can make nibabel raise nearly anything
        raise UserError(f"{path}: cannot read the voxels, the file seems truncated ({_line(error)})") from error


def _check_finite(data: np.ndarray, path: PathLike, what: str) -> None:
    if wrong := data.size - np.count_nonzero(np.isfinite(data)):
        raise UserError(f"{path}: {wrong} of {data.size} {what} are NaN or infinite; all must be finite")


def _canonical_affine(stored: nibabel.Nifti1Pair) -> np.ndarray:
    turn = nibabel.orientations.inv_ornt_aff(orientation(stored.affine), stored.shape[:3])
    return np.asarray(stored.affine @ turn, np.float64)


def _line(error: object) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
