"""Reads the scores of a run's test cases from the files of its evaluation.

The scores of a case are a flat mapping, {"dice/liver": 88.1, "asd_mm/kidney": 2.9, ..., "folding_percent": 0.0}. A key
is a score and a region of interest (ROI). The kidneys are one ROI, as in the paper: the mean over both. "dice/mean" is
the mean over the ROIs.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from f3r_jax.evaluate.evaluation import FOLDER
from f3r_jax.evaluate.scores import SCORES
from f3r_jax.evaluate.summary import Summary

Scores = dict[str, float]
OF_THE_FIELD = ("folding_percent", "sd_log_jacobian", "epe_mm")
AGREEMENT = 1e-6  # largest relative difference between a mean in the summary and that over the rows


class CaseKey(NamedTuple):
    """A test case. Two are the same if their names and their scores before registration agree.

    The name alone is not enough: a phantom of another seed has cases of the same names.
    """

    name: str
    before: tuple[tuple[str, float], ...]


class UnreadableRun(Exception):
    """A run can't be used; the message is the reason."""


def read_cases(path: Path, summary: Summary) -> dict[CaseKey, Scores]:
    """Reads the scores of each case from a cases.csv, which must be of the same evaluation as the summary."""
    by_name: dict[str, list[dict[str, str]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                by_name.setdefault(row["case"], []).append(row)
        if not by_name:
            raise UnreadableRun(f"{FOLDER}/{path.name}: no cases in it")
        _check_agreement(summary, by_name)
        return dict(_case(name, rows) for name, rows in by_name.items())
    except OSError as error:
        raise UnreadableRun(f"{FOLDER}/{path.name}: not readable ({error.strerror})") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UnreadableRun(
            f"{FOLDER}/{path.name}: not as evaluate writes it ({type(error).__name__}: {error})"
        ) from error


def before(key: CaseKey) -> Scores:
    """The scores of a case before registration."""
    return dict(key.before)


def roi_of(organ: str) -> str:
    """The ROI an organ belongs to."""
    return "kidney" if "kidney" in organ else organ


def mean(values: Sequence[float]) -> float:
    """The mean of the known values; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def read_summary(path: Path) -> Summary:
    """Reads the summary.json of an evaluation."""
    found = read_json(path)
    try:
        return Summary.from_json(found)
    except (AttributeError, KeyError, TypeError) as error:
        raise UnreadableRun(
            f"{FOLDER}/{path.name}: not as evaluate writes it ({type(error).__name__}: {error})"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object from a file of a run."""
    name = f"{path.parent.name}/{path.name}" if path.parent.name == FOLDER else path.name
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UnreadableRun(f"{name}: not readable ({error})") from error
    if not isinstance(found, dict):
        raise UnreadableRun(f"{name}: expected an object, found {type(found).__name__}")
    return found


def _case(name: str, rows: Sequence[Mapping[str, str]]) -> tuple[CaseKey, Scores]:
    if not any(row["organ"] for row in rows):
        raise UnreadableRun(f"{FOLDER}/cases.csv: {name} has no organ labels, so no Dice and no surface distance")
    sides = [_roi_scores(rows, suffix) for suffix in ("_before", "")]
    first = rows[0]
    fields = {key: _number(first[key]) for key in OF_THE_FIELD}
    earlier = sides[0] | {"epe_mm": _number(first["epe_mm_before"])}
    # Seven digits, because the last bits may differ on another machine.
    known = tuple((key, float(f"{value:.7g}")) for key, value in sorted(earlier.items()) if not math.isnan(value))
    return CaseKey(name, known), sides[1] | fields


def _roi_scores(rows: Sequence[Mapping[str, str]], suffix: str) -> Scores:
    scores: Scores = {}
    for score in SCORES:
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(roi_of(row["organ"]), []).append(_number(row[score + suffix]))
        scores |= {f"{score}/{roi}": mean(of_roi) for roi, of_roi in values.items()}
        scores[f"{score}/mean"] = mean([scores[f"{score}/{roi}"] for roi in values])
    return scores


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def _check_agreement(summary: Summary, by_name: Mapping[str, Sequence[Mapping[str, str]]]) -> None:
    """Raises an UnreadableRun if summary and rows are not of the same evaluation."""
    again = f"summary.json and cases.csv in {FOLDER} disagree; evaluate again"
    if summary.cases != len(by_name):
        raise UnreadableRun(f"{again} ({summary.cases} and {len(by_name)} cases)")
    for organ, scores in summary.after.organs.items():
        value = scores["dice"].mean
        rows = mean([_number(row["dice"]) for of_case in by_name.values() for row in of_case if row["organ"] == organ])
        if not math.isnan(value) and not math.isclose(value, rows, rel_tol=AGREEMENT):
            raise UnreadableRun(f"{again} (Dice of {organ}: {value:.3f} and {rows:.3f})")
