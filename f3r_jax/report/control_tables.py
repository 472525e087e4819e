"""The controls of a study's networks as a table and as sentences: did they learn the pair, or the average motion?"""

from f3r_jax.evaluate.score_tables import NO_CONTROLS, explain_controls
from f3r_jax.evaluate.summary import FieldSummary
from f3r_jax.report.comparison import Row, Table
from f3r_jax.report.study_runs import Run
from f3r_jax.report.wording import Text, TextTable, count, listed, number

VERDICTS = {True: "yes", False: "no", None: "unknown"}
LEGEND = (
    "Mean field: each test case is warped by the mean of the predictions for the other test cases, which is the "
    "average motion. Other pair: it is warped by the prediction for another test case. Dice is the mean over organs. "
    "p: Wilcoxon's signed-rank test of the gain over the mean field, one-sided, paired by case. Correlation: of "
    "prediction and ground truth inside the organs, each minus its mean over the other cases. A network that has not "
    "learned the pair predicts the average motion, and its scores do not measure registration."
)


def control_grid(table: Table) -> TextTable:
    """One row per run of the table."""
    rows = [(row.label, _note(row, run), _cells(run)) for row in table.rows for run in row.runs]
    groups = [("Mean Dice, %", 4), ("Gain over the mean field", 2), ("Correlation", 1), ("Learned the pair", 1)]
    heads = ["before", "prediction", "mean field", "other pair", "points", "p", "", ""]
    return TextTable(groups, heads, rows)


def control_notes(table: Table) -> list[str]:
    """The meaning of the columns, and the verdict on each run."""
    verdicts = [
        f"{row.label}{f' ({note})' if (note := _note(row, run)) else ''}: {explain_controls(run.summary)}"
        for row in table.rows
        for run in row.runs
    ]
    return [LEGEND, *verdicts]


def not_learned(table: Table) -> str:
    """A sentence that lists the networks that predict the average motion; empty if there are none."""
    names = _with_verdict(table, "no")
    if not names:
        return ""
    have, they = ("has", "it predicts") if len(names) == 1 else ("have", "they predict")
    return f"{listed(names)} {have} not learned the pair: {they} the average motion."


def undecided(table: Table) -> str:
    """A sentence that lists the networks with an unknown verdict; empty if there are none."""
    parts = []
    for verdict, why in (("unknown", "the controls can't decide"), (NO_CONTROLS, NO_CONTROLS)):
        names = _with_verdict(table, verdict)
        parts += [f"{listed(names)} ({why})"] if names else []
    return f"Unknown whether the pair was learned: {'; '.join(parts)}." if parts else ""


def verdict(run: Run) -> str:
    """Whether a run has learned the pair: yes, no, unknown or no controls."""
    controls = run.summary.controls
    return NO_CONTROLS if controls is None else VERDICTS[controls.pair_specific.learned]


def _with_verdict(table: Table, wanted: str) -> list[str]:
    """The networks of the table with this verdict, each with the number of its runs that have it."""
    names = []
    for row in table.rows:
        found = [run for run in row.runs if run.trained and verdict(run) == wanted]
        if found:
            names.append(row.label + (f" ({len(found)} of {count(len(row.runs), 'run')})" if len(row.runs) > 1 else ""))
    return names


def _note(row: Row, run: Run) -> str:
    return f"seed {run.config.seed}" if len(row.runs) > 1 else ""


def _cells(run: Run) -> list[Text]:
    controls = run.summary.controls
    sides = [run.summary.before, run.summary.after]
    if controls is None:
        return [*map(_dice, sides), *[Text("–")] * 5, Text(NO_CONTROLS)]
    found = controls.pair_specific
    return [
        *map(_dice, [*sides, controls.mean_field, controls.other_pair]),
        Text("–" if found.dice_gain is None else f"{found.dice_gain:+.2f}"),
        Text("–" if found.dice_gain_p is None else f"{found.dice_gain_p:.2g}"),
        Text(number(found.correlation)),
        Text(verdict(run)),
    ]


def _dice(side: FieldSummary) -> Text:
    return Text(number(side.mean_over_organs("dice"), 1))
