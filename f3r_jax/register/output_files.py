"""The output files of a registration: images, transforms, scores, figures and an HTML report.

  warped.nii.gz                the moving scan on the fixed scan's grid, interpolated once
  displacement.nii.gz          the whole transform in ITK's and ANTs' format: fixed grid, mm, LPS, affine included
  deformation.nii.gz, affine.txt   its two parts; a point of the fixed scan goes through the deformation first
  inverse_displacement.nii.gz  from the moving scan's frame to the fixed scan's frame
  jacobian.nii.gz              Jacobian determinant of the deformation without its affine part
  uncertainty.nii.gz           on request: the spread of the displacement in mm
  warped_labels.nii.gz, warped_landmarks.csv   if the moving scan has labels or landmarks
  warped.nrrd, transform.h5 and others   on request, see `exports.py`
  learn2reg_displacement.nii.gz    on request: in voxels of the fixed grid, (x y z 3)
  report.html (`page.py`, `viewer.py`), overlay.png, checkerboard.png, deformation.png, uncertainty.png, summary.json

All files are written to a temporary folder and moved at the end, `summary.json` last (`common/result_folder.py`). A
folder with a `summary.json` therefore holds a complete result. Letters: x y z voxels.
"""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from f3r_jax.common import files
from f3r_jax.common.arrays import LabelMap
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import write_text
from f3r_jax.data import itk_affine, nifti, resample, transforms
from f3r_jax.data.jacobian import jacobian_on
from f3r_jax.data.nifti import Image
from f3r_jax.data.points import write_points
from f3r_jax.data.transforms import Transform
from f3r_jax.evaluate import metrics
from f3r_jax.ops.threads import on_same_device
from f3r_jax.register import drawing, exports, page, scans, verdict
from f3r_jax.register.guidance_report import separate, table_lines
from f3r_jax.register.pipeline import RegistrationResult
from f3r_jax.register.scans import OrganLabels, Scan
from f3r_jax.register.uncertainty import Uncertainty

SUMMARY, LEARN2REG, JACOBIAN = "summary.json", "learn2reg_displacement.nii.gz", "jacobian.nii.gz"
UNCERTAINTY = "uncertainty.nii.gz"
LARGE = 2**24  # voxels: the field replaces the deformation in memory, which waits until it is written
FIGURES = ("overlay.png", "checkerboard.png", "deformation.png", "uncertainty.png")
FILES = (
    "warped.nii.gz",
    "displacement.nii.gz",
    "affine.txt",
    "deformation.nii.gz",
    "inverse_displacement.nii.gz",
    JACOBIAN,
    UNCERTAINTY,
    "warped_labels.nii.gz",
    "warped_landmarks.csv",
    LEARN2REG,
    *exports.FILES,
    *FIGURES,
    "report.html",
    SUMMARY,
)


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises a UserError if the path is a file, or a folder with a result that may not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder for the result")
    there = [name for name in FILES if (folder / name).exists()]
    # Earlier versions could leave files without the summary when they were killed; the first of them was always there.
    unfinished = SUMMARY not in there and FILES[0] in there
    if there and not (overwrite or unfinished):
        raise UserError(f"{folder}: holds another result ({there[0]}), expected a new folder, or --overwrite")


def stored_summary(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The content of a folder's `summary.json` if its settings are `settings`, else None."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        return summary if summary["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write(
    folder: Path,
    fixed: Scan,
    moving: Scan,
    outcome: RegistrationResult,
    *,
    organs: OrganLabels | None,
    spread: Uncertainty | None,
    learn2reg: bool,
    facts: Mapping[str, Any],
    formats: Sequence[str] = (),
    viewer: bool = True,
) -> dict[str, Any]:
    """Writes all files of a result to a folder and returns the content of `summary.json`, including `facts`.

    `organs` are scored and drawn, if there are any. `spread` is the uncertainty on the working grid, or None.

    Raises:
      UserError: `learn2reg` is set and the scans do not share a grid.
    """
    start, transform = time.perf_counter(), outcome.transform
    with background_writes() as save:
        drawn = save(drawing.draw, folder, fixed, moving, outcome, organs, spread, viewer)
        warped_labels = _write_volumes(folder, fixed, moving, transform, formats, learn2reg=learn2reg, save=save)
        inverse, residual = transforms.inverse(transform)
        back = scans.no_finer(moving.image.grid, transform.grid.spacing.min())
        save(nifti.write_field, folder / "inverse_displacement.nii.gz", transforms.field_on(inverse, back), back.affine)
        if moving.landmarks is not None:
            points = transforms.to_fixed(transform, inverse, moving.landmarks)
            write_points(folder / "warped_landmarks.csv", points)
        found = {
            **_scores(fixed, moving, transform, warped_labels, organs, outcome.guidance.driving),
            **outcome.guidance.summary(),
            "similarity": outcome.similarity,
            "folding_percent": outcome.folding_percent,
            "nondiffeomorphic_percent": outcome.nondiffeomorphic_percent,
            "sd_log_jacobian": metrics.sd_log_jacobian(transform.displacement),
            "inverse_residual_voxels": residual,
            "verdict": None if outcome.verdict is None else outcome.verdict.to_json(),
        }
        if spread is not None:
            volume = resample.resample(Image(spread, transform.grid.affine), fixed.stored)
            save(nifti.write, folder / UNCERTAINTY, volume, fixed.stored.affine)
            found["uncertainty_mm"] = {"median": float(np.median(spread)), "p95": float(np.percentile(spread, 95))}
    seconds = outcome.seconds | {"writing": time.perf_counter() - start}
    found["seconds"] = seconds | {"total": sum(seconds.values())}
    summary = {name: files.json_safe(value) for name, value in {**found, **facts}.items()}
    images = [folder / name for name in FIGURES if (folder / name).exists()]
    write_text(folder / "report.html", page.page(summary, images, drawn.result()))
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _write_volumes(
    folder: Path,
    fixed: Scan,
    moving: Scan,
    transform: Transform,
    formats: Sequence[str],
    *,
    learn2reg: bool,
    save: Callable[..., Future[Any]],
) -> LabelMap | None:
    """Writes the matrix and all volumes on the fixed scan's grid; returns the warped labels or None."""
    grid = fixed.stored
    if learn2reg:
        nifti.check_same_grid(fixed.image, moving.image)
        nifti.write(folder / LEARN2REG, transforms.learn2reg_field(transform, grid), grid.affine)
    itk_affine.write_matrix(folder / "affine.txt", transform.matrix)
    deformation = transforms.deformation_on(transform, grid)
    saved = [
        save(nifti.write_field, folder / "deformation.nii.gz", deformation, grid.affine),
        save(exports.write_transform, folder, formats, deformation, transform.matrix, grid),
    ]
    save(nifti.write, folder / JACOBIAN, jacobian_on(transform, grid), grid.affine)
    if large := math.prod(grid.shape) > LARGE:
        wait(saved)
    field = transforms.followed_by(deformation, transform.matrix, grid, in_place=large)
    save(nifti.write_field, folder / "displacement.nii.gz", field, grid.affine)
    warped = transforms.warp_image(moving.image, field, grid, outside=float(moving.image.data.min()))
    save(nifti.write, folder / "warped.nii.gz", warped, grid.affine)
    save(exports.write_images, folder, "warped", formats, warped, grid)
    if moving.labels is None:
        return None
    warped_labels = transforms.warp_image(moving.labels, field, grid, order=0)
    save(nifti.write, folder / "warped_labels.nii.gz", warped_labels, grid.affine)
    save(exports.write_images, folder, "warped_labels", formats, warped_labels, grid)
    return warped_labels


@contextmanager
def background_writes() -> Iterator[Callable[..., Future[Any]]]:
    """Yields `save(function, *args)`, which runs slow file writes in background threads.

    All writes are finished when the block ends.
    """
    with ThreadPoolExecutor(2) as threads:  # one draws, one compresses
        jobs: list[Future[Any]] = []

        def save(function: Callable[..., Any], *args: object) -> Future[Any]:
            jobs.append(threads.submit(on_same_device(function), *args))
            return jobs[-1]

        yield save
        for job in jobs:
            job.result()


def table(summary: Mapping[str, Any]) -> str:
    """Formats the scores as text for the terminal."""
    stages = page.stages(summary)
    lines = []
    if "organs" in summary:
        lines.append(f"{'Dice, %':<14}" + "".join(f"{name:>9}" for name in stages))
        for organ in summary["organs"]:
            values = [stage["organs"][organ]["dice"] for stage in stages.values()]
            lines.append(f"{organ.replace('_', ' '):<14}" + "".join(_shown(value) for value in values))
        lines.append(f"{'mean':<14}" + "".join(_shown(stage["mean_dice"]) for stage in stages.values()))
    if "tre_mm" in summary:
        lines.append("landmarks, mm " + "".join(_shown(stage["tre_mm"]) for stage in stages.values()))
    lines += table_lines(summary)
    if summary.get("verdict"):
        lines.append(f"verdict: {verdict.line(summary['verdict'])}")
    lines.append(f"MIND difference: {page.similarities(summary)}")
    lines.append(f"folding {summary['folding_percent']:.3f} %, SD of log Jacobian {summary['sd_log_jacobian']:.3f}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return f"{value:>9.1f}" if value is not None else f"{'-':>9}"


def _scores(
    fixed: Scan,
    moving: Scan,
    transform: Transform,
    warped_labels: LabelMap | None,
    organs: OrganLabels | None,
    driving: Sequence[int],
) -> dict[str, Any]:
    """Organ scores and landmark errors of the whole transform, of its affine part, and before registration."""
    grid = fixed.stored
    affine_only = dataclasses.replace(transform, displacement=np.zeros_like(transform.displacement))
    identity = dataclasses.replace(affine_only, matrix=np.eye(4))
    stages = {"after": transform, "affine": affine_only, "before": identity}
    scores = {name: dict[str, Any]() for name in stages}
    if organs is not None:
        assert warped_labels is not None  # the moving scan has labels, since `organs` contains them
        reference, labels = resample.resample_labels(organs.fixed, grid), {"after": warped_labels}
        for name in ("affine", "before"):
            there = dataclasses.replace(grid, affine=stages[name].matrix @ grid.affine)
            labels[name] = resample.resample_labels(organs.moving, there)
        for name, each in labels.items():
            found = metrics.organ_scores(reference, each, organs=organs.values, spacing=grid.spacing)
            known = [score["dice"] for score in found.values() if not np.isnan(score["dice"])]
            scores[name] |= {"organs": found, "mean_dice": float(np.mean(known)) if known else math.nan}
            separate(scores[name], organs.values, driving)
    if fixed.landmarks is not None and moving.landmarks is not None:
        for name, stage in stages.items():
            errors = np.linalg.norm(transforms.to_moving(stage, fixed.landmarks) - moving.landmarks, axis=1)
            scores[name]["tre_mm"] = float(errors.mean())
    return scores.pop("after") | scores
