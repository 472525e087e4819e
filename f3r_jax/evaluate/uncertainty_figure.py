"""The figure of the uncertainty of a registration, as a PNG file 1400 pixels wide."""

import os

import numpy as np

from f3r_jax.common.arrays import Intensities, Spacing
from f3r_jax.evaluate import slices
from f3r_jax.evaluate.drawing import colour_bar, save
from f3r_jax.evaluate.figures import SCALES, panel_page
from f3r_jax.evaluate.grey_scale import body_mask, grey_scale


def uncertainty(
    path: str | os.PathLike, *, fixed: Intensities, spread: Intensities, spacing: Spacing, title: str
) -> None:
    """The fixed image, and the uncertainty in mm as colours with the outline of the body, on the middle slices.

    Args:
      path: the file to write.
      fixed: the fixed image (x y z).
      spread: the uncertainty in mm at the same voxels.
      spacing: voxel size in mm.
      title: the title of the page.
    """
    body = body_mask(fixed)
    inside = spread[body] if body.any() else spread
    facts = (
        f"inside the body: median {np.median(inside):.1f} mm, 95 % of voxels below {np.percentile(inside, 95):.1f} mm"
    )
    views = slices.sections(None, fixed.shape)
    aspects = [slices.aspect(fixed.shape, spacing, view) for view in views.values()]
    figure, panels = panel_page(aspects, ["Fixed", "Uncertainty"], list(views), title, note=facts, foot=0.36)
    limit = max(float(np.percentile(inside, 99)), 1.0)
    for line, (name, view) in zip(panels, views.items(), strict=True):
        slices.draw(line[0], fixed, view, spacing, grey_scale(fixed))
        shown = slices.draw(line[1], spread, view, spacing, (0.0, limit), cmap="magma")
        slices.outline(line[1], view.cut(body), view, spacing, color="white", linewidth=0.6)
        slices.annotate(line[0], scale_mm=SCALES[name])
    colour_bar(figure, shown, "max", "mm")
    save(figure, path)
