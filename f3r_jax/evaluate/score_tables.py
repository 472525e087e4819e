"""Formats the summary of an evaluation as Markdown: scores before and after registration, and the controls."""

from f3r_jax.evaluate import controls
from f3r_jax.evaluate.controls import PairSpecific
from f3r_jax.evaluate.scores import SCORES
from f3r_jax.evaluate.summary import FieldSummary, MeanStd, Summary

HEADS = {"dice": "mean Dice, %", "asd_mm": "mean ASD, mm", "hd95_mm": "mean HD95, mm"}
NO_CONTROLS = "no controls"


def table(summary: Summary) -> str:
    """The paper's columns before and after, as mean ± standard deviation over cases, followed by the controls."""
    sides = (summary.before, summary.after)
    lines = [
        f"{summary.method}, {summary.direction}, {summary.cases} test cases"
        + (f", step {summary.step}" if summary.step is not None else ""),
        "",
        "| organ | Dice before, % | Dice, % | ASD before, mm | ASD, mm | HD95 before, mm | HD95, mm |",
        "|---|---|---|---|---|---|---|",
    ]
    for organ in summary.before.organs:
        cells = [_cell(side.organs[organ][name]) for name in SCORES for side in sides]
        lines.append(f"| {organ.replace('_', ' ')} | {' | '.join(cells)} |")
    if summary.before.organs:
        means = [side.mean_over_organs(name) for name in SCORES for side in sides]
        lines.append(f"| mean | {' | '.join(f'{mean:.2f}' for mean in means)} |")
    folding, spread = _cell(summary.folding_percent, 3), _cell(summary.sd_log_jacobian, 3)
    lines += ["", f"folding {folding} % of voxels, SD of log Jacobian {spread}"]
    before = _errors(summary.before)
    for name, error in _errors(summary.after).items():
        lines.append(f"{name} {_cell(before[name])} mm before, {_cell(error)} mm after")
    lines.append(f"{summary.seconds_per_pair:.2f} s per pair on {summary.device}, {summary.parameters:,} parameters")
    return "\n".join([*lines, "", *_control_lines(summary)]) + "\n"


def explain_controls(summary: Summary) -> str:
    """The verdict on a network as a sentence, or the reason why there is none."""
    if summary.early:
        return f"{NO_CONTROLS}: evaluated by a version without them"
    if summary.controls is None:
        why = "the method is not trained" if summary.step is None else "there is no other case to predict"
        return f"{NO_CONTROLS}: {why}"
    return controls.explain(summary.controls.pair_specific)


def _control_lines(summary: Summary) -> list[str]:
    verdict = explain_controls(summary)
    if summary.controls is None:
        return [verdict]
    scores = [name for name in SCORES if summary.after.organs]
    heads = [*(HEADS[name] for name in scores), *(f"{name}, mm" for name in _errors(summary.after))]
    fields = {
        "none": summary.before,
        "the prediction for the case": summary.after,
        "mean of the predictions for other cases": summary.controls.mean_field,
        "the prediction for another case": summary.controls.other_pair,
    }
    lines = []
    if heads:
        lines += [f"| displacement of each case | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
        for name, side in fields.items():
            cells = [f"{side.mean_over_organs(score):.2f}" for score in scores]
            cells += [_cell(error) for error in _errors(side).values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return [*lines, _correlation(summary.controls.pair_specific), verdict]


def _errors(side: FieldSummary) -> dict[str, MeanStd]:
    """The known errors in mm by display name."""
    errors = {"end-point error": side.epe_mm, "landmark error": side.tre_mm}
    return {name: error for name, error in errors.items() if error is not None}


def _correlation(found: PairSpecific) -> str:
    deviation = "unknown" if found.deviation_mm is None else f"{found.deviation_mm:.3g} mm"
    value = "undefined" if found.correlation is None else f"{found.correlation:.2f}"
    return f"predictions minus their mean field: {deviation} on average, correlation with the ground truth {value}"


def _cell(value: MeanStd, digits: int = 2) -> str:
    return f"{value.mean:.{digits}f} ± {value.std:.{digits}f}"
