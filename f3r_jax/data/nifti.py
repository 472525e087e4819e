"""Reading and writing of NIfTI files, and reading of FreeSurfer's MGH (`mgh.py`), through nibabel.

Volumes are returned in RAS+ orientation (axes to the patient's right, anterior, superior), as near as flips and swaps
of axes get. Their affine maps voxel indices to mm in that frame. Oblique affines stay oblique. `nifti_geometry`
documents which map of the header is used. A file without orientation codes is refused, unless `unoriented` declares the
axes of the file, such as "RAS". Every error of a file is reported as a `UserError` of one line.

`volumes.py` has the same functions for files of any format. Letters: x y z voxels along the axes of a RAS+ grid.
"""

import gzip
import logging
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from jaxtyping import Float32
from numpy.typing import DTypeLike

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable, replacing
from f3r_jax.data import mgh
from f3r_jax.data import stored as reading
from f3r_jax.data.grids import GRID_TOLERANCE, Affine, Grid, Image, canonical_grid, check_same_grid, sizes
from f3r_jax.data.nifti_geometry import Geometry, PathLike, geometry
from f3r_jax.data.nifti_images import series_header, to_memory
from f3r_jax.data.stored import StoredVolume

__all__ = ["GRID_TOLERANCE", "Affine", "Grid", "Image", "PathLike", "check_same_grid"]  # also used as names of `nifti`

LPS = np.array([-1, -1, 1], np.float32)  # RAS to LPS: ITK's axes point to the patient's left, posterior, superior
PLANES = 16  # of a field, written at a time
VECTOR = 1007  # NIfTI's intent code of ITK's fields; ITK reads 1006 as a field in RAS
MOST_COMPRESSED = 1100  # gzip shrinks data to a 1032nd at best
GZIP = b"\x1f\x8b"
READABLE = (nibabel.Nifti1Pair, nibabel.MGHImage)  # subclasses of the first are .nii and NIfTI-2

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # f3r_jax reports the errors itself


def read(path: PathLike, *, unoriented: str | None = None) -> Image:
    """Reads a volume as float32; NaN is padding. Raises a UserError for anything but a 3-D volume with contrast."""
    return reading.image_of(open_volume(path, unoriented=unoriented))


def read_labels(path: PathLike, *, unoriented: str | None = None, what: str = "label map") -> Image:
    """Reads a label map as uint8, int16 or int32; raises a UserError for values that are not whole numbers.

    `what` is the kind of file in messages.
    """
    return reading.labels_of(open_volume(path, unoriented=unoriented), what)


def read_grid(path: PathLike, *, unoriented: str | None = None) -> Grid:
    """Reads the canonical shape and affine from the header, and checks all that needs no voxels."""
    return canonical_grid(read_stored_grid(path, unoriented=unoriented))


def read_stored_grid(path: PathLike, *, unoriented: str | None = None) -> Grid:
    """Like `read_grid`, but with the axes as stored: for results that must match the file voxel by voxel."""
    stored = open_volume(path, unoriented=unoriented)
    reading.check_3d(stored)
    return stored.grid


def notes_on(path: PathLike, *, unoriented: str | None = None) -> tuple[str, ...]:
    """Lines that a user should know about the header: a choice between two geometries, converted units, shears."""
    return open_volume(path, unoriented=unoriented).notes


def open_volume(path: PathLike, *, unoriented: str | None = None) -> StoredVolume:
    """Reads and checks the header of a volume or a series of volumes; voxels are not read."""
    return stored_volume(_load(path), path, unoriented=unoriented)


def stored_volume(image: Any, path: PathLike, *, unoriented: str | None = None) -> StoredVolume:
    """An image of nibabel as a `StoredVolume`; `path` is its name in messages."""
    if not isinstance(image, READABLE):
        raise UserError(f"{path}: a {type(image).__name__}, not a NIfTI file; expected .nii or .nii.gz")
    found = _geometry(image, path, unoriented)
    dtype, proxy = image.get_data_dtype(), image.dataobj
    scaled = (getattr(proxy, "slope", 1), getattr(proxy, "inter", 0)) != (1, 0)
    return StoredVolume(
        path=str(path),
        shape=tuple(int(size) for size in image.shape),
        affine=np.asarray(found.affine, np.float64),
        dtype=np.dtype(np.float32) if scaled else dtype.newbyteorder("="),
        load=partial(_numbers, image, path),
        notes=found.notes,
    )


def _geometry(image: Any, path: PathLike, unoriented: str | None) -> Geometry:
    if isinstance(image, nibabel.Nifti1Pair):
        return geometry(image.header, path, unoriented=unoriented)
    return mgh.geometry(image, path, unoriented=unoriented)


def write(path: PathLike, data: np.ndarray, affine: np.ndarray, *, intent: str = "none") -> None:
    """Writes a .nii or .nii.gz file under a temporary name and renames it: a killed run leaves no partial file.

    `data` may be 3-D, or 5-D (x y z 1 3) with `intent="vector"`, ITK's format of displacement fields. 64-bit integers
    and booleans, which NIfTI readers reject, are converted to int32 and uint8.
    """
    with replacing(_nifti_path(path)) as temporary:
        nibabel.save(to_memory(np.asarray(data), affine, intent), temporary)


def _nifti_path(path: PathLike) -> Path:
    """The path of a file to write; raises a UserError for a name of another format."""
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: unknown format; expected a name ending in .nii or .nii.gz")
    return path


def write_field(path: PathLike, field: Float32[np.ndarray, "x y z 3"], affine: np.ndarray) -> None:
    """Writes displacements in mm, RAS+, in ITK's and ANTs' format: (x y z 1 3), mm in LPS, intent vector."""
    with replacing(_nifti_path(path)) as temporary, open(temporary, "wb") as file:
        compressed = temporary.name.endswith(".gz")
        # Numbers hardly repeat: without the search for repetitions gzip writes 126 instead of 48 MB/s, 2 % more bytes.
        gzip_format = zlib.compressobj(1, zlib.DEFLATED, 31, strategy=zlib.Z_HUFFMAN_ONLY)
        for part in _parts(field, affine):
            file.write(gzip_format.compress(part) if compressed else part)
        file.write(gzip_format.flush() if compressed else b"")


def _parts(field: np.ndarray, affine: np.ndarray) -> Iterator[bytes]:
    """The bytes of a field's file, in parts, as a copy of the whole may not fit into memory."""
    yield series_header((*field.shape[:3], 1, 3), np.dtype(np.float32), affine)
    for component, sign in enumerate(LPS):  # the slowest axis of the file
        for z in range(0, field.shape[2], PLANES):
            yield (sign * field[:, :, z : z + PLANES, component]).tobytes(order="F")


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
    reading.check_finite(field, str(path), "numbers")
    field[..., :2] *= -1
    return field, Grid(tuple(field.shape[:3]), np.asarray(stored.affine, np.float64), str(path))


def read_stored(path: PathLike, *, unoriented: str | None = None) -> nibabel.Nifti1Pair:
    """Reads and checks the header of a NIfTI volume or field; the result's `affine` is the geometry that is used."""
    stored = _load(path)
    if not isinstance(stored, nibabel.Nifti1Pair):
        raise UserError(f"{path}: a {type(stored).__name__}, not a NIfTI file; expected .nii or .nii.gz")
    affine = geometry(stored.header, path, unoriented=unoriented).affine
    return type(stored)(stored.dataobj, affine, stored.header, file_map=stored.file_map)


def _load(path: PathLike) -> Any:
    check_readable(Path(path), "a NIfTI volume (.nii or .nii.gz)")
    try:
        with np.errstate(all="ignore"):
            stored = _by_content(Path(path)) or nibabel.load(path, mmap=False)
    except nibabel.filebasedimages.ImageFileError as error:
        raise UserError(f"{path}: not a NIfTI file; expected .nii or .nii.gz") from error
    except Exception as error:  # a damaged header can make nibabel raise nearly anything
        raise UserError(f"{path}: unreadable NIfTI header ({_line(error)}); expected .nii or .nii.gz") from error
    if type(stored) in (nibabel.AnalyzeImage, nibabel.Spm99AnalyzeImage, nibabel.Spm2AnalyzeImage):
        raise UserError(
            f"{path}: an Analyze 7.5 volume, whose left and right are unknown; expected NIfTI: convert it with a tool "
            "that knows its orientation"
        )
    if not isinstance(stored, READABLE):
        raise UserError(f"{path}: a {type(stored).__name__}, not a NIfTI file; expected .nii or .nii.gz")
    dtype = stored.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        raise UserError(f"{path}: voxels of type {_line(dtype)}; expected real numbers, not colour or complex")
    if len(stored.shape) < 3 or min(stored.shape) < 1:
        raise UserError(f"{path}: {len(stored.shape)}-D of {sizes(stored.shape)} voxels; expected a 3-D volume")
    proxy: Any = stored.dataobj
    offset = proxy.offset  # the header's own is set to 0
    header: Any = stored.header
    if getattr(header, "is_single", False) and offset < header.sizeof_hdr:
        raise UserError(f"{path}: its voxels begin at byte {offset}, inside the header; expected byte 352")
    _check_size(stored, path)
    return stored


def _by_content(path: Path) -> Any:
    """The image of a .nii that is compressed, or of a .nii.gz that is not; None for all other files."""
    with path.open("rb") as start:
        compressed = start.read(2) == GZIP
    if not path.name.lower().endswith((".nii", ".nii.gz")) or compressed == path.name.lower().endswith(".gz"):
        return None
    file: Any = (gzip.open if compressed else open)(path, "rb")  # nibabel reads the voxels from it later
    (size,) = np.frombuffer(file.read(4), "<i4")
    file.seek(0)
    kind = nibabel.Nifti2Image if size in (540, np.int32(540).byteswap()) else nibabel.Nifti1Image
    return kind.from_file_map({"image": nibabel.FileHolder(str(path), file)}, mmap=False)


def _check_size(stored: Any, path: PathLike) -> None:
    """Raises a UserError if the file is too small for the voxels that its header announces."""
    needed = stored.get_data_dtype().itemsize
    for size in stored.shape:
        needed *= int(size)
    file = Path(stored.file_map["image"].filename or path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; expected the voxels of {path}")
    with file.open("rb") as opened:
        compressed = opened.read(2) == GZIP
    held = file.stat().st_size * (MOST_COMPRESSED if compressed else 1)
    if needed > held:
        raise UserError(
            f"{path}: cannot read the voxels, the file seems truncated: {file.stat().st_size} bytes for "
            f"{sizes(stored.shape)} voxels"
        )


def _numbers(
    stored: Any, path: PathLike, dtype: DTypeLike = np.float32, index: tuple[int, ...] | None = None
) -> np.ndarray:
    """The scaled values of the file as a type; with an index of the further axes, those of one volume."""
    try:
        with np.errstate(all="ignore"):
            if index is None and np.issubdtype(dtype, np.integer):  # floats have no room for large integers
                return np.asarray(stored.dataobj).astype(dtype)
            if index is None:
                return stored.get_fdata(dtype=dtype, caching="unchanged")
            return np.asarray(stored.dataobj[(..., *index)]).astype(dtype)
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory for {sizes(stored.shape)} voxels") from error
    except Exception as error:  # damaged data can make nibabel raise nearly anything
        raise UserError(f"{path}: cannot read the voxels, the file seems truncated ({_line(error)})") from error


def _line(error: object) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
