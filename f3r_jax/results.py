"""The scores of a case before and after registration, and what they become over cases: summary, CSV, Markdown table."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from f3r_jax import metrics
from f3r_jax.data.datasets import Case
from f3r_jax.predict import Registration

SCORES = ("dice", "asd_mm", "hd95_mm")


def score(case: Case, result: Registration, organs: dict[str, tuple[int, ...]]) -> dict:
    """Scores of one case after registration and, under "moving", before. What the case has no truth for is None."""
    still = np.zeros_like(result.displacement)
    after = _scores(case, result.displacement, result.warped_labels, organs)
    return {
        "folding_percent": metrics.folding_percent(result.displacement),
        "sd_log_jacobian": metrics.sd_log_jacobian(result.displacement),
        **after,
        "moving": _scores(case, still, case.moving_labels, organs),
    }


def _scores(case: Case, displacement: np.ndarray, labels: np.ndarray | None, organs: dict) -> dict:
    known = case.fixed_labels is not None
    scores = {"organs": None, "epe_mm": None, "tre_mm": None}
    if known and labels is not None:
        scores["organs"] = metrics.organ_scores(case.fixed_labels, labels, organs=organs, spacing=case.spacing)
    if case.displacement is not None:
        inside = np.isin(case.fixed_labels, [v for values in organs.values() for v in values]) if known else None
        scores["epe_mm"] = metrics.end_point_error_mm(displacement, case.displacement, case.spacing, inside)
    if case.fixed_landmarks is not None and case.moving_landmarks is not None:
        points = (points * case.spacing for points in (case.fixed_landmarks, case.moving_landmarks))
        errors = metrics.target_registration_error(*points, displacement, affine=np.diag([*case.spacing, 1.0]))
        scores["tre_mm"] = float(errors.mean())
    return scores


def summarise_scores(rows: Sequence[dict]) -> dict:
    """Mean and standard deviation over the cases that have a score."""
    known = [row["organs"] for row in rows if row["organs"] is not None]
    summary = {
        "organs": {
            organ: {name: spread([row[organ][name] for row in known]) for name in SCORES}
            for organ in (known[0] if known else {})
        }
    }
    for name in ("epe_mm", "tre_mm"):
        values = [row[name] for row in rows if row[name] is not None]
        summary[name] = spread(values) if values else None
    return summary


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation."""
    return {key: value for key, value in metrics.summarise(list(values)).items() if key != "count"}


def cases_csv(names: Sequence[str], rows: Sequence[dict]) -> str:
    """A row a case and organ; what is unknown stays empty."""
    wide = [*SCORES, *(f"{score}_before" for score in SCORES)]
    columns = ["case", "organ", *wide, "epe_mm", "epe_mm_before", "folding_percent", "sd_log_jacobian", "seconds"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for name, row in zip(names, rows, strict=True):
        shared = {key: row[key] for key in ("epe_mm", "folding_percent", "sd_log_jacobian", "seconds")}
        shared |= {"case": name, "epe_mm_before": row["moving"]["epe_mm"]}
        if row["organs"] is None:
            writer.writerow(shared)
            continue
        for organ, after in row["organs"].items():
            before = {f"{key}_before": value for key, value in row["moving"]["organs"][organ].items()}
            writer.writerow(shared | {"organ": organ} | after | before)
    return text.getvalue()


def table(summary: dict) -> str:
    """The paper's columns as Markdown: before and after, mean ± standard deviation over cases."""
    lines = [
        f"{summary['method']}, {summary['direction']}, {summary['cases']} test cases"
        + (f", step {summary['step']}" if summary["step"] is not None else ""),
        "",
        "| organ | Dice before, % | Dice, % | ASD before, mm | ASD, mm | HD95 before, mm | HD95, mm |",
        "|---|---|---|---|---|---|---|",
    ]
    before = summary["moving"]["organs"]
    for organ in before:
        cells = [_cell(side[organ][name]) for name in SCORES for side in (before, summary["organs"])]
        lines.append(f"| {organ.replace('_', ' ')} | {' | '.join(cells)} |")
    if before:
        means = [
            np.mean([side[organ][name]["mean"] for organ in side])
            for name in SCORES
            for side in (before, summary["organs"])
        ]
        lines.append(f"| mean | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    folding, roughness = (_cell(summary[name], 3) for name in ("folding_percent", "sd_log_jacobian"))
    lines += ["", f"folding {folding} % of voxels, SD of log Jacobian {roughness}"]
    for key, words in (("epe_mm", "end-point error"), ("tre_mm", "landmark error")):
        if summary[key] is not None:
            lines.append(f"{words} {_cell(summary['moving'][key])} mm before, {_cell(summary[key])} mm after")
    lines.append(
        f"{summary['seconds_per_pair']:.2f} s a pair on {summary['device']}, {summary['parameters']:,} parameters"
    )
    return "\n".join(lines) + "\n"


def _cell(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def finite(value: object) -> object:
    """JSON has no NaN or infinity: a mean over no case, or over one that lost an organ, becomes null."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
