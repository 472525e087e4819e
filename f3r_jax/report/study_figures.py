"""The figures of a table: methods compared with the paper, Dice over lambda, training curves, one test case."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from f3r_jax.common.errors import UserError
from f3r_jax.config import upgraded
from f3r_jax.data.cases import Case
from f3r_jax.data.datasets import open_dataset, organs_of
from f3r_jax.evaluate import metrics
from f3r_jax.evaluate.evaluation import FOLDER
from f3r_jax.evaluate.inference import Registration
from f3r_jax.report import case_figures, charts, comparison, paper_results
from f3r_jax.report.charts import Curve, Dots, Drawing
from f3r_jax.report.comparison import Row, Table
from f3r_jax.report.feature_maps import feature_slices
from f3r_jax.report.findings import is_own
from f3r_jax.report.run_scores import CaseKey
from f3r_jax.report.study_runs import Problem, Run
from f3r_jax.report.wording import MEASURES, listed, number
from f3r_jax.workdir import checkpoints

BEHIND = "the others in grey behind it"


def overview(table: Table, stem: str, folder: Path) -> Iterator[Drawing]:
    """All cases and the mean in both measures, with the paper's mean."""
    panels = {f"{words.title}, {words.unit}": _dots(table, measure) for measure, words in MEASURES.items()}
    panels = {name: lines for name, lines in panels.items() if lines}
    if panels:
        caption = (
            "One line per method: ticks are test cases, the dot is their mean, the diamond the paper's mean on its own "
            "data."
        )
        title = "Methods here and in the paper"
        yield charts.save(charts.dots(panels), folder, f"overview_{stem}", title=title, caption=caption)


def lambda_figure(table: Table, stem: str, folder: Path) -> Iterator[Drawing]:
    """Fig. 3; nothing if no method was run with two lambdas."""
    curves = comparison.sweep([run for row in table.rows for run in row.tried])
    if not any(len(points) > 1 for points in curves.values()):
        return
    own = {row.label for row in table.rows if is_own(row)}
    lines = {}
    for name, points in curves.items():
        lam, mean, std = np.array([(point.lam, point.mean, point.std) for point in points], np.float64).T
        lines[name] = Curve(lam, mean, np.nan_to_num(std), name in own)
    ticks = sorted({point.lam for points in curves.values() for point in points})
    figure = charts.charts(lines, x_label="λ", y_label="mean Dice, %", marked=True, x_ticks=ticks)
    caption = f"One panel per method, {BEHIND}. The shaded band is one standard deviation between the test cases."
    yield charts.save(figure, folder, f"figure_3_{stem}", title="Fig. 3 Mean Dice against λ", caption=caption)


def training_figures(table: Table, stem: str, folder: Path) -> Iterator[Drawing]:
    """The training distance, and Dice and controls of the validation cases, over the steps."""
    for key, kind, title, label in (
        ("similarity", "train", "Training distance", "MIND distance of the training pairs, running mean"),
        ("dice", "validation", "Validation", "mean Dice of the validation cases, %"),
        ("dice_gain", "validation", "Validation against the mean field", "Dice gain over the mean field, points"),
        ("correlation", "validation", "Validation against ground truth", "correlation beyond the mean field"),
    ):
        lines = {row.label: line for row in table.rows if (line := _training(row, key, kind))}
        if lines:
            figure = charts.charts(lines, x_label="step", y_label=label, marked=kind == "validation")
            caption = f"{label[0].upper()}{label[1:]}: of each method's first run in the table, {BEHIND}."
            yield charts.save(figure, folder, f"training_{key}_{stem}", title=title, caption=caption)


def case_figure(table: Table, stem: str, folder: Path, problems: list[Problem]) -> Iterator[Drawing | str]:
    """Fig. 4 or 5, of the test case that most methods stored; a sentence if no method stored one."""
    number_ = paper_results.FIGURE_NUMBERS[table.setting.direction]
    found = _stored(table)
    if found is None:
        yield f"Fig. {number_} is left out: no evaluation stored a registration (--pictures sets how many)."
        return
    key, stored = found
    case = _open(key, stored, problems)
    if case is None:
        return
    shown = list(_shown(table, key, stored, case, problems))
    if not shown:
        return
    caption = (
        f"Test case {case.name}: the warped images with the fixed outlines; a zoom where the liver error of all "
        "methods together is largest, with the warped outlines dotted; the deformed grid; the log of the Jacobian."
    )
    without = [row.label for row in table.rows if row.runs and row.label not in {one.label for one in shown}]
    if without:
        caption += f" No registration of this case is stored for {listed(without)}."
    figure = case_figures.comparison(case, shown, organs_of(next(iter(stored.values())).config.data))
    title = f"Fig. {number_} One test case"
    yield charts.save(figure, folder, f"figure_{number_}_{stem}", title=title, caption=caption)


def feature_figure(table: Table, stem: str, folder: Path, problems: list[Problem]) -> Iterator[Drawing | str]:
    """Fig. 6: features inside F3RNet-MRB, or another F3RNet with a checkpoint, for its first test case."""
    rows = {row.system: row for row in table.rows if row.runs and _has_checkpoint(row.runs[0])}
    row = next((rows[system] for system in ("mrb", *paper_results.TABLE_1) if system in rows), None)
    if row is None:
        yield "Fig. 6 is left out: no F3RNet of the table has a checkpoint."
        return
    run = row.runs[0]
    key = next(iter(run.cases))
    case = _open(key, {row.system: run}, problems)
    if case is None:
        return
    try:
        streams = feature_slices(run.path, case, step=run.summary.step, index=_liver_slice(case, run))
    except UserError as error:
        problems.append(Problem(f"{run.path}: Fig. 6", str(error)))
        return
    caption = (
        f"Test case {case.name}, an axial slice after every block. Of the multi-scale stream, the 16 channels that "
        "vary most are shown. Each map has its own grey scale."
    )
    title = f"Fig. 6 Features inside {row.label}"
    yield charts.save(case_figures.features(streams), folder, f"figure_6_{stem}", title=title, caption=caption)


def _dots(table: Table, measure: str) -> list[Dots]:
    lines = []
    for row in table.rows:
        values = np.array([scores[measure] for scores in row.cases.values() if measure in scores])
        values = values[np.isfinite(values)]
        if values.size:
            printed = table.cell(row, measure).printed
            lines.append(Dots(row.label, values, printed[0] if printed else None, is_own(row) if row.runs else None))
    return lines


def _training(row: Row, key: str, kind: str) -> Curve | None:
    rows = row.runs[0].rows if row.runs else []
    points = [(line["step"], line[key]) for line in rows if line["kind"] == kind and key in line]
    if not points:
        return None
    x, y = np.array(points, np.float64).T
    if kind == "train":
        x, y = charts.smoothed(x, y)
    return Curve(x, y, None, is_own(row))


def _stored(table: Table) -> tuple[CaseKey, dict[str, Run]] | None:
    """The case that most methods stored a registration of, and the run of each such method."""
    by_case: dict[CaseKey, dict[str, Run]] = {}
    for row in table.rows:
        for run in row.runs:
            for key in run.cases:
                if _file(run, key).exists():
                    by_case.setdefault(key, {}).setdefault(row.system, run)
    return max(by_case.items(), key=lambda item: len(item[1]), default=None)


def _open(key: CaseKey, stored: dict[str, Run], problems: list[Problem]) -> Case | None:
    """Loads the case from the data set of one of the runs."""
    run = next(iter(stored.values()))
    try:
        return open_dataset(upgraded(run.config).data, seed=run.config.seed).load(key.name)
    except (UserError, OSError, KeyError, AttributeError) as error:
        problems.append(Problem(f"{run.path}: test case {key.name}", f"its data set can't be opened: {error}"))
        return None


def _shown(
    table: Table, key: CaseKey, stored: dict[str, Run], case: Case, problems: list[Problem]
) -> Iterator[case_figures.Shown]:
    for system, run in stored.items():
        path = _file(run, key)
        try:
            registration = _read(path, case.fixed.shape)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            problems.append(Problem(str(path), f"not readable ({type(error).__name__}: {error})"))
            continue
        scores = run.cases[key]
        note = f"liver {number(scores['dice/liver'], 1)} %" if "dice/liver" in scores else ""
        folding = metrics.folding_percent(registration.displacement)
        yield case_figures.Shown(
            table.row(system).label, note + (f", folding {folding:.2g} %" if folding else ""), registration
        )


def _read(path: Path, shape: Sequence[int]) -> Registration:
    with np.load(path) as file:
        arrays = dict(file)
    found = Registration(arrays["displacement"], arrays["warped"], arrays.get("warped_labels"))
    if found.warped.shape != tuple(shape) or found.displacement.shape != (*shape, 3):
        raise ValueError(f"expected {tuple(shape)} voxels as in the data set, found {found.warped.shape}")
    return found


def _has_checkpoint(run: Run) -> bool:
    return run.trained and run.summary.step in checkpoints.steps(run.path)


def _file(run: Run, key: CaseKey) -> Path:
    return run.path / FOLDER / f"{key.name}.npz"


def _liver_slice(case: Case, run: Run) -> int:
    """The axial slice with most of the liver; the middle one without labels."""
    organs = organs_of(run.config.data)
    if case.fixed_labels is None or "liver" not in organs:
        return case.fixed.shape[2] // 2
    return int(np.argmax(np.isin(case.fixed_labels, organs["liver"]).sum(axis=(0, 1))))
