"""Scores of a case and of its controls, before and after registration; their summary and CSV over cases."""

import csv
import io
from collections.abc import Sequence

import numpy as np

from f3r_jax.data.cases import Case
from f3r_jax.evaluate import controls, metrics
from f3r_jax.evaluate.controls import Deviations
from f3r_jax.evaluate.inference import Registration, warp_labels
from f3r_jax.evaluate.predictions import ControlFields

FOLDING_LIMIT = 0.5  # percent of voxels; a field that folds more is not a plausible deformation
FOLDING_ADVICE = "raise loss.lam or lower optim.learning_rate"

SCORES = ("dice", "asd_mm", "hd95_mm")


def score(case: Case, result: Registration, organs: dict[str, tuple[int, ...]]) -> dict:
    """Scores of one case after registration and, under "before", before it. One without ground truth is None."""
    zero = np.zeros_like(result.displacement)
    after = _scores(case, result.displacement, result.warped_labels, organs)
    return {
        "folding_percent": metrics.folding_percent(result.displacement),
        "sd_log_jacobian": metrics.sd_log_jacobian(result.displacement),
        **after,
        "before": _scores(case, zero, case.moving_labels, organs),
    }


def score_controls(case: Case, prediction: np.ndarray, fields: ControlFields, organs: dict) -> dict:
    """Scores of one case with the fields of its controls, and the deviation of its prediction from its mean field."""
    mean_field = fields.mean_field(case.name)
    mask = controls.inside_organs(case.fixed_labels, organs)
    scores = {
        kind: _scores(case, field, warp_labels(case.moving_labels, field), organs)
        for kind, field in (("mean_field", mean_field), ("other_pair", fields.other_pair(case.name)))
    }
    return scores | {"deviations": fields.deviations(case, prediction, mean_field, mask).to_json()}


def _scores(case: Case, displacement: np.ndarray, labels: np.ndarray | None, organs: dict) -> dict:
    known = case.fixed_labels is not None
    scores = {"organs": None, "epe_mm": None, "tre_mm": None}
    if known and labels is not None:
        scores["organs"] = metrics.organ_scores(case.fixed_labels, labels, organs=organs, spacing=case.spacing)
    if case.displacement is not None:
        inside = controls.inside_organs(case.fixed_labels, organs)
        scores["epe_mm"] = metrics.end_point_error_mm(displacement, case.displacement, case.spacing, inside)
    if case.fixed_landmarks is not None and case.moving_landmarks is not None:
        points = (points * case.spacing for points in (case.fixed_landmarks, case.moving_landmarks))
        errors = metrics.target_registration_error(*points, displacement, affine=np.diag([*case.spacing, 1.0]))
        scores["tre_mm"] = float(errors.mean())
    return scores


def summarise_scores(rows: Sequence[dict]) -> dict:
    """Means and standard deviations over the cases that have a score."""
    known = [row["organs"] for row in rows if row["organs"] is not None]
    summary = {
        "organs": {
            organ: {name: mean_std([row[organ][name] for row in known]) for name in SCORES}
            for organ in (known[0] if known else {})
        }
    }
    for name in ("epe_mm", "tre_mm"):
        values = [row[name] for row in rows if row[name] is not None]
        summary[name] = mean_std(values) if values else None
    return summary


def summarise_controls(rows: Sequence[dict]) -> dict | None:
    """Summary of the controls of all cases; None if a case has none."""
    if any(row["controls"] is None for row in rows):
        return None
    gains = [gain for row in rows if (gain := _gain(row)) is not None]
    deviations = [Deviations(**row["controls"]["deviations"]) for row in rows]
    summary = {kind: summarise_scores([row["controls"][kind] for row in rows]) for kind in controls.KINDS}
    return summary | {"pair_specific": controls.judge(gains, deviations).to_json()}


def _gain(row: dict) -> float | None:
    """Mean Dice of a case minus that of its mean field."""
    sides = [side["organs"] for side in (row, row["controls"]["mean_field"])]
    if None in sides:
        return None
    return controls.dice_gain(*({organ: scores["dice"] for organ, scores in side.items()} for side in sides))


def mean_std(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    return {key: value for key, value in metrics.summarise(list(values)).items() if key != "count"}


def cases_csv(names: Sequence[str], rows: Sequence[dict]) -> str:
    """CSV with one row per case and organ; unknown values stay empty."""
    suffixes = ["before", *controls.KINDS]
    wide = [*SCORES, *(f"{score}_{suffix}" for suffix in suffixes for score in SCORES)]
    errors = ["epe_mm", *(f"epe_mm_{suffix}" for suffix in suffixes)]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["case", "organ", *wide, *errors, "folding_percent", "sd_log_jacobian", "seconds"], lineterminator="\n"
    )
    writer.writeheader()
    for name, row in zip(names, rows, strict=True):
        sides = {"before": row["before"]} | {kind: (row["controls"] or {}).get(kind) for kind in controls.KINDS}
        sides = {suffix: side for suffix, side in sides.items() if side is not None}
        shared = {key: row[key] for key in ("epe_mm", "folding_percent", "sd_log_jacobian", "seconds")}
        shared |= {"case": name} | {f"epe_mm_{suffix}": side["epe_mm"] for suffix, side in sides.items()}
        if row["organs"] is None:
            writer.writerow(shared)
            continue
        for organ, after in row["organs"].items():
            others = {f"{key}_{x}": value for x, side in sides.items() for key, value in side["organs"][organ].items()}
            writer.writerow(shared | {"organ": organ} | after | others)
    return text.getvalue()
