import csv
import json

from f3r_jax.register import batch_summary
from f3r_jax.register.batch_summary import Row

SUMMARY = {
    "before": {"mean_dice": 70.0, "tre_mm": 8.0},
    "mean_dice": 90.0,
    "tre_mm": 2.5,
    "similarity": {"initial": 0.2, "affine": 0.15, "refined": 0.1},
    "folding_percent": 0.25,
    "seconds": {"affine": 1.0, "total": 12.0},
}
PLAIN = SUMMARY | {"before": {}, "mean_dice": None, "tre_mm": None, "similarity": {"initial": None, "affine": 0.3}}
FAILED = Row("c", "failed", reason="c.nii.gz: no, such file", traceback="Traceback")


def _rows():
    return [batch_summary.row_of("a", SUMMARY), batch_summary.row_of("b", PLAIN), FAILED, batch_summary.waiting("d")]


def test_a_line_says_what_is_known():
    lines = [batch_summary.format_row(row) for row in _rows()[:3]]
    assert lines[0] == (
        "a: Dice 70.0 -> 90.0 %, landmarks 8.00 -> 2.50 mm, MIND difference 0.2000 -> 0.1000, folding 0.250 %, 12.0 s"
    )
    assert lines[1] == "b: folding 0.250 %, 12.0 s"
    assert lines[2] == "c: failed: c.nii.gz: no, such file"


def test_the_means_are_those_of_the_pairs_that_have_a_number():
    first, second = batch_summary.format_totals(_rows()).splitlines()
    assert first == "4 pairs: 2 registered, 1 failed"
    assert second.startswith("mean: Dice 70.0 -> 90.0 %")
    assert batch_summary.format_totals([FAILED]) == "1 pair: 0 registered, 1 failed"


def test_the_files_hold_every_pair(tmp_path):
    batch_summary.write(tmp_path, _rows(), {"command": "as typed"})
    with (tmp_path / batch_summary.TABLE).open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "done", "failed", "waiting"]
    assert rows[0]["similarity_before"] == "0.2" and rows[0]["similarity"] == "0.1" and rows[1]["mean_dice"] == ""
    assert rows[2]["reason"] == FAILED.reason
    summary = json.loads((tmp_path / batch_summary.SUMMARY).read_text())
    assert summary["command"] == "as typed" and summary["mean"]["mean_dice"] == 90.0
    assert summary["pairs"][2]["traceback"] == "Traceback"
