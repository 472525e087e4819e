"""Controls: tests whether a network registers each pair, or moves every pair by the average motion.

If all bodies move alike, one field fits them all, and a network that always predicts this field scores well. So each
case is scored with its own prediction and with two other fields:

  mean field: the mean of the predictions for the other cases. It has the average motion, and nothing of this pair.
  other pair: the prediction for another case.

In addition, the deviation of the prediction from its mean is correlated with that of the ground truth from its mean.

Letters: x y z voxels of the fixed grid. Displacements are in voxels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import wilcoxon

from f3r_jax.common.arrays import LabelMap, Mask, Spacing, VoxelField
from f3r_jax.evaluate import metrics

SIGNIFICANT = 0.05
SMALLEST_DEVIATION_MM = 1e-3  # predictions that deviate less differ only by rounding
SPARE_CASES = 8  # most training cases in the mean field of a single test case
KINDS = ("mean_field", "other_pair")


@dataclass(frozen=True)
class Deviations:
    """Sums over the voxels and components of a case, of deviations in mm.

    x is the prediction minus its mean over the other cases, y the same for the ground truth.
    """

    count: int
    x: float
    xx: float
    y: float | None  # y, yy and xy are None without ground truth
    yy: float | None
    xy: float | None


@dataclass(frozen=True)
class PairSpecific:
    """Whether a network's predictions depend on the pair. A number that can't be computed is None."""

    correlation: float | None  # of prediction and ground truth, each minus its mean over the other cases
    deviation_mm: float | None  # root mean square length of prediction minus mean field
    dice_gain: float | None  # mean organ Dice of the prediction minus that of its mean field, points
    dice_gain_p: float | None
    cases: int  # number of cases with a gain
    learned: bool | None  # whether the gain is significant; None if that can't be decided

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "PairSpecific":
        """Reads a dict of the fields; raises a KeyError if one is missing."""
        return cls(**{field.name: found[field.name] for field in fields(cls)})


def choose_references(evaluated: Sequence[str], training: Sequence[str]) -> tuple[str, ...]:
    """The cases that the controls are computed from: the evaluated ones, or up to 8 training cases for a single one."""
    return tuple(evaluated) if len(evaluated) > 1 else tuple(training[:SPARE_CASES])


def other_of(name: str, references: Sequence[str]) -> str:
    """The reference after this case, cyclically; the first one if the case is not a reference."""
    return references[(references.index(name) + 1) % len(references)] if name in references else references[0]


def mean_of_others(total: Float[np.ndarray, "x y z 3"], count: int, own: VoxelField | None) -> VoxelField:
    """Mean, as float32, of the `count` fields in a float64 sum, without `own`; `own` is None if the sum lacks it."""
    others = total / count if own is None else (total - own) / (count - 1)
    return others.astype(np.float32)


def inside_organs(fixed_labels: LabelMap | None, organs: Mapping[str, Sequence[int]]) -> Mask | None:
    """Mask of the voxels of all organs; None without labels."""
    return None if fixed_labels is None else np.isin(fixed_labels, [v for values in organs.values() for v in values])


def deviations(
    prediction: VoxelField,
    mean_prediction: VoxelField,
    truth: VoxelField | None,
    mean_truth: VoxelField | None,
    *,
    spacing: Spacing,
    mask: Mask | None,
) -> Deviations:
    """Sums for `correlate`, over all voxels or over `mask`; without ground truth only those of x."""
    inside = ... if mask is None else mask

    def deviation(field: VoxelField, mean: VoxelField) -> np.ndarray:
        return (field[inside].astype(np.float64) - mean[inside]) * np.asarray(spacing)

    x = deviation(prediction, mean_prediction)
    of_x = x.size, float(x.sum()), float(np.sum(x * x))
    if truth is None or mean_truth is None:
        return Deviations(*of_x, None, None, None)
    y = deviation(truth, mean_truth)
    return Deviations(*of_x, float(y.sum()), float(np.sum(y * y)), float(np.sum(x * y)))


def correlate(cases: Sequence[Deviations]) -> float | None:
    """Pearson's correlation of x and y over the voxels and components of all cases with ground truth.

    None if it is undefined: there is no ground truth, or x or y has almost no spread.
    """
    known = [case for case in cases if case.count and case.xy is not None]
    if not known:
        return None
    count, x, xx, y, yy, xy = np.sum(np.array([astuple(case) for case in known], np.float64), axis=0)
    spread_x, spread_y = (np.sqrt(max(square / count - (s / count) ** 2, 0.0)) for s, square in ((x, xx), (y, yy)))
    if min(spread_x, spread_y) < SMALLEST_DEVIATION_MM:
        return None
    found = (xy / count - x * y / count**2) / (spread_x * spread_y)
    return float(np.clip(found, -1.0, 1.0)) if np.isfinite(found) else None


def deviation_mm(cases: Sequence[Deviations]) -> float | None:
    """Root mean square length in mm of prediction minus mean field over all voxels; None without voxels, or if NaN."""
    count = sum(case.count for case in cases) / 3
    found = float(np.sqrt(sum(case.xx for case in cases) / count)) if count else np.nan
    return found if np.isfinite(found) else None


def organ_dices(fixed_labels: LabelMap, labels: LabelMap, organs: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Dice of each organ in percent; NaN for an organ that neither label map has."""
    return {
        name: metrics.dice(np.isin(fixed_labels, values), np.isin(labels, values)) for name, values in organs.items()
    }


def dice_gain(own: Mapping[str, float], control: Mapping[str, float]) -> float | None:
    """Mean Dice of a case's own prediction minus a control's, in points, over the organs that have both."""
    gains = [own[organ] - control[organ] for organ in own if np.isfinite(own[organ]) and np.isfinite(control[organ])]
    return float(np.mean(gains)) if gains else None


def gain_p(gains: Sequence[float]) -> float | None:
    """One-sided p of the gains of all cases: the probability of such gains if the network ignores the pair.

    Wilcoxon's signed-rank test, paired by case and exact up to 50 cases. A t test assumes normally distributed gains,
    which a few cases can't confirm, and calls two nearly equal gains significant. Here the smallest p of n cases is
    2^-n, so fewer than five are never significant. None without a gain.
    """
    if not len(gains):
        return None
    unequal = [gain for gain in gains if gain != 0]
    return float(wilcoxon(unequal, alternative="greater").pvalue) if unequal else 1.0


def too_few(cases: int) -> bool:
    """Whether so few cases can never be significant."""
    return 0.5**cases >= SIGNIFICANT


def judge(gains: Sequence[float], cases: Sequence[Deviations]) -> PairSpecific:
    """Decides from the Dice gains over the mean field and the deviations whether a network has learned the pair."""
    p, deviation = gain_p(gains), deviation_mm(cases)
    learned: bool | None
    if deviation is not None and deviation < SMALLEST_DEVIATION_MM:
        learned = False  # the same field for every pair, which any number of cases proves
    else:
        learned = None if p is None or too_few(len(gains)) else p < SIGNIFICANT
    mean = float(np.mean(gains)) if len(gains) else None
    return PairSpecific(correlate(cases), deviation, mean, p, len(gains), learned)


def explain(found: PairSpecific) -> str:
    """The verdict on a network as a sentence."""
    if found.dice_gain is None:
        gain = "no organ labels, so no Dice gain"
    else:
        gain = f"Dice gain over its mean field {found.dice_gain:+.2f} points, p = {found.dice_gain_p:.2g}"
    if found.learned is None:
        if found.dice_gain is None:
            return f"Whether the network has learned the pair is unknown: {gain}."
        cases = "1 test case is" if found.cases == 1 else f"{found.cases} test cases are"
        return f"Whether the network has learned the pair is unknown: {cases} too few for significance ({gain})."
    if found.learned:
        return f"The network has learned the pair: it is significantly better than its own mean field ({gain})."
    same = found.deviation_mm is not None and found.deviation_mm < SMALLEST_DEVIATION_MM
    field = "the same field for every pair" if same else "not significantly better than its own mean field"
    return f"The network has not learned the pair: it predicts the average motion, {field} ({gain})."
