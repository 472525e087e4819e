"""Figures of one test case: the result of each method (the paper's Figs. 4 and 5), and feature maps (Fig. 6).

Letters: x y z voxels of the fixed grid, c channels. Slices are axial, in mm, with the patient's right on the left.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from f3r_jax.data.cases import Case
from f3r_jax.evaluate import metrics, slices
from f3r_jax.evaluate.grey_scale import GreyScale, body_mask, grey_scale
from f3r_jax.evaluate.inference import Registration
from f3r_jax.evaluate.slices import COLOURS, INK, MUTED, View
from f3r_jax.report.charts import NORMAL, SMALL, page

WIDTH, RAIL, GAP, HEAD, EDGE = 7.6, 0.34, 0.03, 0.24, 0.05  # inches: page, row names, between panels, headings, margin
COLUMNS = ("Warped, fixed outlines", "Worst liver region", "Deformed grid", "log Jacobian")
JACOBIAN_RANGE = 0.7  # limit of the log determinant: half to twice the volume
Window = tuple[float, float, float, float]  # left, low, width and height of a part of a slice, mm
MAPS = 16  # feature maps per row, as in the paper


class Shown(NamedTuple):
    """A row of the figure."""

    label: str
    note: str  # under the label
    registration: Registration


def comparison(case: Case, shown: Sequence[Shown], organs: Mapping[str, Sequence[int]]) -> Figure:
    """Fixed and moving image, and one row per method: warped image, zoom, deformed grid and log Jacobian.

    The fixed outlines are drawn on the warped image and the zoom. The slice and the zoom show the largest liver error
    of all methods together (the first organ's if there is no liver). Without labels they show where warping changed
    the image most.
    """
    view, window = _worst(case, shown, organs)
    aspect = slices.aspect(case.fixed.shape, case.spacing, view)
    wide = WIDTH - RAIL - 2 * EDGE - 3 * GAP
    height = wide / (3 / aspect + 1 / slices.ZOOM_ASPECT)
    widths = [height / aspect, height / slices.ZOOM_ASPECT, height / aspect, height / aspect]
    count = len(shown) + 2
    total = HEAD + count * (height + GAP) + EDGE
    figure = page((WIDTH, total))
    lefts = RAIL + EDGE + np.concatenate([[0], np.cumsum(np.array(widths) + GAP)[:-1]])

    def panel(row: int, column: int) -> Axes:
        low = total - HEAD - (row + 1) * height - row * GAP
        ax = figure.add_axes((lefts[column] / WIDTH, low / total, widths[column] / WIDTH, height / total))
        ax.set(xticks=[], yticks=[], facecolor="black")
        ax.spines[:].set_visible(False)
        return ax

    for left, width, heading in zip(lefts, widths, COLUMNS, strict=True):
        place = ((left + width / 2) / WIDTH, 1 - 0.15 / total)
        figure.text(*place, heading, size=SMALL, color=INK, ha="center", va="center")
    rows = [("Fixed", "", case.fixed), ("Moving", "", case.moving)]
    rows += [(one.label, one.note, one.registration.warped) for one in shown]
    for row, (label, note, volume) in enumerate(rows):
        middle = 1 - (HEAD + row * (height + GAP) + height / 2) / total
        text: dict[str, Any] = {"rotation": 90, "ha": "center", "va": "center"}
        figure.text((EDGE + 0.09) / WIDTH, middle, label, size=NORMAL, color=INK, weight="bold", **text)
        figure.text((EDGE + 0.23) / WIDTH, middle, note, size=SMALL - 1, color=MUTED, **text)
        grey = grey_scale(case.fixed if row == 0 else case.moving)
        _image(panel(row, 0), case, volume, view, grey, organs, window)
        zoom = panel(row, 1)
        _image(zoom, case, volume, view, grey, organs)
        slices.look_at(zoom, window)
        if row >= 2:
            registration = shown[row - 2].registration
            if registration.warped_labels is not None:
                slices.outline_organs(zoom, registration.warped_labels, view, case.spacing, organs, "warped")
            _grid(panel(row, 2), case, registration, view)
            _jacobian(panel(row, 3), case, registration, view)
    _legend(figure, case, organs, lefts, height, total)
    return figure


def features(streams: Mapping[str, Mapping[str, Float[np.ndarray, "c x y"]]]) -> Figure:
    """Feature maps of each stream, one row per block with at most 16 maps, each in its own grey scale.

    If a block has more than 16 channels, those that vary most in the slice are drawn, in their order.
    """
    first = next(iter(next(iter(streams.values())).values()))
    aspect = first.shape[2] / first.shape[1]
    wide = 9.0
    rail, gap, head = 0.85, 0.02, 0.3
    width = (wide - rail - EDGE) / MAPS
    height = width * min(aspect, 1.6)
    rows = sum(len(blocks) for blocks in streams.values())
    total = rows * height + len(streams) * head + EDGE
    figure = page((wide, total))
    top = total
    for stream, blocks in streams.items():
        top -= head
        figure.text(EDGE / wide, (top + 0.09) / total, stream, size=NORMAL, color=INK, weight="bold")
        for block, maps in blocks.items():
            low = top - height
            figure.text(
                (rail - 0.06) / wide, (low + height / 2) / total, block, size=SMALL, color=INK, ha="right", va="center"
            )
            for n, one in enumerate(varied(maps)):
                place = (rail + n * width, low, width - gap, height - gap)
                ax = figure.add_axes((place[0] / wide, place[1] / total, place[2] / wide, place[3] / total))
                low_value, high_value = _range(one)
                ax.imshow(one[::-1].T, origin="lower", cmap="gray", aspect="auto", vmin=low_value, vmax=high_value)
                ax.set_axis_off()
            top = low
    return figure


def varied(maps: Float[np.ndarray, "c x y"]) -> Float[np.ndarray, "n x y"]:
    """At most 16 channels: those that vary most, in their order."""
    chosen = np.sort(np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:MAPS])
    return maps[chosen]


def _worst(case: Case, shown: Sequence[Shown], organs: Mapping[str, Sequence[int]]) -> tuple[View, Window]:
    liver = organs["liver"] if "liver" in organs else next(iter(organs.values()))
    errors = np.zeros(case.fixed.shape, np.float32)
    for one in shown:
        labels = one.registration.warped_labels
        if case.fixed_labels is not None and labels is not None:
            errors += np.isin(labels, liver) ^ np.isin(case.fixed_labels, liver)
    if not errors.any():
        for one in shown:
            errors += np.abs(one.registration.warped - case.moving)
    view = View(slices.AXIAL, int(np.argmax(errors.sum(axis=(0, 1)))))
    return slices.busiest_window(errors, [view], case.spacing)


def _image(
    ax: Axes,
    case: Case,
    volume: np.ndarray,
    view: View,
    grey: GreyScale,
    organs: Mapping[str, Sequence[int]],
    window: Window | None = None,
) -> None:
    slices.draw(ax, volume, view, case.spacing, grey)
    if case.fixed_labels is not None:
        slices.outline_organs(ax, case.fixed_labels, view, case.spacing, organs, "fixed")
    if window is not None:
        left, low, width, height = window
        ax.add_patch(Rectangle((left, low), width, height, fill=False, edgecolor="white", linewidth=0.7))


def _grid(ax: Axes, case: Case, registration: Registration, view: View) -> None:
    slices.draw(ax, case.fixed, view, case.spacing, grey_scale(case.fixed))
    slices.draw_grid(ax, registration.displacement, view, case.spacing)


def _jacobian(ax: Axes, case: Case, registration: Registration, view: View) -> None:
    determinant = metrics.jacobian_determinant(registration.displacement)
    logarithm = np.log(np.maximum(determinant, metrics.SMALLEST_DETERMINANT))
    bounds = (-JACOBIAN_RANGE, JACOBIAN_RANGE)
    slices.draw(ax, logarithm, view, case.spacing, bounds, cmap="RdBu_r")
    # Black, because the panel is bright on a dark page too.
    slices.outline(ax, view.cut(body_mask(case.fixed)), view, case.spacing, color="black", linewidth=0.6)
    folds = np.where(determinant <= 0, 1.0, np.nan)
    slices.draw(ax, folds, view, case.spacing, (0.0, 1.0), cmap="gray_r", interpolation="nearest")


def _legend(figure: Figure, case: Case, organs: Iterable[str], lefts: np.ndarray, height: float, total: float) -> None:
    """Draws the legend next to the fixed and the moving image, which have no grid and no Jacobian."""
    handles = [
        Line2D([], [], color=COLOURS[n % len(COLOURS)], linewidth=2.5, label=name.replace("_", " "))
        for n, name in enumerate(organs)
    ]
    place = ((lefts[2] + 0.1) / WIDTH, 1 - (HEAD + 0.05) / total)
    if case.fixed_labels is not None:
        words = {
            "title": "Outlines: solid fixed, dotted warped",
            "title_fontsize": SMALL,
            "fontsize": SMALL,
            "labelcolor": INK,
        }
        legend = figure.legend(handles=handles, loc="upper left", bbox_to_anchor=place, frameon=False, **words)
        legend.get_title().set_color(INK)
        legend.set_alignment("left")
    low = 1 - (HEAD + height + GAP + 0.62) / total
    bar = figure.add_axes(((lefts[2] + 0.2) / WIDTH, low, 2.4 / WIDTH, 0.09 / total))
    bar.imshow(
        np.linspace(-1, 1, 256)[None], cmap="RdBu_r", aspect="auto", extent=(-JACOBIAN_RANGE, JACOBIAN_RANGE, 0, 1)
    )
    ticks = (-JACOBIAN_RANGE, 0.0, JACOBIAN_RANGE)
    bar.set(yticks=[], xticks=ticks, xticklabels=[f"× {np.exp(tick):.1f}" for tick in ticks])
    bar.tick_params(labelsize=SMALL, length=0, labelcolor=INK)
    bar.spines[:].set_visible(False)
    figure.text(
        (lefts[2] + 0.1) / WIDTH,
        low + 0.2 / total,
        "Volume of moving tissue per voxel; folds in black",
        size=SMALL,
        color=INK,
        va="bottom",
    )


def _range(one: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(one, (1, 99))
    return float(low), float(high) if high > low else float(low) + 1.0
