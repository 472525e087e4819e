"""Draws the training curves of a run as a figure."""

import itertools
import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import uniform_filter1d

from f3r_jax.evaluate.drawing import DPI, WIDTH, as_words, save, shortened
from f3r_jax.evaluate.slices import COLOURS, INK, MUTED, NORMAL, SMALL

# Numbers of a training row that are not loss terms.
NO_LOSS = ("seconds", "seconds_per_step", "learning_rate", "gradient_norm")
MEAN_DICE = ("dice", "mean_dice", "dice_mean")
LEARNED = {"dice_gain": "Dice gain, points", "correlation": "correlation"}
SMOOTHED = 25  # rows in the running mean
MOST_NAMED, LONGEST = 12, 24  # curves in the legend, and characters of a name: more would leave no room for the panel


def training_curves(path: str | os.PathLike, train_rows: Sequence[Mapping], validation_rows: Sequence[Mapping]) -> None:
    """Draws each loss term, and the Dice of the validation cases in percent, over the training steps.

    A row is a mapping with "step". In a training row every other number is a loss term with its own panel, except the
    keys in `NO_LOSS`. In a validation row each key of `LEARNED` has its own panel, and all other numbers with "dice" in
    their name share one. Values that are not finite are left out.
    """
    losses = {key: curve for key, curve in _curves(train_rows).items() if key not in NO_LOSS}
    validated = _curves(validation_rows)
    learned = {key: validated[key] for key in LEARNED if key in validated}
    dices = {key: curve for key, curve in validated.items() if "dice" in key and key not in LEARNED}
    count = len(losses) + len(learned) + 1
    columns = count if count < 4 else (count + 1) // 2
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDTH, 0.15 + 2.15 * rows), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    for position, (name, (steps, values)) in enumerate(losses.items(), 1):
        ax = _plot(figure, (rows, columns, position), as_words(name))
        few = len(steps) <= SMOOTHED
        ax.plot(
            steps,
            values,
            color=COLOURS[6],
            linewidth=0.6,
            marker="o",
            markersize=2.2 if few else 0.8,
            alpha=1.0 if few else 0.35,
        )
        if not few:
            ax.plot(steps, uniform_filter1d(values, SMOOTHED, mode="nearest"), color=COLOURS[6], linewidth=1.4)
    for position, (name, (steps, values)) in enumerate(learned.items(), len(losses) + 1):
        ax = _plot(figure, (rows, columns, position), LEARNED[name])
        ax.axhline(0.0, color=MUTED, linewidth=0.8)  # the value of a network that ignores the pair
        ax.plot(steps, values, color=INK, linewidth=1.4, marker="o", markersize=2.2)
    ax = _plot(figure, (rows, columns, count), "validation Dice, %")
    colours = itertools.cycle(COLOURS)
    for number, (name, (steps, values)) in enumerate(dices.items()):
        colour, width = (INK, 1.8) if name in MEAN_DICE else (next(colours), 1.0)
        label = shortened(as_words(name.replace("dice", "")) or "mean", LONGEST)
        if number >= MOST_NAMED:
            label = f"and {len(dices) - MOST_NAMED} more" if number == MOST_NAMED else "_without"
        ax.plot(steps, values, label=label, marker="o", markersize=2.2, color=colour, linewidth=width)
    if dices:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.02), fontsize=SMALL, frameon=False, labelcolor=INK)
    else:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "no validation yet", transform=ax.transAxes, size=SMALL, color=MUTED, ha="center")
    save(figure, path)


def _curves(rows: Sequence[Mapping]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each number in the rows, except "step"."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float) and np.isfinite(value):
                points.setdefault(key, []).append((row["step"], value))
    return {key: tuple(np.array(pairs, np.float64).T) for key, pairs in points.items()}


def _plot(figure: Figure, place: tuple[int, int, int], name: str) -> Axes:
    ax = figure.add_subplot(*place)
    ax.set_title(name, size=NORMAL, color=INK, loc="left")
    ax.set_xlabel("step", size=SMALL, color=INK)
    ax.tick_params(labelsize=SMALL, length=2, width=0.5, colors=INK)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.grid(color="#e6e6e6", linewidth=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_linewidth(0.5)
    return ax
