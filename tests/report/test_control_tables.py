"""What a report shows of the controls of its networks."""

import csv
import json

import pytest

from f3r_jax.report import comparison, control_tables, findings, write
from f3r_jax.report.study_runs import read_study
from report_runs import controls, edit, write_run

DICES = [85.0] * 6


@pytest.fixture
def runs(tmp_path):
    """A network that learned, two seeds of one that did not, an undecided one, one of an earlier version, and SyN."""
    folder = tmp_path / "runs"
    write_run(folder / "mrb", DICES, summary=controls(4.1, True))
    for seed, learned in enumerate((False, True)):
        write_run(folder / f"faim{seed}", DICES, system="faim", seed=seed, summary=controls(-0.25, learned))
    write_run(folder / "vm1", DICES, system="voxelmorph1", summary=controls(1.0, None, correlation=None, cases=2))
    edit(write_run(folder / "vm2", DICES, system="voxelmorph2") / "evaluation" / "summary.json", "before", "moving")
    write_run(folder / "syn", DICES, system="syn", summary={"controls": None})
    return folder


def table_of(folder):
    study = read_study([folder])
    assert not study.problems
    (table,) = comparison.tables_of(study.runs)
    return table


def test_the_table(runs):
    grid = control_tables.control_grid(table_of(runs))
    assert grid.full_heads[4:] == [
        "Gain over the mean field, points",
        "Gain over the mean field, p",
        "Correlation",
        "Learned the pair",
    ]
    shown = {(label, note): [cell.shown for cell in cells] for label, note, cells in grid.rows}
    dice = f"{85 + (0 + 1 + 2 + 4) / 4:.1f}"
    assert shown["F3RNet-MRB", ""] == [dice, dice, "80.0", "70.0", "+4.10", "0.016", "0.50", "yes"]
    assert shown["FAIM", "seed 0"][4:] == ["-0.25", "0.7", "0.50", "no"]
    assert shown["VoxelMorph-1", ""][6:] == ["–", "unknown"]
    for label in ("VoxelMorph-2", "SyN"):
        assert shown[label, ""] == [dice, dice, *["–"] * 5, "no controls"]


def test_the_verdicts_in_words(runs):
    text = "\n".join(control_tables.control_notes(table_of(runs)))
    assert "F3RNet-MRB: The network has learned the pair" in text
    assert "FAIM (seed 0): The network has not learned the pair: it predicts the average motion" in text
    assert "VoxelMorph-1: Whether the network has learned the pair is unknown: 2 test cases" in text
    assert "VoxelMorph-2: no controls: evaluated by a version without them" in text
    assert "SyN: no controls: the method is not trained" in text


def test_the_findings_begin_with_what_has_not_learned(runs):
    (finding,) = findings.findings([table_of(runs)])
    assert finding.sentences[0] == "FAIM (1 of 2 runs) has not learned the pair: it predicts the average motion."
    unknown = "VoxelMorph-1 (the controls can't decide); VoxelMorph-2 (no controls)"
    assert f"Unknown whether the pair was learned: {unknown}." in finding.sentences


def test_nothing_to_say_where_all_have_learned(tmp_path):
    write_run(tmp_path / "run", DICES, summary=controls(4.1, True))
    table = table_of(tmp_path)
    assert control_tables.not_learned(table) == control_tables.undecided(table) == ""


def test_the_pages_and_files(runs, tmp_path):
    with (runs / "mrb" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "kind": "validation", "dice_gain": 1.0, "correlation": 0.2}) + "\n")
    output = tmp_path / "report"
    assert not write.write_report([runs], output).problems
    for page in ("index.html", "report.md"):
        text = (output / page).read_text()
        assert "Controls: has the network learned the pair?" in text and "it predicts the average motion" in text
    with (output / "runs.csv").open() as file:
        learned = {row["method"]: row["learned the pair"] for row in csv.DictReader(file)}
    assert (learned["F3RNet-MRB"], learned["SyN"], learned["VoxelMorph-1"]) == ("yes", "no controls", "unknown")
    assert {path.name for path in output.glob("training_*.png")} >= {
        "training_dice_gain_ct_to_mr.png",
        "training_correlation_ct_to_mr.png",
    }


def test_controls_that_are_not_as_evaluate_writes_them_are_listed(tmp_path):
    folder = write_run(tmp_path / "run", DICES, summary=controls(4.1, True))
    edit(folder / "evaluation" / "summary.json", '"learned"', '"clever"')
    (problem,) = read_study([folder]).problems
    assert "summary.json: not as evaluate writes it" in problem.reason and "learned" in problem.reason
