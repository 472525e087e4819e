"""The output files of a registration: images, transforms, scores, figures and an HTML report.

  warped.nii.gz                the moving scan on the fixed scan's grid, interpolated once
  displacement.nii.gz          the whole transform in ITK's and ANTs' format: fixed grid, mm, LPS, affine included
  deformation.nii.gz, affine.txt   its two parts; a point of the fixed scan goes through the deformation first
  inverse_displacement.nii.gz  from the moving scan's frame to the fixed scan's frame
  warped_labels.nii.gz, warped_landmarks.csv   if the moving scan has labels or landmarks
  learn2reg_displacement.nii.gz    on request: in voxels of the fixed grid, (x y z 3)
  summary.json, report.html, overlay.png, checkerboard.png, deformation.png

All files are written to a temporary folder and moved at the end, `summary.json` last (`common/result_folder.py`). A
folder with a `summary.json` therefore holds a complete result. Letters: x y z voxels.
"""

import dataclasses
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from f3r_jax.common import files
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import write_text
from f3r_jax.config import ORGANS
from f3r_jax.data import itk_affine, nifti, resample, transforms
from f3r_jax.data.transforms import Transform
from f3r_jax.evaluate import figures, metrics
from f3r_jax.ops.warp import warp, warp_nearest
from f3r_jax.register import page, scans
from f3r_jax.register.guidance_report import separate, table_lines
from f3r_jax.register.pipeline import RegistrationResult
from f3r_jax.register.scans import Scan

SUMMARY, LEARN2REG = "summary.json", "learn2reg_displacement.nii.gz"
FIGURES = ("overlay.png", "checkerboard.png", "deformation.png")
FILES = (
    "warped.nii.gz",
    "displacement.nii.gz",
    "affine.txt",
    "deformation.nii.gz",
    "inverse_displacement.nii.gz",
    "warped_labels.nii.gz",
    "warped_landmarks.csv",
    LEARN2REG,
    *FIGURES,
    "report.html",
    SUMMARY,
)

_MATPLOTLIB_LOCK = threading.Lock()  # several pairs may be drawn at once, and Matplotlib is not thread-safe


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises a UserError if the path is a file, or a folder with a result that may not be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder for the result")
    there = [name for name in FILES if (folder / name).exists()]
    # Earlier versions could leave files without the summary when they were killed; the first of them was always there.
    unfinished = SUMMARY not in there and FILES[0] in there
    if there and not (overwrite or unfinished):
        raise UserError(f"{folder}: holds another result ({there[0]}), expected a new folder, or --overwrite")


def stored_summary(folder: Path, settings: Mapping[str, object]) -> dict | None:
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
    organs: Mapping[str, Sequence[int]],
    learn2reg: bool,
    facts: Mapping[str, object],
) -> dict:
    """Writes all files of a result to a folder and returns the content of `summary.json`, including `facts`.

    Raises:
      UserError: `learn2reg` is set and the scans do not share a grid.
    """
    start, transform = time.perf_counter(), outcome.transform
    with background_writes() as save:
        save(draw, folder, fixed, moving, outcome, organs)
        warped_labels = _write_volumes(folder, fixed, moving, transform, learn2reg=learn2reg, save=save)
        inverse, residual = transforms.inverse(transform)
        back = scans.no_finer(moving.image.grid, transform.grid.spacing.min())
        save(nifti.write_field, folder / "inverse_displacement.nii.gz", transforms.field_on(inverse, back), back.affine)
        if moving.landmarks is not None:
            points = transforms.to_fixed(transform, inverse, moving.landmarks)
            write_points(folder / "warped_landmarks.csv", points)
        summary = {
            **_scores(fixed, moving, transform, warped_labels, organs, outcome.guidance.driving),
            **outcome.guidance.summary(),
            "similarity": outcome.similarity,
            "folding_percent": outcome.folding_percent,
            "sd_log_jacobian": metrics.sd_log_jacobian(transform.displacement),
            "inverse_residual_voxels": residual,
        }
    summary["seconds"] = outcome.seconds | {"writing": time.perf_counter() - start}
    summary["seconds"]["total"] = sum(summary["seconds"].values())
    summary = files.json_safe(summary | dict(facts))
    write_text(folder / "report.html", page.page(summary, [folder / name for name in FIGURES]))
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _write_volumes(
    folder: Path, fixed: Scan, moving: Scan, transform: Transform, *, learn2reg: bool, save: Callable[..., None]
) -> np.ndarray | None:
    """Writes the matrix and all volumes on the fixed scan's grid; returns the warped labels or None."""
    grid = fixed.stored
    if learn2reg:
        nifti.check_same_grid(fixed.image, moving.image)
        nifti.write(folder / LEARN2REG, transforms.learn2reg_field(transform, grid), grid.affine)
    itk_affine.write_matrix(folder / "affine.txt", transform.matrix)
    deformation = transforms.deformation_on(transform, grid)
    save(nifti.write_field, folder / "deformation.nii.gz", deformation, grid.affine)
    field = transforms.followed_by(deformation, transform.matrix, grid)
    save(nifti.write_field, folder / "displacement.nii.gz", field, grid.affine)
    warped = transforms.warp_image(moving.image, field, grid, outside=float(moving.image.data.min()))
    save(nifti.write, folder / "warped.nii.gz", warped, grid.affine)
    if moving.labels is None:
        return None
    warped_labels = transforms.warp_image(moving.labels, field, grid, order=0)
    save(nifti.write, folder / "warped_labels.nii.gz", warped_labels, grid.affine)
    return warped_labels


@contextmanager
def background_writes() -> Iterator[Callable[..., None]]:
    """Yields `save(function, *args)`, which runs slow file writes in background threads.

    All writes are finished when the block ends.
    """
    device = jax.config.jax_default_device  # a new thread does not inherit it

    def call(function: Callable[..., None], *args: object) -> None:
        with jax.default_device(device):
            function(*args)

    with ThreadPoolExecutor(2) as threads:  # one draws, one compresses
        jobs = []
        yield lambda *job: jobs.append(threads.submit(call, *job))
        for job in jobs:
            job.result()


def write_points(path: Path, points: np.ndarray) -> None:
    """Writes points (n 3) in mm, RAS+, as a CSV with the columns x, y, z."""
    lines = ["x,y,z", *(",".join(f"{value:.4f}" for value in point) for point in points)]
    write_text(path, "\n".join(lines) + "\n")


def table(summary: Mapping) -> str:
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
    lines.append(f"MIND difference: {page.similarities(summary)}")
    lines.append(f"folding {summary['folding_percent']:.3f} %, SD of log Jacobian {summary['sd_log_jacobian']:.3f}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return f"{value:>9.1f}" if value is not None else f"{'-':>9}"


def _scores(
    fixed: Scan,
    moving: Scan,
    transform: Transform,
    warped_labels: np.ndarray | None,
    organs: Mapping[str, Sequence[int]],
    driving: Sequence[int],
) -> dict:
    """Organ scores and landmark errors of the whole transform, of its affine part, and before registration."""
    grid, scores = fixed.stored, {}
    affine_only = dataclasses.replace(transform, displacement=np.zeros_like(transform.displacement))
    identity = dataclasses.replace(affine_only, matrix=np.eye(4))
    reference = resample.resample_labels(fixed.labels, grid) if organs else None
    for name, each in (("after", transform), ("affine", affine_only), ("before", identity)):
        scores[name] = {}
        if organs:
            there = dataclasses.replace(grid, affine=each.matrix @ grid.affine)
            labels = warped_labels if name == "after" else resample.resample_labels(moving.labels, there)
            scores[name]["organs"] = metrics.organ_scores(reference, labels, organs=organs, spacing=grid.spacing)
            known = [s["dice"] for s in scores[name]["organs"].values() if not np.isnan(s["dice"])]
            scores[name]["mean_dice"] = float(np.mean(known)) if known else math.nan
            separate(scores[name], organs, driving)
        if fixed.landmarks is not None and moving.landmarks is not None:
            errors = np.linalg.norm(transforms.to_moving(each, fixed.landmarks) - moving.landmarks, axis=1)
            scores[name]["tre_mm"] = float(errors.mean())
    return scores.pop("after") | scores


def draw(
    folder: Path, fixed: Scan, moving: Scan, outcome: RegistrationResult, organs: Mapping[str, Sequence[int]]
) -> None:
    """Draws the figures on the working grid, where the moving scan is shown after the affine step."""
    transform = outcome.transform
    grid, u = transform.grid, transform.displacement
    there = dataclasses.replace(grid, affine=transform.matrix @ grid.affine)
    field = jnp.asarray(u)[None]
    images = {"fixed": outcome.fixed, "moving": outcome.moving}
    images["warped"] = np.asarray(warp(jnp.asarray(images["moving"])[None, ..., None], field))[0, ..., 0]
    labels = {"fixed_labels": None, "moving_labels": None, "warped_labels": None}
    if organs:
        labels["fixed_labels"] = resample.resample_labels(fixed.labels, grid)
        labels["moving_labels"] = resample.resample_labels(moving.labels, there)
        nearest = warp_nearest(jnp.asarray(labels["moving_labels"])[None, ..., None], field)
        labels["warped_labels"] = np.asarray(nearest)[0, ..., 0]
        inside = resample.field_of_view(fixed.image.grid, grid)
        for of_moving in ("moving_labels", "warped_labels"):  # the fixed labels end with the fixed field of view
            labels[of_moving] = np.where(inside, labels[of_moving], 0)
    title, spacing = f"{Path(moving.image.path).name} on {Path(fixed.image.path).name}", grid.spacing
    known, like = organs or ORGANS, {"spacing": spacing, "title": title}
    with _MATPLOTLIB_LOCK:
        figures.overlay(folder / "overlay.png", **images, **labels, **like, organs=known)
        figures.checkerboard(folder / "checkerboard.png", **images, **like)
        figures.deformation(folder / "deformation.png", fixed=images["fixed"], displacement=u, **like)
