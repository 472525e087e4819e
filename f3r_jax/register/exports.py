"""Copies of a result in other formats, on request: images as NRRD, MHA or MGZ, the transform as ITK's HDF5.

  warped.FORMAT, warped_labels.FORMAT   the same as the .nii.gz
  transform.h5                          affine and deformation as a composite, for 3D Slicer, ANTs and SimpleITK

A warped DICOM series or RTSTRUCT is not written. Letters: x y z voxels.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from f3r_jax.common.arrays import Matrix, WorldField
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import replacing
from f3r_jax.data import itk_formats, volumes
from f3r_jax.data.grids import Grid
from f3r_jax.data.nifti import PathLike
from f3r_jax.data.nifti_geometry import is_sheared
from f3r_jax.data.optional import simpleitk

OWN, TRANSFORM = "own", "h5"  # the moving scan's own format; the transform
IMAGES = ("nrrd", "mha", "mgz")
FORMATS = (OWN, *IMAGES, TRANSFORM)
TRANSFORM_FILE = "transform.h5"
FILES = (*(f"{name}.{kind}" for name in ("warped", "warped_labels") for kind in IMAGES), TRANSFORM_FILE)
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def resolved(formats: Sequence[str], moving: PathLike) -> tuple[str, ...]:
    """The formats, with `own` replaced by that of the moving scan; NIfTI needs no copy.

    Raises:
      UserError: an unknown format, or `own` of a DICOM series.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UserError(f"--format is {','.join(formats)}, found {unknown[0]!r}, expected some of {', '.join(FORMATS)}")
    own = volumes.format_of(moving) if OWN in formats else ""
    if own == "dicom":
        raise UserError(
            f"{moving}: a DICOM series, which is not written; expected --format of {', '.join(IMAGES)}, or none"
        )
    found = [own if name == OWN else name for name in formats]
    return tuple(dict.fromkeys(name for name in found if name != "nifti"))


def check(formats: Sequence[str], fixed: Grid, moving: PathLike) -> None:
    """Raises a UserError if a format cannot be written, before any work."""
    found = resolved(formats, moving)
    if set(found) - {"mgz"}:
        simpleitk("--format", ",".join(found))
        if is_sheared(fixed.affine):
            raise UserError(
                f"{fixed.path}: its axes are not orthogonal (gantry tilt?), so ITK cannot hold a result on its grid; "
                "expected no --format"
            )


def write_images(
    folder: Path, name: str, formats: Sequence[str], data: Shaped[np.ndarray, "x y z"], grid: Grid
) -> None:
    """Writes a volume on a grid in each of the formats."""
    for kind in set(IMAGES) & set(formats):
        volumes.write(folder / f"{name}.{kind}", data, grid.affine)


def write_transform(folder: Path, formats: Sequence[str], deformation: WorldField, matrix: Matrix, grid: Grid) -> None:
    """Writes the composite of a deformation on a grid, in mm, and of the matrix that follows it."""
    if TRANSFORM not in formats:
        return
    path = folder / TRANSFORM_FILE
    sitk = simpleitk(path, "a transform in HDF5")
    vectors = (deformation * (-1, -1, 1)).astype(np.float64)[:, :, :, None]
    field = sitk.DisplacementFieldTransform(itk_formats.to_memory(vectors, grid.affine, str(path)))
    lps = FLIP @ matrix @ FLIP
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(lps[:3, :3].ravel().tolist())
    affine.SetTranslation(lps[:3, 3].tolist())
    with replacing(path) as temporary:
        sitk.WriteTransform(sitk.CompositeTransform([affine, field]), str(temporary))
