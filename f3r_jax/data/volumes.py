"""Reading and writing of volumes of any format: NIfTI, MGH, NRRD, MetaImage, DICOM; also images in memory.

The format is found from the content and from the name. Letters: x y z voxels along the axes of a RAS+ grid.
"""

from pathlib import Path

import numpy as np

from f3r_jax.common.errors import UserError
from f3r_jax.data import dicom, itk_formats, mgh, nifti, stored
from f3r_jax.data.grids import Affine, Grid, Image, canonical_grid
from f3r_jax.data.nifti_geometry import PathLike
from f3r_jax.data.stored import StoredVolume

NIFTI, MGH = (".nii", ".nii.gz"), (".mgz", ".mgh")
WRITTEN = {"nifti": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha", "mgz": ".mgz"}  # format: ending of its files


def open_volume(path: PathLike, *, unoriented: str | None = None) -> StoredVolume:
    """Reads and checks the header of a volume or a series of volumes of any format; voxels are not read.

    `unoriented` declares the axes of files without orientation, such as "RAS".

    Raises:
      UserError: a damaged file, an unknown format, or a package that is missing.
    """
    path = Path(path)
    if path.name.lower().endswith(itk_formats.SUFFIXES):
        return itk_formats.open_volume(path, unoriented=unoriented)
    named_otherwise = path.name.lower().endswith((*NIFTI, *MGH))
    if path.is_dir() or (not named_otherwise and path.is_file() and dicom.is_dicom(path)):
        return dicom.open_volume(path)
    return nifti.open_volume(path, unoriented=unoriented)


def read(path: PathLike, *, unoriented: str | None = None) -> Image:
    """Reads a volume as float32; NaN is padding. Raises a UserError for anything but a 3-D volume with contrast."""
    return stored.image_of(open_volume(path, unoriented=unoriented))


def read_labels(path: PathLike, *, unoriented: str | None = None) -> Image:
    """Reads a label map as uint8, int16 or int32; raises a UserError for values that are not whole numbers."""
    return stored.labels_of(open_volume(path, unoriented=unoriented))


def read_mask(path: PathLike, *, unoriented: str | None = None) -> tuple[Image, str | None]:
    """Reads a mask, above 0 inside, and a line if it was soft; raises a UserError for other values."""
    return stored.mask_of(open_volume(path, unoriented=unoriented))


def read_grid(path: PathLike, *, unoriented: str | None = None) -> Grid:
    """Reads the canonical shape and affine from the header, and checks all that needs no voxels."""
    return canonical_grid(read_stored_grid(path, unoriented=unoriented))


def read_stored_grid(path: PathLike, *, unoriented: str | None = None) -> Grid:
    """Like `read_grid`, but with the axes as stored: for results that must match the file voxel by voxel."""
    volume = open_volume(path, unoriented=unoriented)
    stored.check_3d(volume)
    return volume.grid


def notes_on(path: PathLike, *, unoriented: str | None = None) -> tuple[str, ...]:
    """Lines that a user should know about the header."""
    return open_volume(path, unoriented=unoriented).notes


def format_of(path: PathLike) -> str:
    """The format of a file by its name: a key of `WRITTEN`; "dicom" for all other names."""
    name = Path(path).name.lower()
    kinds = {"nifti": NIFTI, "nrrd": itk_formats.NRRD, "mha": itk_formats.META, "mgz": MGH}
    return next((kind for kind, endings in kinds.items() if name.endswith(endings)), "dicom")


def check_name(path: Path) -> None:
    """Raises a UserError for a name whose format is not written."""
    if not path.name.lower().endswith((*NIFTI, *MGH, *itk_formats.SUFFIXES)):
        endings = ", ".join((*NIFTI, *list(WRITTEN.values())[1:]))
        raise UserError(f"{path}: unknown format; expected a name ending in one of {endings}")


def write(path: PathLike, data: np.ndarray, affine: Affine) -> None:
    """Writes a volume in the format of the file's name, under a temporary name first.

    Raises:
      UserError: an unknown ending, a missing package, or a format that cannot hold the volume.
    """
    path = Path(path)
    check_name(path)
    kind = format_of(path)
    if kind == "nifti":
        nifti.write(path, data, affine, intent="vector" if data.ndim == 5 else "none")
    elif kind == "mgz":
        mgh.write(path, data, affine)
    else:
        itk_formats.write(path, data, affine)
