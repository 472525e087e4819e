"""Formats the summary of an evaluation as Markdown: scores before and after registration, and the controls."""

from collections.abc import Mapping

import numpy as np

from f3r_jax.evaluate import controls
from f3r_jax.evaluate.scoring import SCORES

ERRORS = {"epe_mm": "end-point error", "tre_mm": "landmark error"}
HEADS = {"dice": "mean Dice, %", "asd_mm": "mean ASD, mm", "hd95_mm": "mean HD95, mm"}
NO_CONTROLS = "no controls"


def table(summary: Mapping) -> str:
    """The paper's columns before and after, as mean ± standard deviation over cases, followed by the controls."""
    earlier = before(summary)
    lines = [
        f"{summary['method']}, {summary['direction']}, {summary['cases']} test cases"
        + (f", step {summary['step']}" if summary["step"] is not None else ""),
        "",
        "| organ | Dice before, % | Dice, % | ASD before, mm | ASD, mm | HD95 before, mm | HD95, mm |",
        "|---|---|---|---|---|---|---|",
    ]
    for organ in earlier["organs"]:
        cells = [_cell(side["organs"][organ][name]) for name in SCORES for side in (earlier, summary)]
        lines.append(f"| {organ.replace('_', ' ')} | {' | '.join(cells)} |")
    if earlier["organs"]:
        means = [mean_over_organs(side, name) for name in SCORES for side in (earlier, summary)]
        lines.append(f"| mean | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    folding, spread = (_cell(summary[name], 3) for name in ("folding_percent", "sd_log_jacobian"))
    lines += ["", f"folding {folding} % of voxels, SD of log Jacobian {spread}"]
    for key, words in ERRORS.items():
        if summary[key] is not None:
            lines.append(f"{words} {_cell(earlier[key])} mm before, {_cell(summary[key])} mm after")
    lines.append(
        f"{summary['seconds_per_pair']:.2f} s per pair on {summary['device']}, {summary['parameters']:,} parameters"
    )
    return "\n".join([*lines, "", *_control_lines(summary)]) + "\n"


def before(summary: Mapping) -> Mapping:
    """The scores before registration, which earlier versions wrote as "moving"."""
    return summary["before"] if "before" in summary else summary["moving"]


def mean_over_organs(side: Mapping, name: str) -> float:
    """The mean over organs of a score's mean over cases; NaN without organs, or if an organ has no score."""
    means = [scores[name]["mean"] for scores in side["organs"].values()]
    return float(np.mean([np.nan if mean is None else mean for mean in means])) if means else float("nan")


def explain_controls(summary: Mapping) -> str:
    """The verdict on a network as a sentence, or the reason why there is none."""
    if "controls" not in summary:
        return f"{NO_CONTROLS}: evaluated by a version without them"
    if summary["controls"] is None:
        why = "the method is not trained" if summary["step"] is None else "there is no other case to predict"
        return f"{NO_CONTROLS}: {why}"
    return controls.explain(summary["controls"]["pair_specific"])


def _control_lines(summary: Mapping) -> list[str]:
    verdict = explain_controls(summary)
    if not summary.get("controls"):
        return [verdict]
    scores = [name for name in SCORES if summary["organs"]]
    errors = [name for name in ERRORS if summary[name] is not None]
    heads = [*(HEADS[name] for name in scores), *(f"{ERRORS[name]}, mm" for name in errors)]
    fields = {
        "none": before(summary),
        "the prediction for the case": summary,
        "mean of the predictions for other cases": summary["controls"]["mean_field"],
        "the prediction for another case": summary["controls"]["other_pair"],
    }
    lines = []
    if heads:
        lines += [f"| displacement of each case | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for name, side in fields.items():
            cells = [f"{mean_over_organs(side, score):.2f}" for score in scores] + [_cell(side[key]) for key in errors]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return [*lines, _correlation(summary["controls"]["pair_specific"]), verdict]


def _correlation(found: Mapping) -> str:
    deviation = "unknown" if found["deviation_mm"] is None else f"{found['deviation_mm']:.3g} mm"
    value = "undefined" if found["correlation"] is None else f"{found['correlation']:.2f}"
    return f"predictions minus their mean field: {deviation} on average, correlation with the ground truth {value}"


def _cell(value: Mapping[str, float], digits: int = 2) -> str:
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"
