"""Applies a registration's transform to another image, label map or set of points.

  python -m f3r_jax.apply --transform=out --image=ct2.nii.gz --output=ct2_on_mr.nii.gz
  python -m f3r_jax.apply --transform=out --labels=ct_seg.nii.gz --output=seg_on_mr.nii.gz
  python -m f3r_jax.apply --transform=out --points=ct_points.csv --output=points_in_mr.csv

Inputs are mapped from the moving scan to the fixed scan; with --inverse from the fixed scan to the moving scan.
--transform is a folder that `python -m f3r_jax.register` wrote. For images and labels it can also be a displacement
field in ITK's or ANTs' format.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_writable, errors_of
from f3r_jax.data import landmarks, nifti, transforms, volumes
from f3r_jax.data.nifti import Grid
from f3r_jax.data.nifti_geometry import check_axes
from f3r_jax.register import output_files

FORWARD, INVERSE = "displacement.nii.gz", "inverse_displacement.nii.gz"

_TRANSFORM = flags.DEFINE_string("transform", None, "Folder of a registration, or a displacement field.")
_IMAGE = flags.DEFINE_string("image", None, "Image to warp, NIfTI; trilinear interpolation.")
_LABELS = flags.DEFINE_string("labels", None, "Label map to warp, NIfTI; nearest-neighbour interpolation.")
_POINTS = flags.DEFINE_string("points", None, "CSV of points with columns x, y, z in mm, RAS+.")
_OUTPUT = flags.DEFINE_string("output", None, "Output file, of the same type as the input.")
_REFERENCE = flags.DEFINE_string("reference", None, "NIfTI that defines the output grid; by default the field's grid.")
_INVERSE = flags.DEFINE_bool("inverse", False, "Map from the fixed scan to the moving scan.")
_UNORIENTED = flags.DEFINE_string(
    "unoriented", None, "Axes of a NIfTI without orientation codes, such as RAS, or LPS as ITK reads it; else refused."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output file.")
USAGE = "expected --transform=FOLDER, one of --image, --labels and --points, and --output=FILE"
GROUPS = {
    "What to apply": ("transform", "inverse"),
    "What to warp (one of them)": ("image", "labels", "points", "unoriented"),
    "Output": ("output", "reference", "overwrite"),
}


def main(argv: Sequence[str]) -> int:
    """Applies the transform of the flags to the input and writes the output."""
    flag_of = {"image": _IMAGE, "labels": _LABELS, "points": _POINTS}
    given = {name: flag.value for name, flag in flag_of.items() if flag.value is not None}
    if argv[1:] or len(given) != 1 or _TRANSFORM.value is None or _OUTPUT.value is None:
        raise UserError(USAGE)
    ((kind, path),) = given.items()
    output = Path(_OUTPUT.value)
    ending = (".csv",) if kind == "points" else (".nii", ".nii.gz")
    if not output.name.endswith(ending):
        raise UserError(f"{output}: expected a name ending in {' or '.join(ending)}")
    with errors_of(output, "write the output"):
        if output.exists() and not _OVERWRITE.value:
            raise UserError(f"{output}: exists, expected a new file, or --overwrite")
        if output.is_dir():
            raise UserError(f"{output}: is a folder, expected the name of a file")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder, expected one for {output.name}")
    check_writable(output.parent)
    if _UNORIENTED.value is not None:
        check_axes(_UNORIENTED.value, "--unoriented")
    transform, inverse = Path(_TRANSFORM.value), _INVERSE.value
    if kind == "points":
        if _REFERENCE.value is not None:
            raise UserError("--reference is for images and labels, expected none with --points")
        carry_points(path, transform, output, inverse=inverse)
    else:
        field, grid = nifti.read_field(field_file(transform, inverse=inverse))
        for file in filter(None, (path, _REFERENCE.value)):
            for line in volumes.notes_on(file, unoriented=_UNORIENTED.value):
                print(f"note: {line}")
        with errors_of(output, "write the output"):
            carry_volume(
                path,
                field,
                grid,
                output,
                reference=_REFERENCE.value,
                nearest=kind == "labels",
                unoriented=_UNORIENTED.value,
            )
    print(f"written: {output}")
    return 0


def field_file(transform: Path, *, inverse: bool) -> Path:
    """The file of the field from the fixed frame to the moving frame; with `inverse`, from moving to fixed.

    Warping is a backward warp: the field from fixed to moving brings images of the moving scan to the fixed grid.

    Raises:
      UserError: no such folder or file, or `transform` is a field file and `inverse` is set.
    """
    if transform.is_dir():
        name = INVERSE if inverse else FORWARD
        for file in (name, output_files.SUMMARY):
            if not (transform / file).is_file():
                raise UserError(f"{transform}: no {file} found, expected the folder of a registration that is complete")
        return transform / name
    if not transform.is_file():
        raise UserError(f"{transform}: no such file or folder, expected the folder of a registration")
    if inverse:
        raise UserError(f"{transform}: a field file maps images one way only; points and --inverse need the folder")
    return transform


def carry_points(path: str, transform: Path, output: Path, *, inverse: bool) -> None:
    """Maps the points of a CSV to the fixed frame, or with `inverse` to the moving frame, and writes them."""
    points = landmarks.read_landmarks(Path(path))
    back, there = (partial(_displaced, *nifti.read_field(field_file(transform, inverse=way))) for way in (True, False))
    output_files.write_points(output, there(points) if inverse else transforms.solve(there, points, back(points))[0])


def _displaced(field: np.ndarray, grid: Grid, points: np.ndarray) -> np.ndarray:
    return points + transforms.sample_field(field, grid, points)


def carry_volume(
    path: str,
    field: np.ndarray,
    grid: Grid,
    output: Path,
    *,
    reference: str | None,
    nearest: bool,
    unoriented: str | None = None,
) -> None:
    """Warps an image or label map to the grid of the field or of `reference`, and writes it."""
    volume = (volumes.read_labels if nearest else volumes.read)(path, unoriented=unoriented)
    if reference is not None:
        target = volumes.read_stored_grid(reference, unoriented=unoriented)
        field, grid = transforms.resample_field(field, grid, target), target
    outside = 0 if nearest else float(volume.data.min())
    warped = transforms.warp_image(volume, field, grid, order=0 if nearest else 1, outside=outside)
    nifti.write(output, warped, grid.affine)


if __name__ == "__main__":
    cli.run_main(main, GROUPS)
