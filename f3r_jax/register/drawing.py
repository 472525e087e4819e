"""The figures of a registration, and its viewer."""

import threading
from pathlib import Path

from f3r_jax.evaluate import figures
from f3r_jax.evaluate.uncertainty_figure import uncertainty
from f3r_jax.register.pipeline import RegistrationResult
from f3r_jax.register.scans import OrganLabels, Scan
from f3r_jax.register.shown import shown_volumes
from f3r_jax.register.uncertainty import Uncertainty
from f3r_jax.register.viewer import Viewer, make_viewer

_MATPLOTLIB_LOCK = threading.Lock()  # several pairs may be drawn at once, and Matplotlib is not thread-safe


def draw(
    folder: Path,
    fixed: Scan,
    moving: Scan,
    outcome: RegistrationResult,
    organs: OrganLabels | None,
    spread: Uncertainty | None,
    viewer: bool,
) -> Viewer | None:
    """Draws the figures on the working grid, where the moving scan is shown after the affine step.

    Returns the viewer of the same volumes if `viewer` is set.
    """
    shown = shown_volumes(fixed, outcome, organs, spread)
    title = f"{Path(moving.image.path).name} on {Path(fixed.image.path).name}"
    scans = {"fixed": shown.fixed, "moving": shown.moving, "warped": shown.warped}
    spacing = shown.grid.spacing
    with _MATPLOTLIB_LOCK:
        figures.overlay(
            folder / "overlay.png",
            **scans,
            fixed_labels=shown.labels.get("fixed"),
            moving_labels=shown.labels.get("moving"),
            warped_labels=shown.labels.get("warped"),
            spacing=spacing,
            title=title,
            organs=shown.organs,
        )
        figures.checkerboard(folder / "checkerboard.png", **scans, spacing=spacing, title=title)
        path = folder / "deformation.png"
        figures.deformation(path, fixed=shown.fixed, displacement=shown.displacement, spacing=spacing, title=title)
        if spread is not None:
            path = folder / "uncertainty.png"
            uncertainty(path, fixed=shown.fixed, spread=spread, spacing=spacing, title=title)
    return make_viewer(shown) if viewer else None
