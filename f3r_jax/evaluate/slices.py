"""Slices of volumes as panels of figures: chooses the slices and draws them.

Letters: x y z voxels of a RAS+ grid. Slices are drawn in mm and in radiological convention: the patient's right is on
the left of the figure, the front (axial) or the head (coronal) is up. The colour of an outline shows the organ, from
Okabe and Ito's palette for colour-blind readers. Its line style shows the image that it belongs to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.typing import LineStyleType
from scipy.ndimage import gaussian_filter, uniform_filter

from f3r_jax.common.arrays import Intensities, LabelMap, Mask, Spacing, VoxelField
from f3r_jax.evaluate.grey_scale import GreyScale

COLOURS = ("#E69F00", "#56B4E9", "#CC79A7", "#2CC295", "#F0E442", "#D55E00", "#0072B2")
LIGHTER = 0.45  # what is left of a colour's distance from white, for outlines of other than the fixed image
INK, MUTED = "#1a1a1a", "#6b6b6b"
STYLES: dict[str, LineStyleType] = {"fixed": "solid", "moving": (0.0, (3.2, 1.6)), "warped": (0.0, (1.0, 0.8))}
SMALL, NORMAL, LARGE = 6.5, 7.5, 9.5  # points
SHADOW = [withStroke(linewidth=1.6, foreground="#000000a0")]
AXIAL, CORONAL = 2, 1
ZOOM, ZOOM_ASPECT = 0.42, 0.75  # width of the zoom by that of the volume; height of the zoom by its width


@dataclass(frozen=True)
class View:
    """A slice through a volume: coronal across y (axis 1) or axial across z (axis 2)."""

    axis: int
    index: int

    def cut(self, volume: np.ndarray) -> np.ndarray:
        """The slice as rows of x, lowest row first."""
        return np.take(volume, self.index, self.axis).T

    def steps(self, spacing: Spacing) -> tuple[float, float]:
        """Voxel size in mm across and up."""
        return float(spacing[0]), float(spacing[3 - self.axis])


def draw(
    ax: Axes, volume: np.ndarray, view: View, spacing: Spacing, shown: GreyScale | tuple[float, float], **options: Any
) -> AxesImage:
    """Draws a slice in mm, voxel centres at multiples of the spacing, with the patient's right on the left.

    `shown` is a grey scale, or the values of both ends of the colour map.
    """
    if isinstance(shown, GreyScale):
        options["norm"] = PowerNorm(shown.power, shown.low, shown.high, clip=True)
    else:
        options |= {"vmin": shown[0], "vmax": shown[1]}
    section, (across, up) = view.cut(volume), view.steps(spacing)
    right, top = (section.shape[1] - 0.5) * across, (section.shape[0] - 0.5) * up
    options = {"cmap": "gray", "interpolation": "bilinear", **options}
    image = ax.imshow(
        section,
        origin="lower",
        extent=(-across / 2, right, -up / 2, top),
        aspect="auto",
        **options,
    )
    ax.set(xlim=(right, -across / 2), ylim=(-up / 2, top))
    return image


def outline_organs(ax: Axes, labels: LabelMap, view: View, spacing: Spacing, organs: Mapping, role: str) -> None:
    """Draws the border of each organ in its colour, lighter if not of the fixed image, in the line style of a role."""
    section = view.cut(labels)
    for number, values in enumerate(organs.values()):
        colour = organ_colour(number, fixed=role == "fixed")
        outline(ax, np.isin(section, values), view, spacing, color=[colour], linewidth=1.0, linestyle=STYLES[role])


def organ_colour(number: int, *, fixed: bool) -> tuple[float, float, float]:
    """The colour of an organ's outline, red, green and blue from 0 to 1; lighter for other than the fixed image."""
    part = 1.0 if fixed else LIGHTER
    red, green, blue = (1 - part * (1 - level) for level in to_rgb(COLOURS[number % len(COLOURS)]))
    return red, green, blue


def outline(
    ax: Axes,
    section: np.ndarray,
    view: View,
    spacing: Spacing,
    *,
    color: Any,
    linewidth: float,
    linestyle: LineStyleType = "solid",
) -> None:
    """Draws the border of a mask's section, slightly smoothed because voxel steps would hide the shape."""
    section = gaussian_filter(np.pad(section, 1).astype(np.float32), 0.6)
    if section.max() <= 0.5:
        return
    across, up = view.steps(spacing)
    x, y = (np.arange(-1, length - 1) * step for length, step in zip(section.shape[::-1], (across, up), strict=True))
    # A dark line below keeps thin and broken lines readable on bright tissue.
    ax.contour(x, y, section, levels=[0.5], colors="black", linewidths=linewidth + 0.7, alpha=0.55)
    ax.contour(x, y, section, levels=[0.5], colors=color, linewidths=linewidth, linestyles=[linestyle])


def draw_grid(ax: Axes, displacement: VoxelField, view: View, spacing: Spacing) -> None:
    """Draws the deformed grid: the rows and columns of voxels, every few of them, as the field maps them."""
    across, up = view.steps(spacing)
    shifts = [view.cut(displacement[..., axis]) for axis in (0, 3 - view.axis)]
    rows, columns = shifts[0].shape
    points = np.stack([(np.arange(columns) + shifts[0]) * across, (np.arange(rows)[:, None] + shifts[1]) * up], axis=-1)
    gap = max(columns * across, rows * up) / 36
    lines = [*points[:: max(1, round(gap / up))], *points.swapaxes(0, 1)[:: max(1, round(gap / across))]]
    ax.add_collection(LineCollection(lines, colors=COLOURS[4], linewidths=0.5, alpha=0.8), autolim=False)


def annotate(ax: Axes, *, scale_mm: float | None) -> None:
    """Labels the patient's sides, R and L, and draws a scale bar."""
    style: dict[str, Any] = {"size": SMALL, "color": "white", "path_effects": SHADOW}
    for x, letter, side in ((0.02, "R", "left"), (0.98, "L", "right")):
        ax.annotate(letter, (x, 1), (0, -3), "axes fraction", "offset points", ha=side, va="top", **style)
    if scale_mm:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        x, y = right + 0.03 * (left - right), low + 0.05 * (high - low)
        ax.plot([x, x + scale_mm], [y, y], color="white", linewidth=1.2, solid_capstyle="butt", path_effects=SHADOW)
        ax.annotate(f"{scale_mm:g} mm", (x + scale_mm / 2, y), (0, 2), textcoords="offset points", ha="center", **style)


def sections(mask: Mask | None, shape: Sequence[int]) -> dict[str, View]:
    """The axial and the coronal slice that contain most of a mask; the middle ones without a mask or if it is empty."""
    views = {}
    for name, axis in (("Axial", AXIAL), ("Coronal", CORONAL)):
        areas = None if mask is None else np.moveaxis(mask, axis, 0).sum(axis=(1, 2))
        views[name] = View(axis, shape[axis] // 2 if areas is None or not areas.any() else int(np.argmax(areas)))
    return views


def shared_section(labels: LabelMap, organs: Mapping[str, Sequence[int]]) -> View:
    """The coronal slice that contains most of all organs, each relative to its own largest section."""
    shares = np.zeros(labels.shape[CORONAL])
    for values in organs.values():
        areas = np.isin(labels, values).sum(axis=(0, 2))
        shares += areas / max(1, areas.max())
    return View(CORONAL, int(np.argmax(shares)) if shares.any() else labels.shape[CORONAL] // 2)


def busiest_window(
    amount: Intensities, views: Sequence[View], spacing: Spacing
) -> tuple[View, tuple[float, float, float, float]]:
    """The view, and the window in it (left, low, width, height in mm), that contain most of an amount."""
    best = (-1.0, views[0], (0.0, 0.0, 1.0, 1.0))
    for view in views:
        section, steps = view.cut(amount), view.steps(spacing)
        extent = [length * step for length, step in zip(section.shape[::-1], steps, strict=True)]
        width = min(ZOOM * extent[0], extent[1] / ZOOM_ASPECT)
        size = (width, width * ZOOM_ASPECT)
        voxels = [max(1, round(length / step)) for length, step in zip(size, steps, strict=True)]
        sums = uniform_filter(section, voxels[::-1], mode="constant") * voxels[0] * voxels[1] * steps[0] * steps[1]
        row, column = np.unravel_index(np.argmax(sums), sums.shape)
        if sums[row, column] > best[0]:
            centre = (column * steps[0], row * steps[1])
            low = [
                float(np.clip(middle - length / 2, -step / 2, whole - step / 2 - length))
                for middle, length, step, whole in zip(centre, size, steps, extent, strict=True)
            ]
            best = (float(sums[row, column]), view, (*low, *size))
    return best[1], best[2]


def look_at(ax: Axes, window: tuple[float, float, float, float]) -> None:
    """Narrows a panel to a window (left, low, width, height in mm)."""
    left, low, width, height = window
    ax.set(xlim=(left + width, left), ylim=(low, low + height))


def aspect(shape: Sequence[int], spacing: Spacing, view: View) -> float:
    """Height of a slice divided by its width."""
    across, up = view.steps(spacing)
    return shape[3 - view.axis] * up / (shape[0] * across)
