"""Registers a moving scan to a fixed scan of the other modality; reads and writes NIfTI and other formats.

  python -m f3r_jax.register --fixed=mr.nii.gz --moving=ct.nii.gz --output=out
  python -m f3r_jax.register --fixed=mr.nii.gz --moving=ct.nii.gz --output=out --checkpoint=runs/mrb
  python -m f3r_jax.register --pairs=data/pairs.csv --output=out
  python -m f3r_jax.register --demo

The steps are affine registration, the network of `--checkpoint` or the one in the package, and instance optimisation
by gradient descent. `f3r_jax/register/output_files.py` lists the output files of one pair, `f3r_jax/register/batch.py`
those of many pairs. `python -m f3r_jax.apply` applies the transform to further images, label maps and points.
"""

import dataclasses
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.errors import UserError
from f3r_jax.config import CT_WINDOW
from f3r_jax.register import choices

if TYPE_CHECKING:
    from f3r_jax.register.pair_spec import Files, PairSpec
    from f3r_jax.register.pipeline import Settings

USAGE = "--fixed=FILE --moving=FILE --output=FOLDER, or --pairs=FOLDER --output=FOLDER"

_FIXED = flags.DEFINE_string("fixed", None, "Fixed scan: NIfTI, DICOM, NRRD, MHA, MGZ; the result is on its grid.")
_MOVING = flags.DEFINE_string("moving", None, "Moving scan, of the same formats; it is warped.")
_PAIRS = flags.DEFINE_string("pairs", None, "Table of many pairs: pairs.csv, or a folder with it or Learn2Reg's JSON.")
_ROWS = flags.DEFINE_string(
    "rows", None, "With --pairs, only these rows, such as 11-20. Such commands can share --output: launch/cohort.py."
)
_DEMO = flags.DEFINE_bool("demo", False, f"Make a phantom pair and register it, in --output or {choices.DEMO_FOLDER}.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the result; with --pairs, one subfolder per pair.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a result; with --pairs, results of other settings.")
_SIDES = {
    side: {
        "modality": flags.DEFINE_enum(
            f"{side}_modality", None, choices.MODALITIES, f"Of the {side} scan; by default detected."
        ),
        "mask": flags.DEFINE_string(f"{side}_mask", None, f"Mask of voxels to compare, in the {side} scan's frame."),
        "labels": flags.DEFINE_string(f"{side}_labels", None, f"Label map on the {side} scan's grid."),
        "landmarks": flags.DEFINE_string(f"{side}_landmarks", None, f"Points in mm in the {side} scan, CSV or Slicer."),
        "exclude": flags.DEFINE_string(f"{side}_exclude_mask", None, f"Mask of voxels of the {side} scan to ignore."),
    }
    for side in ("fixed", "moving")
}
_EXTRA = {
    side: flags.DEFINE_list(f"{side}_extra", [], f"Further sequences in the frame of the {side} scan.")
    for side in ("fixed", "moving")
}
_PARTS = {
    "rigid": flags.DEFINE_string("rigid_mask", None, "Label map on the fixed scan's grid: its parts move rigidly."),
    "preserve": flags.DEFINE_string("preserve_mask", None, "The same: its parts keep their volume."),
}
_LABELS_WEIGHT = flags.DEFINE_float(
    "labels_weight", 0.0, "Weight of the labels' 1 - Dice in instance optimisation, such as 0.1; 0: scores only."
)
_LABELS_DRIVE = flags.DEFINE_list("labels_drive", None, "Labels with that weight, such as 1,2; by default all shared.")
_LANDMARKS_WEIGHT = flags.DEFINE_float(
    "landmarks_weight", 0.0, "Weight of the landmarks' squared distance, cm^2, such as 0.1; 0: scores only."
)
_ROBUST = flags.DEFINE_bool("robust", False, "Reduce the weight of places that match far worse than the mean.")
_UNORIENTED = flags.DEFINE_string(
    "unoriented", None, "Axes of scans without orientation codes, such as RAS, or LPS as ITK reads them; else refused."
)
_CHECK_MODALITY = flags.DEFINE_bool(
    "check_modality", True, "Refuse intensities that contradict a stated modality, such as a CT that is not in HU."
)
_AFFINE = flags.DEFINE_string(
    "affine",
    choices.AFFINE,
    f"Affine step: {', '.join(choices.AFFINE_STEPS)}, or a matrix file: ITK, ANTs, LTA, flirt:FILE, greedy:FILE.",
)
_SPACING = flags.DEFINE_float(
    "spacing", None, "Voxel size of the working grid, mm; default: smallest edge, at least 1."
)
_MEMORY = flags.DEFINE_float("memory", None, "GB for the default working grid; default: half of what is free, up to 4.")
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Training run, weights (.npz), `builtin` or `none`; default: builtin, if only scans take part."
)
_STEP = flags.DEFINE_integer("step", None, "Step of the checkpoint; by default the newest.")
_REFINE = flags.DEFINE_bool("refine", choices.REFINE, "Run instance optimisation (gradient descent on this pair).")
_ITERATIONS = flags.DEFINE_integer(
    "iterations", None, "Iterations per level of instance optimisation, 80 by default.", lower_bound=1
)
_LAM = flags.DEFINE_float(
    "lam", choices.LAM, "Weight of the gradient penalty in instance optimisation.", lower_bound=0.0
)
_MIND = flags.DEFINE_enum("mind", choices.PRESET, choices.MIND, "MIND descriptor of instance optimisation.")
_DIFFEOMORPHIC = flags.DEFINE_bool(
    "diffeomorphic", choices.DIFFEOMORPHIC, "Optimise a stationary velocity field, which does not fold; else --lam=0.4."
)
_FORMAT = flags.DEFINE_list(
    "format", [], f"Further formats of the result: {', '.join(choices.FORMATS)} (own: the moving scan's own)."
)
_LEARN2REG = flags.DEFINE_bool("learn2reg", False, "Also write the field in Learn2Reg's format.")
_UNCERTAINTY = flags.DEFINE_bool(
    "uncertainty", False, "Also write the spread of the displacement over other settings and positions, mm."
)
_VIEWER = flags.DEFINE_bool("viewer", True, "Embed the interactive viewer in the report, 2 to 10 MB.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Check flags and files, register nothing and write nothing.")
_STRICT = flags.DEFINE_bool("strict", False, "Exit status 4 if the verdict on a registration is `failed`.")
_ORGANS = flags.DEFINE_list("organs", None, "Labels to score, such as liver=1,spleen=2+3; by default all.")
_CT_WINDOW = flags.DEFINE_list(
    "ct_window", [str(bound) for bound in CT_WINDOW], "CT window: the HU that are scaled to 0 and 1."
)
flags.DEFINE_bool("json", False, cli.JSON_HELP)
GROUPS = {
    "Scans": ("fixed", "moving", "pairs", "rows", "demo"),
    "What is known of the scans": (
        *(f"{side}_{what}" for what in ("modality", "mask", "labels", "landmarks") for side in ("fixed", "moving")),
        "check_modality",
        "unoriented",
    ),
    "What takes part": (
        *("labels_weight", "labels_drive", "landmarks_weight", "fixed_extra", "moving_extra", "fixed_exclude_mask"),
        *("moving_exclude_mask", "rigid_mask", "preserve_mask", "robust"),
    ),
    "Affine step and working grid": ("affine", "spacing", "memory", "ct_window"),
    "Network": ("checkpoint", "step"),
    "Instance optimisation": ("refine", "iterations", "lam", "mind", "diffeomorphic"),
    "Output": (
        *("output", "overwrite", "organs", "format", "learn2reg", "uncertainty", "viewer", "strict", "json", "dry_run"),
    ),
}


def main(argv: Sequence[str]) -> int:
    """Registers the pair or pairs of the flags, writes the results and prints the scores."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}, expected {USAGE}")
    _check_flags()
    from f3r_jax.register import command, demo, flag_values

    line = shlex.join(["python", "-m", "f3r_jax.register", *sys.argv[1:]])
    shared = command.Options(line, overwrite=_OVERWRITE.value, strict=_STRICT.value, dry_run=_DRY_RUN.value)
    if _PAIRS.value is not None:
        source, output = Path(_PAIRS.value), Path(_required(_OUTPUT))
        rows, axes = flag_values.rows(_ROWS.value), _UNORIENTED.value
        return command.register_all(source, output, _task, _settings(), shared, unoriented=axes, rows=rows)
    if _DEMO.value:
        folder = Path(_OUTPUT.value or choices.DEMO_FOLDER)
        fixed, moving, output = demo.prepare(folder, overwrite=_OVERWRITE.value)
    else:
        fixed, moving, output = _files_of(_FIXED), _files_of(_MOVING), Path(_required(_OUTPUT))
    return command.register_one(_task(fixed, moving), output, shared)


def _check_flags() -> None:
    """Raises a UserError for missing or contradictory flags."""
    of_side = (flag for flags_of_side in (*_SIDES.values(), _PARTS) for flag in flags_of_side.values())
    of_one: list[flags.FlagHolder] = [_FIXED, _MOVING, *of_side, *_EXTRA.values()]
    if _PAIRS.value is not None and (given := [flag.name for flag in of_one if flag.value]):
        raise UserError(f"--{given[0]} with --pairs, expected files and modalities in the columns of {_PAIRS.value}")
    if _ROWS.value is not None and _PAIRS.value is None:
        raise UserError("--rows without --pairs, expected the table that has the rows")
    if _DEMO.value and _DRY_RUN.value:
        raise UserError("--dry_run with --demo, which makes scans; expected only one of them")
    if _DEMO.value and (given := [flag.name for flag in (*of_one, _PAIRS) if flag.value]):
        raise UserError(f"--{given[0]} with --demo, which makes its own scans; expected only one of them")
    for flag in () if _DEMO.value else (_OUTPUT,) if _PAIRS.value is not None else (_FIXED, _MOVING, _OUTPUT):
        _required(flag)
    for name, value, unit in (("spacing", _SPACING.value, "mm"), ("memory", _MEMORY.value, "GB")):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} is {value}, expected {unit} above 0")
    if not math.isfinite(_LAM.value):
        raise UserError(f"--lam is {_LAM.value}, expected a number of 0 or more")
    if _UNORIENTED.value is not None:
        from f3r_jax.data.nifti_geometry import check_axes

        check_axes(_UNORIENTED.value, "--unoriented")
    if _CHECKPOINT.value in (None, choices.NO_NETWORK) and not _REFINE.value and _AFFINE.value == "none":
        raise UserError("nothing to do: --affine=none --norefine needs a --checkpoint")
    if _UNCERTAINTY.value and not _REFINE.value:
        raise UserError("--uncertainty with --norefine, expected instance optimisation: it is repeated in other ways")


def _required(flag: flags.FlagHolder[str | None]) -> str:
    """The value of a flag; raises a UserError if it is missing."""
    if not flag.value:
        raise UserError(f"--{flag.name} is missing, expected {USAGE}")
    return flag.value


def _files_of(scan: flags.FlagHolder[str | None]) -> "Files":
    """The files of the scan of `--fixed` or `--moving`."""
    from f3r_jax.register.pair_spec import Files

    of_side, held = _SIDES[scan.name], _PARTS if scan.name == "fixed" else {}
    return Files(
        _required(scan),
        of_side["modality"].value,
        mask=of_side["mask"].value,
        labels=of_side["labels"].value,
        landmarks=of_side["landmarks"].value,
        exclude=of_side["exclude"].value,
        extra=tuple(_EXTRA[scan.name].value or ()),
        rigid=held["rigid"].value if held else None,
        preserve=held["preserve"].value if held else None,
    )


def _task(fixed: "Files", moving: "Files") -> "PairSpec":
    """The task of the fixed and the moving files, with the settings of the flags."""
    from f3r_jax.register import flag_values, pair_spec

    fixed, moving = (
        dataclasses.replace(files, unoriented=_UNORIENTED.value, check_modality=_CHECK_MODALITY.value)
        for files in (fixed, moving)
    )
    organs, window, formats = flag_values.organs(_ORGANS.value), flag_values.window(_CT_WINDOW.value), _FORMAT.value
    last = (_LEARN2REG.value, _UNCERTAINTY.value, tuple(formats), _VIEWER.value)
    return pair_spec.PairSpec(fixed, moving, _settings(fixed, moving), organs, window, *last)


def _settings(*pair: "Files") -> "Settings":
    """The settings of the flags; a pair's files decide whether the default network is used."""
    from f3r_jax.register import network_choice, pipeline
    from f3r_jax.register.guidance import guidance_of

    settings = pipeline.Settings(
        affine=_AFFINE.value,
        spacing=_SPACING.value,
        memory=_MEMORY.value,
        step=_STEP.value,
        refine=_REFINE.value,
        iterations=_ITERATIONS.value,
        lam=_LAM.value,
        mind=_MIND.value,
        diffeomorphic=_DIFFEOMORPHIC.value,
        guidance=guidance_of(_LABELS_WEIGHT.value, _LABELS_DRIVE.value, _LANDMARKS_WEIGHT.value, _ROBUST.value),
    )
    return network_choice.with_network(settings, _CHECKPOINT.value or None, pair)


def console() -> None:
    """The console script."""
    cli.run_main(main, GROUPS)


if __name__ == "__main__":
    console()
