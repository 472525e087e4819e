"""Charts of a report, and the files of its figures: PNG, SVG, and SVG in the colours of a page.

A chart has one panel per method: its own line in colour over those of all others in grey, on shared axes. Ten lines in
one panel can't be distinguished, least of all by colour-blind readers. Here no line needs a colour of its own.
Figures are built without pyplot, so they share no state.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from jaxtyping import Real
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from f3r_jax.evaluate.drawing import plain_text, shortened
from f3r_jax.evaluate.slices import INK, MUTED

DPI = 150
LINE, OTHERS, ACCENT, BASELINE = "#dcdcdc", "#b4b4b4", "#0068a8", "#b3480a"
# On a page the colours become variables, which it defines for light and for dark.
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    OTHERS: "var(--faint)",
    ACCENT: "var(--accent)",
    BASELINE: "var(--baseline)",
}
SMALL, NORMAL = 7.5, 8.5  # points
WIDTH, PANEL_HEIGHT, COLUMNS = 9.0, 1.75, 4  # inches
SMOOTHED = 25  # steps in the running mean of a training curve

Numbers = Real[np.ndarray, "n"]


class Curve(NamedTuple):
    """A line, the shaded band around it, and whether it is one of the paper's own networks."""

    x: Numbers
    y: Numbers
    half_band: Numbers | None
    own: bool


class Dots(NamedTuple):
    """A line of a chart of dots; `own` as for a curve, None for the pair before registration."""

    label: str
    cases: Numbers
    printed: float | None
    own: bool | None


class Drawing(NamedTuple):
    """A written figure: the stem of its files, its title and caption, and its SVG for a page."""

    stem: str
    title: str
    caption: str
    svg: str
    tall: bool


def charts(
    curves: Mapping[str, Curve], *, x_label: str, y_label: str, marked: bool = False, x_ticks: Sequence[float] = ()
) -> Figure:
    """Draws one panel per curve, with the others in grey behind it.

    Args:
      curves: the curves by the titles of their panels.
      x_label: label of x for all panels.
      y_label: label of y for all panels.
      marked: whether to mark the points, for a few measured ones.
      x_ticks: positions of the ticks; even steps if empty or more than 6.
    """
    columns = min(COLUMNS, max(2, len(curves)))
    rows = -(-len(curves) // columns)
    width = WIDTH * columns / COLUMNS
    figure = page((width, 0.35 + PANEL_HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for n, (ax, name) in enumerate(zip(axes, curves, strict=False)):
        for other in curves:
            if other != name:
                ax.plot(*curves[other][:2], color=OTHERS, linewidth=0.8, zorder=1)
        _highlight(ax, curves[name], marked=marked)
        _dress(ax, name)
        if 0 < len(x_ticks) <= 6:
            ax.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
        ax.tick_params(labelbottom=n + columns >= len(curves))
    for ax in figure.axes[len(curves) :]:
        ax.set_visible(False)
    figure.supxlabel(x_label, size=SMALL, color=INK)
    figure.supylabel(y_label, size=SMALL, color=INK)
    return figure


def dots(panels: Mapping[str, Sequence[Dots]]) -> Figure:
    """One panel per measure and one line per method: all cases, their mean, the paper's mean as a hollow diamond."""
    count = max(len(rows) for rows in panels.values())
    figure = page((WIDTH, 0.75 + 0.24 * count), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (name, rows) in zip(axes, panels.items(), strict=True):
        _dress(ax, name)
        ax.grid(axis="x", color=LINE, linewidth=0.5)
        for n, row in enumerate(rows):
            colour = {True: ACCENT, False: BASELINE, None: MUTED}[row.own]
            ax.plot(row.cases, np.full(len(row.cases), n), "|", color=colour, markersize=6, alpha=0.45)
            ax.plot(np.mean(row.cases), n, "o", color=colour, markersize=6)
            if row.printed is not None:
                ax.plot(row.printed, n, "D", markerfacecolor="none", markeredgecolor=INK, markersize=5.5)
        ax.set_yticks(range(len(rows)), [shortened(row.label) for row in rows])
        ax.tick_params(axis="y", labelcolor=INK, labelsize=NORMAL)
        ax.set_ylim(count - 0.5, -0.5)
    return figure


def page(size: tuple[float, float], **options: Any) -> Figure:
    """An empty figure of a size in inches."""
    figure = Figure(figsize=size, dpi=DPI, facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, folder: Path, stem: str, *, title: str, caption: str) -> Drawing:
    """Writes stem.png and stem.svg; the returned drawing contains the SVG for a page."""
    options: dict[Any, str] = {"svg.hashsalt": stem, "svg.fonttype": "path"}
    with mpl.rc_context(options), plain_text(figure):
        figure.savefig(folder / f"{stem}.png", metadata={"Software": None})
        figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
    text = io.StringIO()
    # Text stays text there, in the page's font. Ids are hashed with the stem, because several figures share a page.
    with mpl.rc_context(options | {"svg.fonttype": "none"}), plain_text(figure):
        figure.patch.set_visible(False)
        figure.savefig(text, format="svg", metadata={"Date": None}, dpi=DPI)
    tall = bool(figure.get_figheight() > figure.get_figwidth())
    return Drawing(stem, title, caption, for_page(text.getvalue(), title), tall)


def for_page(svg: str, title: str) -> str:
    """Turns an SVG file into an element of a page: without a size, with unique ids and the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    # Ids without a reference are equal in all figures, so they are removed.
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', rest))
    rest = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", rest)
    rest = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", rest)
    for colour, variable in PAGE_COLOURS.items():
        rest = rest.replace(colour, variable)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return f'{head} role="img" aria-label="{label}">{rest}'


def smoothed(x: Numbers, y: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over SMOOTHED values, or over a quarter of a short curve, at the middle steps."""
    width = min(SMOOTHED, max(1, len(x) // 4))
    kernel = np.full(width, 1 / width)
    return np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")


def _highlight(ax: Axes, curve: Curve, *, marked: bool) -> None:
    colour = ACCENT if curve.own else BASELINE
    if curve.half_band is not None and len(curve.x) > 1:
        low, high = curve.y - curve.half_band, curve.y + curve.half_band
        ax.fill_between(curve.x, low, high, color=colour, alpha=0.13, linewidth=0, zorder=0)
    elif curve.half_band is not None:
        ax.errorbar(curve.x, curve.y, curve.half_band, color=colour, linewidth=1, capsize=2, alpha=0.6)
    ax.plot(curve.x, curve.y, color=colour, linewidth=1.7, marker="o" if marked else "", markersize=3.5, zorder=2)


def _dress(ax: Axes, name: str) -> None:
    ax.set_title(shortened(name), size=NORMAL, color=INK, loc="left", pad=4)
    ax.tick_params(labelsize=SMALL, length=0, colors=MUTED, labelcolor=MUTED)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=4))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.set_facecolor("none")
    ax.grid(axis="y", color=LINE, linewidth=0.5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set(color=MUTED, linewidth=0.6)
