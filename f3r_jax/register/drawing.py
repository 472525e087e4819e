"""The figures of a registration."""

import dataclasses
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from f3r_jax.common.arrays import LabelMap
from f3r_jax.config import ORGANS
from f3r_jax.data import resample
from f3r_jax.data.transforms import Transform
from f3r_jax.evaluate import figures
from f3r_jax.evaluate.uncertainty_figure import uncertainty
from f3r_jax.ops.warp import warp, warp_nearest
from f3r_jax.register.pipeline import RegistrationResult
from f3r_jax.register.scans import OrganLabels, Scan
from f3r_jax.register.uncertainty import Uncertainty

_MATPLOTLIB_LOCK = threading.Lock()  # several pairs may be drawn at once, and Matplotlib is not thread-safe


def draw(
    folder: Path,
    fixed: Scan,
    moving: Scan,
    outcome: RegistrationResult,
    organs: OrganLabels | None,
    spread: Uncertainty | None,
) -> None:
    """Draws the figures on the working grid, where the moving scan is shown after the affine step."""
    grid, u = outcome.transform.grid, outcome.transform.displacement
    field = jnp.asarray(u)[None]
    warped = np.asarray(warp(jnp.asarray(outcome.moving)[None, ..., None], field))[0, ..., 0]
    title, spacing = f"{Path(moving.image.path).name} on {Path(fixed.image.path).name}", grid.spacing
    labels = (None, None, None) if organs is None else _drawn_labels(organs, outcome.transform, fixed)
    with _MATPLOTLIB_LOCK:
        figures.overlay(
            folder / "overlay.png",
            fixed=outcome.fixed,
            moving=outcome.moving,
            warped=warped,
            fixed_labels=labels[0],
            moving_labels=labels[1],
            warped_labels=labels[2],
            spacing=spacing,
            title=title,
            organs=ORGANS if organs is None else organs.values,
        )
        figures.checkerboard(
            folder / "checkerboard.png",
            fixed=outcome.fixed,
            moving=outcome.moving,
            warped=warped,
            spacing=spacing,
            title=title,
        )
        figures.deformation(
            folder / "deformation.png", fixed=outcome.fixed, displacement=u, spacing=spacing, title=title
        )
        if spread is not None:
            uncertainty(folder / "uncertainty.png", fixed=outcome.fixed, spread=spread, spacing=spacing, title=title)


def _drawn_labels(organs: OrganLabels, transform: Transform, fixed: Scan) -> tuple[LabelMap, LabelMap, LabelMap]:
    """The fixed, the moving and the warped labels on the working grid, inside the fixed scan's field of view."""
    grid = transform.grid
    there = dataclasses.replace(grid, affine=transform.matrix @ grid.affine)
    moving = resample.resample_labels(organs.moving, there)
    nearest = warp_nearest(jnp.asarray(moving)[None, ..., None], jnp.asarray(transform.displacement)[None])
    warped = np.asarray(nearest)[0, ..., 0]
    inside = resample.field_of_view(fixed.image.grid, grid)
    return resample.resample_labels(organs.fixed, grid), np.where(inside, moving, 0), np.where(inside, warped, 0)
