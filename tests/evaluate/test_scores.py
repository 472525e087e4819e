"""The scores of a case on disk: as JSON, which a resumed evaluation reads, and as CSV."""

import csv
import dataclasses
import json

from f3r_jax.evaluate.controls import Deviations
from f3r_jax.evaluate.scores import CaseScores, ControlScores, FieldScores, cases_csv

ORGANS = {"ball": {"dice": 90.0, "asd_mm": 1.0, "hd95_mm": 2.0}}
SIDES = FieldScores(ORGANS, 1.0, None), FieldScores(None, None, 3.0)
DEVIATIONS = Deviations(300, 1.0, 9.0, None, None, None)
SCORES = CaseScores(2.0, 0.1, 0.2, *SIDES, ControlScores(*SIDES, DEVIATIONS))


def test_scores_are_stored_as_json_and_read_again():
    found = json.loads(json.dumps(SCORES.to_json()))
    assert CaseScores.from_json(found) == SCORES
    side = {"organs": ORGANS, "epe_mm": 1.0, "tre_mm": None}
    assert list(found) == ["seconds", "folding_percent", "sd_log_jacobian", *side, "before", "controls"]
    assert found.items() >= side.items() and found["controls"]["mean_field"] == side
    assert found["before"] == {"organs": None, "epe_mm": None, "tre_mm": 3.0}
    assert found["controls"]["deviations"] == {"count": 300, "x": 1.0, "xx": 9.0, "y": None, "yy": None, "xy": None}


def test_scores_without_controls():
    alone = dataclasses.replace(SCORES, controls=None)
    assert alone.to_json()["controls"] is None and CaseScores.from_json(alone.to_json()) == alone


def test_a_row_of_the_csv_has_all_displacements_of_a_case():
    whole = FieldScores({"ball": dict(ORGANS["ball"], dice=80.0)}, 2.0, None)
    case = dataclasses.replace(SCORES, before=whole, controls=ControlScores(SIDES[0], whole, DEVIATIONS))
    (row,) = csv.DictReader(cases_csv({"a": case}).splitlines())
    assert (row["case"], row["organ"], row["seconds"]) == ("a", "ball", "2.0")
    suffixes = ("", "_before", "_mean_field", "_other_pair")
    assert [row[f"dice{suffix}"] for suffix in suffixes] == ["90.0", "80.0", "90.0", "80.0"]
    assert [row[f"epe_mm{suffix}"] for suffix in suffixes] == ["1.0", "2.0", "1.0", "2.0"]


def test_a_case_without_labels_has_one_row():
    (row,) = csv.DictReader(cases_csv({"a": CaseScores(2.0, 0.1, 0.2, *SIDES[::-1], None)}).splitlines())
    assert (row["case"], row["organ"], row["dice"], row["epe_mm_before"]) == ("a", "", "", "1.0")
