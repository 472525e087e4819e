"""Applies a registration's transform to another image, series, label map or set of points.

  python -m f3r_jax.apply --transform=out --image=ct2.nii.gz --output=ct2_on_mr.nii.gz
  python -m f3r_jax.apply --transform=out --labels=ct_seg.nii.gz --output=seg_on_mr.nii.gz
  python -m f3r_jax.apply --transform=out --points=ct_points.csv --output=points_in_mr.csv

Inputs are mapped from the moving scan to the fixed scan; with --inverse from the fixed scan to the moving scan.
--transform is a folder that `python -m f3r_jax.register` wrote. It can also be a field or a matrix in the formats of
ITK and ANTs, or a list of transforms in the order in which the input passes them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import flags

from f3r_jax.common import cli, events
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_writable, errors_of
from f3r_jax.register import choices

_TRANSFORM = flags.DEFINE_list("transform", None, "Folder of a registration, field or matrix file, or a list of them.")
_IMAGE = flags.DEFINE_string("image", None, "Image or series to warp.")
_LABELS = flags.DEFINE_string("labels", None, "Label map to warp.")
_POINTS = flags.DEFINE_string("points", None, "Points in mm: CSV or TSV with x, y, z in RAS+, .fcsv or .mrk.json.")
_OUTPUT = flags.DEFINE_string("output", None, "Output file; its name decides the format.")
_REFERENCE = flags.DEFINE_string("reference", None, "Image that defines the output grid; by default the field's grid.")
_INTERPOLATION = flags.DEFINE_enum(
    "interpolation",
    None,
    choices.INTERPOLATIONS,
    "By default linear for images, nearest for labels; label smooths the outlines of labels.",
)
_OUTSIDE = flags.DEFINE_float(
    "outside", None, "Value outside the input; by default its lowest value, 0 for labels and vectors."
)
_INVERSE = flags.DEFINE_bool("inverse", False, "Map from the fixed scan to the moving scan.")
_UNORIENTED = flags.DEFINE_string(
    "unoriented", None, "Axes of a file without orientation, such as RAS, or LPS as ITK reads it; else refused."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an existing output file.")
flags.DEFINE_bool("json", False, cli.JSON_HELP)
USAGE = "expected --transform=FOLDER, one of --image, --labels and --points, and --output=FILE"
GROUPS = {
    "What to apply": ("transform", "inverse"),
    "What to warp (one of them)": ("image", "labels", "points", "unoriented"),
    "How": ("interpolation", "outside"),
    "Output": ("output", "reference", "overwrite", "json"),
}


def main(argv: Sequence[str]) -> int:
    """Applies the transform of the flags to the input and writes the output."""
    flag_of = {"image": _IMAGE, "labels": _LABELS, "points": _POINTS}
    given = {name: flag.value for name, flag in flag_of.items() if flag.value is not None}
    if argv[1:] or len(given) != 1 or not _TRANSFORM.value or _OUTPUT.value is None:
        raise UserError(USAGE)
    ((kind, path),) = given.items()
    output = Path(_OUTPUT.value)
    check_output(output, kind)
    if kind == "points":
        carry_points(path, output)
    else:
        carry_volume(path, output, kind)
    events.emit(events.RESULT, f"written: {output}", of="file", file=output)
    return 0


def check_output(output: Path, kind: str) -> None:
    """Raises a UserError for a flag that does not fit, or an output file that cannot be written."""
    from f3r_jax.data import points, volumes
    from f3r_jax.data.nifti_geometry import check_axes

    (points if kind == "points" else volumes).check_name(output)
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
    if kind == "points":
        for flag in (_REFERENCE, _INTERPOLATION, _OUTSIDE):
            if flag.value is not None:
                raise UserError(f"--{flag.name} is for images and labels, expected none with --points")


def carry_points(path: str, output: Path) -> None:
    """Maps a file of points and writes it."""
    from f3r_jax.data import points
    from f3r_jax.register import transform_files

    read = points.read_points(Path(path))
    mapped = transform_files.carry_points(_TRANSFORM.value or (), read.points, inverse=_INVERSE.value)
    points.write_points(output, mapped, like=read)


def carry_volume(path: str, output: Path, kind: str) -> None:
    """Warps an image, series or label map to the grid of the chain or of the reference, and writes it.

    Raises:
      UserError: the input is not a volume or series, or the labels are not whole numbers.
    """
    from f3r_jax.data import chains, series, volumes
    from f3r_jax.register import transform_files

    interpolation, unoriented, reference = _interpolation(kind), _UNORIENTED.value, _REFERENCE.value
    chain = transform_files.read_chain(_TRANSFORM.value or (), inverse=_INVERSE.value)
    for file in filter(None, (path, reference)):
        for line in volumes.notes_on(file, unoriented=unoriented):
            events.line(f"{events.NOTE}{line}")
    with errors_of(output, "write the output"):
        stored = volumes.open_volume(path, unoriented=unoriented)
        if reference is None:
            grid = chains.target_grid(chain)
        else:
            grid = volumes.open_volume(reference, unoriented=unoriented).grid
        axes = stored.shape[3:]
        series.check_format(output, axes)
        stored, outside = series.prepared(stored, _OUTSIDE.value, labels=kind == "labels")
        warp = partial(chains.warp_stored, stored, chain=chain, grid=grid, interpolation=interpolation, outside=outside)
        series.write(output, grid, axes, stored.dtype, lambda index: warp(index or None))


def _interpolation(kind: str) -> str:
    """The interpolation of the flag, or the default of the kind of input."""
    from f3r_jax.data import sampling

    allowed = sampling.LABELS if kind == "labels" else sampling.IMAGE
    if _INTERPOLATION.value is None:
        return "nearest" if kind == "labels" else "linear"
    if _INTERPOLATION.value not in allowed:
        raise UserError(f"--interpolation is {_INTERPOLATION.value}, expected {' or '.join(allowed)} with --{kind}")
    return _INTERPOLATION.value


def console() -> None:
    """The console script."""
    cli.run_main(main, GROUPS)


if __name__ == "__main__":
    console()
