"""Evaluates a run on the test cases of its config: registers, scores and draws each case, and summarises the scores."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from f3r_jax.common import events, result_folder
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import json_safe, replacing, write_text
from f3r_jax.common.progress import Progress
from f3r_jax.common.provenance import versions
from f3r_jax.data.cases import Case
from f3r_jax.data.datasets import Dataset, open_dataset, organs_of
from f3r_jax.data.pair_files import PairFiles
from f3r_jax.evaluate import controls, curves, figures, learn2reg, learn2reg_files, score_tables, scoring
from f3r_jax.evaluate.inference import Registration, apply_displacement
from f3r_jax.evaluate.methods import Method, open_method
from f3r_jax.evaluate.predictions import ControlFields, Predictions
from f3r_jax.evaluate.resumable_scores import ResumableScores
from f3r_jax.evaluate.scores import CaseScores, cases_csv
from f3r_jax.evaluate.scoring import FOLDING_ADVICE, FOLDING_LIMIT, Organs
from f3r_jax.evaluate.summary import ControlSummary, FieldSummary, MeanStd, Summary
from f3r_jax.workdir.log import read_rows
from f3r_jax.workdir.metadata import read_origin

FOLDER, REFINED_FOLDER = "evaluation", "evaluation_refined"
CHALLENGE = "learn2reg"  # subfolder of these
SUBMITTED = ("validation", "test")  # the challenge's registration_val and registration_test


def evaluate(
    workdir: Path,
    *,
    step: int | None = None,
    refine: bool = False,
    dataset: Dataset | None = None,
    drawn: int = 3,
    challenge: bool = False,
) -> Summary:
    """Scores one checkpoint of a run on its test cases, writes the files and returns the summary.

    Args:
      workdir: the run's folder.
      step: step of the checkpoint; the newest if None.
      refine: whether an instance optimisation follows each prediction.
      dataset: the run's data set, opened from its config if None.
      drawn: number of cases to draw figures of.
      challenge: whether to also write Learn2Reg's submission files and scores, for the validation cases too.

    Raises:
      UserError: no such checkpoint, it doesn't fit its config, Learn2Reg doesn't score such data, or the folder cannot
        be written or another process writes there.
    """
    method = open_method(workdir, step, refine=refine)
    config = method.config
    if dataset is None:
        dataset = open_dataset(config.data, seed=config.seed)
    names = dataset.split["test"]
    if not names:
        raise UserError(
            f"{config.data.root}: no test cases, expected data.test_cases of 1 or more, or a split with test cases"
        )
    submitted = [name for split in SUBMITTED for name in dataset.split[split]] if challenge else []
    files = learn2reg_files.open_pairs(config.data, submitted) if challenge else {}
    if any(pair.fixed.labels and pair.moving.labels for pair in files.values()):
        learn2reg.require_surface_distance()  # checked now, not after hours of registration
    folder = folder_of(workdir, refine=refine)
    with result_folder.reserved(folder):
        return _evaluate(folder, method, dataset, files, drawn=drawn, challenge=challenge)


def _evaluate(
    folder: Path,
    method: Method,
    dataset: Dataset,
    files: dict[str, PairFiles],
    *,
    drawn: int,
    challenge: bool,
) -> Summary:
    """The same in a reserved folder."""
    names = dataset.split["test"]
    scored = ResumableScores(folder / "scored.jsonl", method.step)
    predictions = _open_predictions(folder, method.step)
    if left := [name for name in names if name not in scored.cases]:
        references = controls.choose_references(names, dataset.split["train"]) if method.trained else ()
        register_cases(method, dataset, list(dict.fromkeys([*references, *left])), predictions)
        fields = ControlFields(predictions, dataset, references) if references else None
        score_cases(method, dataset, left, scored, predictions, fields, folder=folder, drawn=names[:drawn])

    cases = {name: scored.cases[name] for name in names}
    summary = summarise(method, list(cases.values()), origin=read_origin(folder.parent))
    write_files(folder, summary, cases)
    if challenge:
        submit(folder / CHALLENGE, method, dataset, files)
    scored.forget()
    predictions.remove()
    return summary


def folder_of(workdir: Path, *, refine: bool) -> Path:
    """The folder of a run's evaluation."""
    return workdir / (REFINED_FOLDER if refine else FOLDER)


def register_cases(method: Method, dataset: Dataset, names: Sequence[str], predictions: Predictions) -> None:
    """Registers the cases that are not registered yet, and stores their displacements."""
    left = [name for name in names if name not in predictions]
    if left and method.compiles:  # so that the time of a case contains no compilation
        method.register(dataset.load(left[0]))
    with Progress("registering", len(names), done=len(names) - len(left)) as progress:
        for name in left:
            case = dataset.load(name)
            start = time.perf_counter()
            result = method.register(case)
            predictions.add(name, result.displacement, time.perf_counter() - start)
            progress.advance()


def score_cases(
    method: Method,
    dataset: Dataset,
    names: Sequence[str],
    scored: ResumableScores,
    predictions: Predictions,
    fields: ControlFields | None,
    *,
    folder: Path,
    drawn: Sequence[str],
) -> None:
    """Scores registered cases and their controls, and writes the figures of the cases in `drawn`."""
    organs = organs_of(method.config.data)
    with Progress("scoring", len(names)) as progress:
        for name in names:
            case = dataset.load(name)
            result = apply_displacement(case, predictions.read(name))
            if name in drawn:
                save_registration(folder / f"{name}.npz", result)
                save_figures(folder, case, result, organs, method.label)
            found = scoring.score_controls(case, result.displacement, fields, organs) if fields else None
            seconds = predictions.seconds(name)
            scored.add(name, scoring.score(case, result, organs, seconds=seconds, control_scores=found))
            progress.advance()


def summarise(method: Method, cases: Sequence[CaseScores], *, origin: Mapping[str, Any]) -> Summary:
    """Means and standard deviations over cases; `origin` is that of the run."""
    return Summary(
        method=method.label,
        direction=method.config.data.direction,
        cases=len(cases),
        parameters=method.parameters,
        step=method.step,
        seconds_per_pair=float(np.mean([case.seconds for case in cases])),
        device=jax.devices()[0].platform if method.compiles else "cpu",
        folding_percent=MeanStd.of([case.folding_percent for case in cases]),
        sd_log_jacobian=MeanStd.of([case.sd_log_jacobian for case in cases]),
        after=FieldSummary.of([case.after for case in cases]),
        before=FieldSummary.of([case.before for case in cases]),
        controls=ControlSummary.of(cases),
        versions=versions(),
        origin=origin,
    )


def write_files(folder: Path, summary: Summary, cases: Mapping[str, CaseScores]) -> None:
    """Writes the training curves, and the scores as CSV, Markdown and JSON."""
    logged = read_rows(folder.parent / "metrics.jsonl")
    kinds = {kind: [_numbers(row) for row in logged if row["kind"] == kind] for kind in ("train", "validation")}
    if logged:
        curves.training_curves(folder / "training.png", kinds["train"], kinds["validation"])
    write_text(folder / "cases.csv", cases_csv(cases))
    write_text(folder / "table.md", score_tables.table(summary))
    write_text(folder / "summary.json", json.dumps(json_safe(summary.to_json()), indent=2) + "\n")


def submit(folder: Path, method: Method, dataset: Dataset, files: dict[str, PairFiles]) -> dict:
    """Registers the cases with these files again; writes the challenge's submissions and scores; returns the scores.

    The layout is {split: {"cases": {name: {metric: {"mean", "detailed"}}}, "aggregates": {metric: {"mean", ...}}}}.
    """
    folder.mkdir(exist_ok=True)
    summary = {}
    with Progress("submitting", len(files)) as progress:
        for split in SUBMITTED:
            cases = {}
            for name in dataset.split[split]:
                case = dataset.load(name)
                cases[name] = learn2reg_files.submit(folder, method.register(case).displacement, case, files[name])
                progress.advance()
            if cases:
                summary[split] = {"cases": cases, "aggregates": learn2reg.aggregate(list(cases.values()))}
    write_text(folder / "summary.json", json.dumps(json_safe(summary), indent=2) + "\n")
    return summary


def save_registration(path: Path, result: Registration) -> None:
    """Writes a registration as .npz, for reports that compare methods."""
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **{name: array for name, array in result._asdict().items() if array is not None})


def save_figures(folder: Path, case: Case, result: Registration, organs: Organs, method: str) -> None:
    """Writes the figures of one case: overlay, checkerboard and deformation."""
    fixed, moving, warped = case.fixed, case.moving, result.warped
    spacing, title = case.spacing, f"{method}, {case.name}"
    figures.overlay(
        folder / f"{case.name}_overlay.png",
        fixed=fixed,
        moving=moving,
        warped=warped,
        fixed_labels=case.fixed_labels,
        moving_labels=case.moving_labels,
        warped_labels=result.warped_labels,
        spacing=spacing,
        title=title,
        organs=organs,
    )
    path = folder / f"{case.name}_checkerboard.png"
    figures.checkerboard(path, fixed=fixed, moving=moving, warped=warped, spacing=spacing, title=title)
    path = folder / f"{case.name}_deformation.png"
    figures.deformation(path, fixed=fixed, displacement=result.displacement, spacing=spacing, title=title)


def _open_predictions(folder: Path, step: int | None) -> Predictions:
    """Opens the predictions of a checkpoint, and deletes those that a killed evaluation of another checkpoint left."""
    own = folder / f".predictions_{step}"
    for other in folder.glob(".predictions_*"):
        if other != own:
            shutil.rmtree(other)
    return Predictions(own)


def _numbers(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "kind"}


def print_report(summary: Summary, folder: Path) -> None:
    """Reports the table and the folder of the files."""
    text = f"\n{score_tables.table(summary)}\nevaluation: {folder}"
    file = folder / "summary.json"
    events.emit(events.RESULT, text, of="evaluation", folder=folder, summary=file, scores=summary.to_json())
    if summary.folding_percent.mean > FOLDING_LIMIT:
        events.warning(f"over {FOLDING_LIMIT} % of voxels fold; {FOLDING_ADVICE}")
