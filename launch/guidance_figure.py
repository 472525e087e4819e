"""Draws docs/guidance.png: what labels, landmarks and masks that take part do to a phantom pair.

python launch/guidance_figure.py --output=docs/guidance.png
"""

import argparse
import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

import guided_pairs as guidance
from f3r_jax.common.files import replacing
from f3r_jax.data.nifti import Image
from f3r_jax.data.transforms import field_on, to_moving, warp_image
from f3r_jax.register import parts
from f3r_jax.register.pipeline import RegistrationResult

EVERY = 3  # voxels between the lines of a grid


def main() -> None:
    """Registers one pair five times and draws four rows: without and with an option."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", default="docs/guidance.png")
    parser.add_argument("--pair", type=int, default=3)
    options = parser.parse_args()
    pair = guidance.make_pair(options.pair)
    bulky, ball = guidance.with_tumour(pair)
    spine = guidance.spine_of(pair)
    marked, points, goals = guidance.with_landmarks(pair)
    points, goals = points[guidance.LANDMARKS :], goals[guidance.LANDMARKS :]  # those that do not pull
    plain, unmarked = guidance.register(pair)[0], guidance.register(bulky)[0]
    weights = guidance.GUIDED
    labelled = guidance.register(pair, labels_weight=weights["labels_weight"])[0]
    pulled = guidance.register(marked, landmarks_weight=weights["landmarks_weight"])[0]
    rigid = guidance.register(dataclasses.replace(pair, fixed=dataclasses.replace(pair.fixed, rigid=spine)))[0]
    kept = guidance.register(dataclasses.replace(bulky, fixed=dataclasses.replace(bulky.fixed, preserve=ball)))[0]
    figure, axes = plt.subplots(4, 2, figsize=(7, 11), layout="constrained")
    for axis, result, name in zip(axes[0], (plain, labelled), ("no option", "--labels_weight"), strict=True):
        draw_labels(axis, pair, result, name)
    for axis, result, name in zip(axes[1], (plain, pulled), ("no option", "--landmarks_weight"), strict=True):
        draw_landmarks(axis, pair, result, points, goals, name)
    for axis, result, name in zip(axes[2], (unmarked, kept), ("no option", "--preserve_mask"), strict=True):
        draw_part(axis, bulky, result, ball, name)
    for axis, result, name in zip(axes[3], (plain, rigid), ("no option", "--rigid_mask"), strict=True):
        draw_part(axis, pair, result, spine, name)
    with replacing(Path(options.output)) as temporary:
        figure.savefig(temporary, dpi=70, format="png")


def shown(axis: Axes, pair: guidance.Pair, plane: int) -> None:
    """The fixed scan in a coronal plane."""
    axis.imshow(pair.fixed.normalised.data[:, plane].T, cmap="gray", origin="lower", vmin=0, vmax=1)
    axis.set_axis_off()


def draw_labels(axis: Axes, pair: guidance.Pair, result: RegistrationResult, name: str) -> None:
    """The labels of the fixed scan (white) and the warped labels (orange)."""
    assert pair.fixed.labels is not None and pair.moving.labels is not None
    fixed = pair.fixed.labels.data
    plane = int(np.argmax(np.sum(fixed > 0, axis=(0, 2))))
    grid = pair.fixed.image.grid
    warped = warp_image(pair.moving.labels, field_on(result.transform, grid), grid, order=0)
    shown(axis, pair, plane)
    for labels, colour in ((fixed, "white"), (warped, "tab:orange")):
        for value in np.unique(labels[labels > 0]):
            axis.contour((labels[:, plane] == value).T, levels=[0.5], colors=colour, linewidths=0.9)
    dice = guidance.scores(pair, result.transform)
    mean = np.mean([value for key, value in dice.items() if key != "epe_mm"])
    axis.set_title(f"{name}\nmean Dice {mean:.1f} %", fontsize=9)


def draw_landmarks(
    axis: Axes, pair: guidance.Pair, result: RegistrationResult, points: np.ndarray, goals: np.ndarray, name: str
) -> None:
    """The landmarks, projected, and lines to ten times their error."""
    shown(axis, pair, guidance.SHAPE[1] // 2)
    away = to_moving(result.transform, points) - goals
    for point, error in zip(points / guidance.SPACING, away / guidance.SPACING, strict=True):
        axis.plot(*np.stack([point, point + 10 * error])[:, [0, 2]].T, color="tab:orange", linewidth=1)
        axis.plot(*point[[0, 2]], "o", color="white", markersize=3)
    error_mm = np.linalg.norm(away, axis=1).mean()
    axis.set_title(f"{name}\nlandmarks {error_mm:.1f} mm apart (drawn x 10)", fontsize=9)
    axis.set_xlim(0, guidance.SHAPE[0] - 1)
    axis.set_ylim(0, guidance.SHAPE[2] - 1)


def draw_part(axis: Axes, pair: guidance.Pair, result: RegistrationResult, mask: Image, name: str) -> None:
    """The part (white) and the deformed grid around it (orange)."""
    plane = int(np.argmax(np.sum(mask.data > 0, axis=(0, 2))))
    shown(axis, pair, plane)
    field = field_on(result.transform, pair.fixed.image.grid) / guidance.SPACING  # voxels of the scan, not of the grid
    places = np.indices(guidance.SHAPE)[:, :, plane] + np.moveaxis(field[:, plane], -1, 0)
    x, z = places[0], places[2]
    for line in range(0, x.shape[0], EVERY):
        axis.plot(x[line], z[line], color="tab:orange", linewidth=0.4)
    for line in range(0, x.shape[1], EVERY):
        axis.plot(x[:, line], z[:, line], color="tab:orange", linewidth=0.4)
    axis.contour((mask.data[:, plane] > 0).T, levels=[0.5], colors="white", linewidths=1)
    held = dataclasses.replace(pair.fixed, rigid=mask)
    (report,) = parts.report(result.transform, held)
    change = 100 * (report["volume_ml_after"] / report["volume_ml_before"] - 1)
    axis.set_title(f"{name}\nvolume {change:+.1f} %, {report['residual_mm']:.2f} mm from rigid", fontsize=9)
    axis.set_xlim(0, guidance.SHAPE[0] - 1)
    axis.set_ylim(0, guidance.SHAPE[2] - 1)


if __name__ == "__main__":
    main()
