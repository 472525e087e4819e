"""Scores of a network on the validation cases during training, with controls that show when learning begins."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from f3r_jax.data.cases import Case
from f3r_jax.data.datasets import Dataset
from f3r_jax.evaluate import controls
from f3r_jax.evaluate.inference import register_case, warp_labels
from f3r_jax.evaluate.metrics import end_point_error_mm
from f3r_jax.evaluate.predictions import ControlFields, Predictions
from f3r_jax.ops.fields import folding_percent
from f3r_jax.workdir.trained_network import Predictor

Organs = dict[str, tuple[int, ...]]


def validate(predict: Predictor, params: dict, dataset: Dataset, organs: Organs, *, scratch: Path) -> dict[str, float]:
    """Mean scores over the validation cases. A case without a score is left out of its mean.

    "folding", "dice" (mean over organs) and "dice_<organ>" are in percent; "epe_mm" is inside the organs, in mm. With
    two or more cases there are also controls: "dice_mean_field" and "dice_other_pair" in percent, "dice_gain" over the
    mean field in points, and "correlation". Scores that no case has are left out.

    Args:
      predict: the network.
      params: the parameters of the network.
      dataset: the data set with the validation cases.
      organs: label values by organ.
      scratch: a folder for the predictions. Its content is deleted before and after.
    """
    names = dataset.split["validation"]
    shutil.rmtree(scratch, ignore_errors=True)
    predictions = Predictions(scratch)
    scores: dict[str, list[float]] = {}
    dices: dict[str, dict[str, float]] = {}
    for name in names:
        case = dataset.load(name)
        result = register_case(predict, params, case)
        scores.setdefault("folding", []).append(float(folding_percent(jnp.asarray(result.displacement)[None])[0]))
        if case.displacement is not None:
            mask = controls.inside_organs(case.fixed_labels, organs)
            error = end_point_error_mm(result.displacement, case.displacement, case.spacing, mask)
            scores.setdefault("epe_mm", []).append(error)
        dices[name] = _dices(case, result.warped_labels, organs)
        scores.setdefault("dice", []).append(_mean(dices[name].values()))
        for organ, dice in dices[name].items():
            scores.setdefault(f"dice_{organ}", []).append(dice)
        if len(names) > 1:
            predictions.add(name, result.displacement)
    means = {name: _mean(values) for name, values in scores.items()}
    if len(names) > 1:
        means |= _control_scores(ControlFields(predictions, dataset, names), predictions, dataset, organs, dices)
    predictions.remove()
    return {name: value for name, value in means.items() if np.isfinite(value)}


def _control_scores(
    fields: ControlFields, predictions: Predictions, dataset: Dataset, organs: Organs, own: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Dice and correlation of the controls. Surface distances would take longer than the predictions."""
    dices: dict[str, list[float]] = {kind: [] for kind in controls.KINDS}
    gains: list[float] = []
    deviations = []
    for name, of_case in own.items():
        case, mean_field = dataset.load(name), fields.mean_field(name)
        mask = controls.inside_organs(case.fixed_labels, organs)
        deviations.append(fields.deviations(case, predictions.read(name), mean_field, mask))
        for kind, field in (("mean_field", mean_field), ("other_pair", fields.other_pair(name))):
            found = _dices(case, warp_labels(case.moving_labels, field), organs)
            dices[kind].append(_mean(found.values()))
            gain = controls.dice_gain(of_case, found) if kind == "mean_field" else None
            gains += [] if gain is None else [gain]
    correlation = controls.correlate(deviations)
    means = {f"dice_{kind}": _mean(values) for kind, values in dices.items()} | {"dice_gain": _mean(gains)}
    return means | ({} if correlation is None else {"correlation": correlation})


def _dices(case: Case, labels: np.ndarray | None, organs: Organs) -> dict[str, float]:
    """Dice in percent by organ: empty without labels, NaN for an organ that is in neither volume."""
    if case.fixed_labels is None or labels is None:
        return {}
    return controls.organ_dices(case.fixed_labels, labels, organs)


def _mean(values: Iterable[float]) -> float:
    """The mean of the finite values; NaN if there are none."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")
