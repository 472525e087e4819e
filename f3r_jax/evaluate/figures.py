"""Figures of one registration, as PNG files 1400 pixels wide.

Figures are built without pyplot, so they share no state. Files are written under a temporary name and renamed.
"""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Outline

from f3r_jax.common.arrays import Intensities, LabelMap, Spacing, VoxelField
from f3r_jax.evaluate import metrics, slices
from f3r_jax.evaluate.drawing import DPI, WIDTH, as_words, colour_bar, save
from f3r_jax.evaluate.grey_scale import body_mask, grey_scale
from f3r_jax.evaluate.slices import COLOURS, INK, LARGE, MUTED, NORMAL, SMALL, STYLES, ZOOM_ASPECT

SCALES = {"Axial": 50.0, "Coronal": None, "Zoom": 20.0}  # scale bar of each row in mm; axial and coronal share one
MARGIN, GAP, RAIL = 0.06, 0.04, 0.2  # inches: page margin, between panels, column of row names


def overlay(
    path: str | os.PathLike,
    *,
    fixed: Intensities,
    moving: Intensities,
    warped: Intensities,
    fixed_labels: LabelMap | None,
    moving_labels: LabelMap | None,
    warped_labels: LabelMap | None,
    spacing: Spacing,
    title: str,
    organs: Mapping[str, Sequence[int]],
) -> None:
    """One case before and after: moving, fixed and warped, axial and coronal, with organ outlines and a zoom.

    The axial slice shows the largest section of the fixed liver (of the first organ if there is no liver), the coronal
    slice most of all organs. Without labels both are the middle slices. The zoom shows where the moving and the fixed
    organ disagree most on these slices; without labels, where warping changed the image most. Outlines whose labels
    are None are left out.
    """
    main = "liver" if "liver" in organs else next(iter(organs))
    target = None if fixed_labels is None else np.isin(fixed_labels, organs[main])
    views = slices.sections(target, fixed.shape)
    if fixed_labels is not None:
        views["Coronal"] = slices.shared_section(fixed_labels, organs)
    if target is not None and moving_labels is not None:
        disagreement = (target ^ np.isin(moving_labels, organs[main])).astype(np.float32)
    else:
        disagreement = np.abs(warped - moving)
    zoomed, window = slices.busiest_window(disagreement, list(views.values()), spacing)

    columns = {
        "Moving": (moving, {"moving": moving_labels}),
        "Fixed, outlines before": (fixed, {"fixed": fixed_labels, "moving": moving_labels}),
        "Warped, outlines after": (warped, {"fixed": fixed_labels, "warped": warped_labels}),
    }
    rows = {**views, "Zoom": zoomed}
    aspects = [*(slices.aspect(fixed.shape, spacing, view) for view in views.values()), ZOOM_ASPECT]
    by_role = {"fixed": fixed_labels, "moving": moving_labels, "warped": warped_labels}
    labelled = {role: labels for role, labels in by_role.items() if labels is not None}
    figure, panels = panel_page(aspects, list(columns), list(rows), title, foot=0.42 if labelled else 0.0)
    of_moving, of_fixed = grey_scale(moving), grey_scale(fixed)
    ranges = (of_moving, of_fixed, of_moving)
    for line, (name, view) in zip(panels, rows.items(), strict=True):
        for ax, (volume, outlines), shown in zip(line, columns.values(), ranges, strict=True):
            slices.draw(ax, volume, view, spacing, shown)
            for role, labels in outlines.items():
                if labels is not None:
                    slices.outline_organs(ax, labels, view, spacing, organs, role)
            if name == "Zoom":
                slices.look_at(ax, window)
            elif view == zoomed:
                left, low, width, height = window
                ax.add_patch(Rectangle((left, low), width, height, fill=False, edgecolor="white", linewidth=0.6))
        slices.annotate(line[0], scale_mm=SCALES[name])
    if labelled:
        _add_legend(figure, organs, labelled)
    save(figure, path)


def checkerboard(
    path: str | os.PathLike,
    *,
    fixed: Intensities,
    moving: Intensities,
    warped: Intensities,
    spacing: Spacing,
    title: str,
) -> None:
    """Alternating tiles of the fixed (grey) and the moving image (tinted), before and after, on the middle slices."""
    views = slices.sections(None, fixed.shape)
    columns = {"Before: fixed and moving": moving, "After: fixed and warped": warped}
    aspects = [slices.aspect(fixed.shape, spacing, view) for view in views.values()]
    figure, panels = panel_page(aspects, list(columns), list(views), title)
    tint = ListedColormap(np.linspace(0, 1, 256)[:, None] ** [1.4, 1.0, 0.75])
    tile = fixed.shape[0] * float(spacing[0]) / 9
    of_fixed, of_moving = grey_scale(fixed), grey_scale(moving)
    for line, (name, view) in zip(panels, views.items(), strict=True):
        for ax, volume in zip(line, columns.values(), strict=True):
            slices.draw(ax, fixed, view, spacing, of_fixed)
            tinted = slices.draw(ax, volume, view, spacing, of_moving, cmap=tint)
            tinted.set_clip_path(_every_other_tile(ax, tile))
        slices.annotate(line[0], scale_mm=SCALES[name])
    save(figure, path)


def deformation(
    path: str | os.PathLike, *, fixed: Intensities, displacement: VoxelField, spacing: Spacing, title: str
) -> None:
    """A straight grid deformed by the field, and the log of the field's Jacobian determinant with folds in black.

    The slices are those with the most folded voxels, or the middle ones if nothing folds. The grid shows only the
    displacement within the slice, not across it.
    """
    determinant = metrics.jacobian_determinant(displacement)
    folded = determinant <= 0
    log_determinant = np.log(np.maximum(determinant, metrics.SMALLEST_DETERMINANT))
    views = slices.sections(folded, fixed.shape)
    aspects = [slices.aspect(fixed.shape, spacing, view) for view in views.values()]
    shift = np.linalg.norm(displacement * np.asarray(spacing), axis=-1).max()
    facts = ",  ".join(
        [
            f"folding {100 * folded.mean():.2f} %",
            f"SD of log J {log_determinant.std():.3f}",
            f"largest shift {shift:.1f} mm",
        ]
    )
    columns = ["Fixed with the deformed grid", "Log Jacobian determinant, folds in black"]
    figure, panels = panel_page(aspects, columns, list(views), title, note=facts, foot=0.36)
    limit = float(np.clip(np.percentile(np.abs(log_determinant[~folded]), 99.5), 0.1, 2.0)) if not folded.all() else 1.0
    grey, body = grey_scale(fixed), body_mask(fixed)
    for line, (name, view) in zip(panels, views.items(), strict=True):
        slices.draw(line[0], fixed, view, spacing, grey)
        slices.draw_grid(line[0], displacement, view, spacing)
        shown = slices.draw(line[1], log_determinant, view, spacing, (-limit, limit), cmap="RdBu_r")
        slices.draw(
            line[1], np.where(folded, 1.0, np.nan), view, spacing, (0.0, 1.0), cmap="gray_r", interpolation="nearest"
        )
        slices.outline(line[1], view.cut(body), view, spacing, color=INK, linewidth=0.6)
        slices.annotate(line[0], scale_mm=SCALES[name])
    colour_bar(figure, shown, "both", "moving tissue grows", "shrinks")
    save(figure, path)


def panel_page(
    aspects: Sequence[float],
    columns: Sequence[str],
    rows: Sequence[str],
    title: str,
    *,
    note: str = "",
    foot: float = 0.0,
) -> tuple[Figure, list[list[Axes]]]:
    """A page of black panels; aspects give the row heights, and `foot` inches stay free at the bottom."""
    width = (WIDTH - 2 * MARGIN - RAIL - GAP * (len(columns) - 1)) / len(columns)
    heights = [width * aspect for aspect in aspects]
    head = 0.58 if note else 0.44
    total = head + sum(heights) + GAP * (len(rows) - 1) + foot + MARGIN
    figure = Figure(figsize=(WIDTH, total), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    left = MARGIN + RAIL
    figure.text(left / WIDTH, 1 - 0.05 / total, title, size=LARGE, weight="bold", color=INK, va="top")
    if note:
        figure.text(left / WIDTH, 1 - 0.24 / total, note, size=NORMAL, color=MUTED, va="top")
    panels: list[list[Axes]] = []
    top = total - head
    for row, (name, height) in enumerate(zip(rows, heights, strict=True)):
        low = top - height
        figure.text(
            (MARGIN + RAIL / 2) / WIDTH,
            (low + height / 2) / total,
            name,
            size=NORMAL,
            color=INK,
            rotation=90,
            ha="center",
            va="center",
        )
        panels.append([])
        for column, heading in enumerate(columns):
            x = left + column * (width + GAP)
            ax = figure.add_axes((x / WIDTH, low / total, width / WIDTH, height / total), facecolor="black")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            panels[-1].append(ax)
            if row == 0:
                figure.text((x + width / 2) / WIDTH, (top + 0.05) / total, heading, size=NORMAL, color=INK, ha="center")
        top = low - GAP
    return figure, panels


def _every_other_tile(ax: Axes, tile: float) -> PathPatch:
    """Every other square of a checkerboard of the given size in mm, for clipping."""
    edges = []
    for low, high in (sorted(ax.get_xlim()), ax.get_ylim()):
        count = int(np.ceil((high - low) / tile - 1e-6))
        edges.append((low + high - count * tile) / 2 + tile * np.arange(count))  # centred: equal tiles at both edges
    squares = [
        Outline([(x, y), (x + tile, y), (x + tile, y + tile), (x, y + tile), (x, y)], closed=True)
        for column, x in enumerate(edges[0])
        for row, y in enumerate(edges[1])
        if (row + column) % 2
    ]
    return PathPatch(Outline.make_compound_path(*squares), transform=ax.transData)


def _add_legend(figure: Figure, organs: Mapping[str, Sequence[int]], labelled: Mapping[str, LabelMap]) -> None:
    """Adds the organs' colours, with their Dice if known, and below them the line styles."""
    colours = (
        [Line2D([], [], linestyle="none", label="Dice before \N{RIGHTWARDS ARROW} after:")]
        if len(labelled) == 3
        else []
    )
    for number, (name, values) in enumerate(organs.items()):
        text = as_words(name)
        masks = {role: np.isin(labels, values) for role, labels in labelled.items()}
        if len(masks) == 3:
            before, after = (metrics.dice(masks["fixed"], masks[role]) for role in ("moving", "warped"))
            text += f"  {before:.0f} \N{RIGHTWARDS ARROW} {after:.0f} %"
        colours.append(Line2D([], [], color=COLOURS[number % len(COLOURS)], linewidth=3, label=text))
    words = {"fixed": "fixed", "moving": "moving (before)", "warped": "warped (after)"}
    styles = [Line2D([], [], color=INK, linewidth=1.0, linestyle=STYLES[role], label=words[role]) for role in labelled]
    for handles, y in ((colours, 0.26), (styles, 0.08)):
        figure.legend(
            handles=handles,
            loc="lower center",
            bbox_to_anchor=(0.5, (y - 0.06) / figure.get_figheight()),
            ncols=8,
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            borderpad=0,
            borderaxespad=0,
            handlelength=2.2,
            columnspacing=1.8,
        )
