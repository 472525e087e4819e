"""Registers a moving scan to a fixed one of the other modality, from NIfTI files to files that other tools can apply.

  python -m f3r_jax.register --fixed=mr.nii.gz --moving=ct.nii.gz --output=out
  python -m f3r_jax.register --fixed=mr.nii.gz --moving=ct.nii.gz --output=out --checkpoint=runs/mrb
  python -m f3r_jax.register --pairs=data/pairs.csv --output=out

An affine step, then the network of a checkpoint if one is given, then refinement by gradient descent on this one pair.
`f3r_jax/register/output_files.py` lists what is written, and `f3r_jax/register/batch.py` what of many pairs.
`python -m f3r_jax.apply` carries the result to further images and points.
"""

import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.compilation_cache import keep_compiled_programs
from f3r_jax.common.errors import UserError
from f3r_jax.config import CT_WINDOW
from f3r_jax.data.preprocess import MODALITIES
from f3r_jax.ops.mind import PRESETS
from f3r_jax.register import batch, batch_summary, output_files, pair_spec, pipeline
from f3r_jax.register.pair_spec import Files, PairSpec

DEFAULT = pipeline.Settings()
USAGE = "--fixed=FILE --moving=FILE --output=FOLDER, or --pairs=FOLDER --output=FOLDER"

_FIXED = flags.DEFINE_string("fixed", None, "The scan whose grid the result lies on, NIfTI.")
_MOVING = flags.DEFINE_string("moving", None, "The scan that is warped, NIfTI.")
_PAIRS = flags.DEFINE_string("pairs", None, "Many pairs instead: pairs.csv, or a folder with it or Learn2Reg's JSON.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the result; with --pairs, for a folder a pair.")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace another result; with --pairs, those of other settings.")
_SIDES = {
    side: {
        "modality": flags.DEFINE_enum(f"{side}_modality", None, MODALITIES, f"Of the {side} scan; told by intensity."),
        "mask": flags.DEFINE_string(f"{side}_mask", None, f"Where the {side} scan may be compared, on its grid."),
        "labels": flags.DEFINE_string(f"{side}_labels", None, f"Label map on the {side} scan's grid, for scores."),
        "landmarks": flags.DEFINE_string(f"{side}_landmarks", None, f"CSV x,y,z in mm (RAS+) in the {side} scan."),
    }
    for side in ("fixed", "moving")
}
_AFFINE = flags.DEFINE_string(
    "affine", DEFAULT.affine, f"One of {', '.join(pipeline.AFFINE_STEPS)}, or a matrix file of ITK or ANTs."
)
_SPACING = flags.DEFINE_float(
    "spacing", None, "Voxel of the working grid, mm; by default 1, or the scans' finest edge where that is more."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a training run; without one, no network.")
_STEP = flags.DEFINE_integer("step", None, "Which checkpoint of the run; the newest by default.")
_REFINE = flags.DEFINE_bool("refine", DEFAULT.refine, "Refine by gradient descent on this pair.")
_ITERATIONS = flags.DEFINE_integer("iterations", None, "Of each level of the refinement, 80 by default.", lower_bound=1)
_LAM = flags.DEFINE_float("lam", DEFAULT.lam, "Weight of the gradient penalty in the refinement.", lower_bound=0.0)
_MIND = flags.DEFINE_enum("mind", DEFAULT.mind, list(PRESETS), "The refinement's descriptor.")
_DIFFEOMORPHIC = flags.DEFINE_bool(
    "diffeomorphic", DEFAULT.diffeomorphic, "Refine a stationary velocity field: no folding. Else --lam=0.4 is best."
)
_LEARN2REG = flags.DEFINE_bool("learn2reg", False, "Write the field in Learn2Reg's form too.")
_ORGANS = flags.DEFINE_list("organs", None, "Labels to score, as liver=1,spleen=2+3; by default all.")
_CT_WINDOW = flags.DEFINE_list("ct_window", [str(bound) for bound in CT_WINDOW], "HU that become 0 and 1.")


def main(argv: Sequence[str]) -> int:
    """Reads the flags, registers, writes and prints."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}, expected {USAGE}")
    _check_flags()
    keep_compiled_programs()
    output, command = Path(_OUTPUT.value), shlex.join(["python", "-m", "f3r_jax.register", *sys.argv[1:]])
    if _PAIRS.value is None:
        return _one(output, command)
    return _all(Path(_PAIRS.value), output, command)


def _one(output: Path, command: str) -> int:
    """Registers the pair of the flags."""
    output_files.check_folder(output, overwrite=_OVERWRITE.value)
    sides = {
        side: Files(flags.FLAGS[side].value, **{name: flag.value for name, flag in of_side.items()})
        for side, of_side in _SIDES.items()
    }
    pair = _task(**sides)
    network = pair_spec.network_of(pair.settings)
    pair_spec.check_pair(pair, network)
    note = functools.partial(print, flush=True)
    summary = pair_spec.register_pair(pair, output, network=network, command=command, note=note)
    print(output_files.table(summary))
    print(f"result: {output}, to look at: {output / 'report.html'}")
    return 0


def _all(source: Path, output: Path, command: str) -> int:
    """Registers the pairs of a table; 1 if one failed."""
    network = pair_spec.network_of(_settings())
    rows = batch.register_pairs(source, output, _task, network=network, overwrite=_OVERWRITE.value, command=command)
    print(batch_summary.format_totals(rows))
    print(f"result: {output}, to look at: {output / batch_summary.TABLE}", flush=True)
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed:
        print(f"failed: {row['name']}: {row['reason']}", file=sys.stderr)
    return 1 if failed else 0


def _check_flags() -> None:
    """Raises a UserError for flags that miss, or that don't go together."""
    of_one = [_FIXED, _MOVING, *(flag for of_side in _SIDES.values() for flag in of_side.values())]
    if _PAIRS.value is not None and (given := [flag.name for flag in of_one if flag.value is not None]):
        raise UserError(f"--{given[0]} with --pairs, expected the files and modalities in columns of {_PAIRS.value}")
    for flag in (_OUTPUT,) if _PAIRS.value is not None else (_FIXED, _MOVING, _OUTPUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing, expected {USAGE}")
    if _SPACING.value is not None and not _SPACING.value > 0:
        raise UserError(f"--spacing is {_SPACING.value}, expected mm above 0")
    if _CHECKPOINT.value is None and not _REFINE.value and _AFFINE.value == "none":
        raise UserError("--affine=none and --norefine without a --checkpoint leave nothing to do, expected one of them")


def _task(fixed: Files, moving: Files) -> PairSpec:
    return PairSpec(fixed, moving, _settings(), _organs(), _window(), _LEARN2REG.value)


def _settings() -> pipeline.Settings:
    return pipeline.Settings(
        affine=_AFFINE.value,
        spacing=_SPACING.value,
        checkpoint=Path(_CHECKPOINT.value) if _CHECKPOINT.value else None,
        step=_STEP.value,
        refine=_REFINE.value,
        iterations=_ITERATIONS.value,
        lam=_LAM.value,
        mind=_MIND.value,
        diffeomorphic=_DIFFEOMORPHIC.value,
    )


def _window() -> tuple[float, float]:
    try:
        low, high = map(float, _CT_WINDOW.value)
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise UserError(f"--ct_window is {','.join(_CT_WINDOW.value)}, expected two numbers such as -160,240")
    return low, high


def _organs() -> dict[str, tuple[int, ...]] | None:
    if _ORGANS.value is None:
        return None
    try:
        named = [part.split("=") for part in _ORGANS.value]
        return {name: tuple(int(value) for value in values.split("+")) for name, values in named}
    except ValueError as error:
        raise UserError(f"--organs is {','.join(_ORGANS.value)}, expected such as liver=1,kidneys=3+4") from error


if __name__ == "__main__":
    cli.run_main(main)
