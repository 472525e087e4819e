"""What a report reads and computes: runs, their best settings, tests, and the words made of them."""

import itertools
import json
import math
import re

import numpy as np
import pytest

from f3r_jax.report import comparison, findings, paper_results, wording
from f3r_jax.report.study_runs import read_study
from report_runs import STEPS, edit, write_run


def tables_of(*folders):
    study = read_study(folders)
    assert not study.problems
    return comparison.tables_of(study.runs)


def test_scores_of_a_case(tmp_path):
    """Kidney: the mean of both; mean: of liver, spleen and kidney."""
    (run,) = read_study([write_run(tmp_path / "run", [80.0, 90.0])]).runs
    first, second = run.cases.items()
    assert [first[0].name, second[0].name] == ["case_0", "case_1"]
    scores = first[1]
    dices = [scores[f"dice/{roi}"] for roi in ("liver", "spleen", "kidney", "mean")]
    assert dices == [80, 81, 83, pytest.approx(244 / 3)]
    assert scores["asd_mm/liver"] == 2.0 and scores["hd95_mm/kidney"] == pytest.approx(3.4)
    assert dict(first[0].before)["dice/kidney"] == 63
    assert (run.system, run.lam, len(run.rows)) == ("mrb", 0.5, STEPS + 1)


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "one", [80.0])
    two = write_run(tmp_path / "two", [80.0])
    write_run(two / "checkpoints" / "no_run", [80.0])  # inside a run there is no other
    study = read_study([tmp_path, two, tmp_path / "a"])
    assert [run.path.name for run in study.runs] == ["one", "two"] and not study.problems


def cut_training(folder):
    (folder / "metrics.jsonl").write_text('{"step": 2, "kind": "train"}\n')


def without_labels(folder):
    cases, summary = (folder / "evaluation" / name for name in ("cases.csv", "summary.json"))
    cases.write_text(re.sub("liver|spleen|right_kidney|left_kidney", "", cases.read_text()))
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"organs": {}}))


def unevaluated(folder):
    (folder / "evaluation" / "summary.json").unlink()


BREAKS = {
    "no config": (lambda f: (f / "config.json").write_text('{"seed": 0,'), ["config.json", "not readable"]),
    "list for a config": (lambda f: (f / "config.json").write_text("[]"), ["config.json", "found list"]),
    "no lambda": (lambda f: edit(f / "config.json", '"lam"', '"weight"'), ["config.json", "lam"]),
    "direction": (lambda f: edit(f / "config.json", "ct_to_mr", "up"), ["config.json", "'up'"]),
    "not evaluated": (unevaluated, ["not evaluated"]),
    "cut off": (lambda f: (cut_training(f), unevaluated(f)), ["half-finished", f"2 of {STEPS}", "not evaluated"]),
    "no training": (lambda f: ((f / "metrics.jsonl").unlink(), unevaluated(f)), ["half-finished", f"0 of {STEPS}"]),
    "evaluated too early": (
        lambda f: (cut_training(f), edit(f / "evaluation" / "summary.json", f'"step": {STEPS}', '"step": 2')),
        ["half-finished", f"2 of {STEPS}", "evaluated at step 2"],
    ),
    "metrics": (lambda f: (f / "metrics.jsonl").write_text("what\n"), ["metrics.jsonl"]),
    "metrics of another kind": (lambda f: (f / "metrics.jsonl").write_text('{"a": 1}\n'), ["metrics.jsonl", "kind"]),
    "summary": (lambda f: (f / "evaluation" / "summary.json").write_text(""), ["evaluation/summary.json"]),
    "summary without method": (
        lambda f: edit(f / "evaluation" / "summary.json", '"method"', '"name"'),
        ["evaluation/summary.json", "method"],
    ),
    "no cases": (lambda f: (f / "evaluation" / "cases.csv").unlink(), ["evaluation/cases.csv", "No such file"]),
    "empty cases": (lambda f: (f / "evaluation" / "cases.csv").write_text("case,organ\n"), ["no cases"]),
    "a column": (lambda f: edit(f / "evaluation" / "cases.csv", "hd95_mm,", "other,"), ["cases.csv", "hd95_mm"]),
    "no number": (lambda f: edit(f / "evaluation" / "cases.csv", ",80.0,", ",many,"), ["cases.csv", "many"]),
    "no labels": (without_labels, ["case_0 has no organ labels"]),
    "another Dice": (lambda f: edit(f / "evaluation" / "cases.csv", ",80.0,", ",80.1,"), ["disagree", "liver"]),
    "another number of cases": (
        lambda f: edit(f / "evaluation" / "summary.json", '"cases": 2', '"cases": 3'),
        ["disagree", "3 and 2 cases"],
    ),
}


@pytest.mark.parametrize(("damage", "reason"), BREAKS.values(), ids=BREAKS)
def test_what_cannot_be_read_is_listed_and_the_rest_is_read(tmp_path, damage, reason):
    folder = write_run(tmp_path / "bad", [80.0, 90.0])
    damage(folder)
    write_run(tmp_path / "good", [80.0, 90.0])
    study = read_study([tmp_path, tmp_path / "missing"])
    assert [run.path.name for run in study.runs] == ["good"] and study.folders == 2
    bad, missing = study.problems
    assert bad.what == str(folder) and "\n" not in bad.reason
    assert all(word in bad.reason for word in reason), bad.reason
    assert missing == (str(tmp_path / "missing"), "no such folder")


def test_a_last_line_cut_off_and_an_earlier_step_are_no_fault(tmp_path):
    folder = write_run(tmp_path / "run", [80.0], summary={"step": 2})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "ki')
    (run,) = read_study([folder]).runs
    assert run.summary.step == 2 and len(run.rows) == STEPS + 1


def test_syn_needs_no_training(tmp_path):
    (table,) = tables_of(write_run(tmp_path / "run", [80.0], system="syn"))
    row = table.row("syn")
    assert row.lam is None and row.parameters == 0
    assert wording.grid(table).rows[1][1] == ""


def test_the_best_lambda_is_that_of_the_highest_mean_dice(tmp_path):
    for lam, dice in ((0.5, [80.0, 84.0]), (1.0, [83.0, 85.0]), (2.0, [83.0, 84.0])):
        write_run(tmp_path / f"lam{lam}", dice, lam=lam)
    (table,) = tables_of(tmp_path)
    row = table.row("mrb")
    assert row.lam == 1.0 and len(row.runs) == 1 and len(row.tried) == 3
    cell = table.cell(row, "dice/liver")
    assert (cell.mean, cell.std, cell.count) == (84.0, pytest.approx(math.sqrt(2)), 2)
    assert "F3RNet-MRB λ 1 (of 3)" in " ".join(wording.notes(table))
    points = comparison.sweep(row.tried)["F3RNet-MRB"]
    assert [point.lam for point in points] == [0.5, 1.0, 2.0]
    assert [point.mean for point in points] == pytest.approx([82 + 4 / 3, 84 + 4 / 3, 83.5 + 4 / 3])
    assert points[0].std == pytest.approx(math.sqrt(8))


def test_lambdas_are_compared_on_the_cases_that_all_have(tmp_path):
    """The second seed of lambda 1 has easier cases than that of lambda 0.5; on the shared ones it is behind."""
    write_run(tmp_path / "a", [82.0, 82.0], lam=0.5)
    write_run(tmp_path / "b", [80.0, 80.0], lam=1.0)
    write_run(tmp_path / "c", [95.0, 95.0], lam=1.0, seed=1, first_case=5)
    write_run(tmp_path / "d", [75.0, 75.0], lam=0.5, seed=2, first_case=9)
    (table,) = tables_of(tmp_path)
    assert table.row("mrb").lam == 0.5


def test_a_lambda_of_fewer_seeds_is_in_the_curve_but_not_in_the_table(tmp_path):
    for seed, dice in enumerate(([80.0, 82.0], [84.0, 82.0])):
        write_run(tmp_path / str(seed), dice, lam=0.5, seed=seed)
    write_run(tmp_path / "lucky", [90.0, 91.0], lam=1.0)
    (table,) = tables_of(tmp_path)
    row = table.row("mrb")
    assert (row.lam, row.seeds, len(row.tried)) == (0.5, [0, 1], 3)
    assert [point.lam for point in comparison.sweep(row.tried)["F3RNet-MRB"]] == [0.5, 1.0]
    cell = dict(zip(wording.grid(table).full_heads, wording.grid(table).rows[1][2], strict=True))["Dice, %, Liver"]
    assert "seeds ± 1.41" in cell.small  # the seeds' means are 81 and 83


def test_seeds_on_the_same_cases_are_averaged_case_by_case(tmp_path):
    for seed, dice in enumerate(([80.0, 90.0], [82.0, 94.0])):
        write_run(tmp_path / str(seed), dice, seed=seed)
    (table,) = tables_of(tmp_path)
    cell = table.cell(table.row("mrb"), "dice/liver")
    assert (cell.mean, cell.count, cell.seeds) == (86.5, 2, (85.0, 88.0))
    assert cell.std == pytest.approx((92 - 81) / math.sqrt(2))
    notes = " ".join(wording.notes(table))
    assert "F3RNet-MRB (2 seeds) liver ASD 0.212 mm, mean Dice 2.12 %" in notes  # 3 / sqrt(2), and a tenth
    assert wording.grid(table).rows[1][1] == "λ 0.5, 2 seeds"


def test_cases_of_one_name_that_differ_before_are_two(tmp_path):
    write_run(tmp_path / "0", [80.0])
    write_run(tmp_path / "1", [90.0], seed=1)
    edit(tmp_path / "1" / "evaluation" / "cases.csv", "60", "65")
    (table,) = tables_of(tmp_path)
    cell = table.cell(table.row("mrb"), "dice/liver")
    assert (cell.mean, cell.count) == (85.0, 2)


def test_moving_is_what_the_cases_were_before(tmp_path):
    (table,) = tables_of(write_run(tmp_path / "run", [80.0, 90.0, 85.0]))
    cell = table.cell(table.row("moving"), "dice/liver")
    assert (cell.mean, cell.std, cell.count) == (61.0, 1.0, 3)
    assert table.cell(table.row("moving"), "folding_percent").mean == 0


def exact_p(differences):
    """Wilcoxon's two-sided p from all ways to set the signs."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    seen = abs(np.sum(np.sign(differences) * ranks))
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return np.mean(np.array(sums) >= seen)


@pytest.mark.parametrize("seed", range(3))
def test_the_paired_test_is_exact(tmp_path, seed):
    rng = np.random.default_rng(seed)
    dices = 80 + 5 * rng.random((2, 7))
    for system, dice in zip(("mrb", "enc"), dices, strict=True):
        write_run(tmp_path / system, dice.tolist(), system=system)
    (table,) = tables_of(tmp_path)
    better, worse = sorted(("mrb", "enc"), key=lambda system: -table.cell(table.row(system), "dice/liver").mean)
    assert table.cell(table.row(better), "dice/liver").best and table.cell(table.row(better), "dice/liver").p is None
    found = table.cell(table.row(worse), "dice/liver").p
    assert found == pytest.approx(exact_p(dices[0] - dices[1]))


def test_the_paired_test_where_there_is_little_to_test(tmp_path):
    write_run(tmp_path / "a", [80.0, 81.0], system="enc")
    write_run(tmp_path / "b", [80.0, 81.0], system="dec")
    write_run(tmp_path / "c", [70.0], system="fr", first_case=9)
    (table,) = tables_of(tmp_path)
    enc, dec, fr = (table.row(system).cases for system in ("enc", "dec", "fr"))
    assert comparison.paired_p(enc, dec, "dice/liver") == 1.0
    assert comparison.paired_p(enc, fr, "dice/liver") is None
    assert "1 to 3 test cases, not the same for all rows" in wording.notes(table)[0]


def test_a_lost_organ_is_infinitely_far_and_still_tested(tmp_path):
    folder = write_run(tmp_path / "a", [80.0, 80.0, 80.0, 80.0, 80.0], system="fr")
    edit(folder / "evaluation" / "cases.csv", "case_2,liver,80.0,2.0,", "case_2,liver,80.0,inf,")
    write_run(tmp_path / "b", [90.0, 91.0, 92.0, 93.0, 94.0])
    (table,) = tables_of(tmp_path)
    cell = table.cell(table.row("fr"), "asd_mm/liver")
    assert cell.mean == math.inf and cell.p == 0.0625  # 2 / 2^5
    assert wording.format_mean_std(cell.mean, cell.std) == "∞"


def test_seconds_are_those_of_any_lambda_by_device(tmp_path):
    write_run(tmp_path / "a", [90.0], lam=1.0, summary={"seconds_per_pair": 4.0})
    write_run(tmp_path / "b", [80.0], lam=2.0, summary={"seconds_per_pair": 6.0})
    write_run(tmp_path / "c", [80.0], lam=3.0, summary={"seconds_per_pair": 0.5, "device": "gpu"})
    (table,) = tables_of(tmp_path)
    assert [table.row("mrb").seconds(device) for device in ("cpu", "gpu")] == [5.0, 0.5]
    cells = dict(zip(wording.grid(table).full_heads, wording.grid(table).rows[1][2], strict=True))
    assert cells["Seconds per pair, CPU"] == ("5.00", False, ("paper 25",))
    assert cells["Seconds per pair, GPU"] == ("0.50", False, ("paper 1.42",))
    assert cells["Parameters"] == ("1,000", False, ("paper 0.296 M",))


def test_settings_stand_in_tables_of_their_own(tmp_path):
    write_run(tmp_path / "a", [80.0], changes={"data.direction": "mr_to_ct"})
    write_run(tmp_path / "b", [80.0], changes={"data.shape": [32, 16, 16]})
    write_run(tmp_path / "c", [80.0])
    settings = [table.setting for table in tables_of(tmp_path)]
    assert [(one.direction, one.shape) for one in settings] == [
        ("ct_to_mr", (16, 16, 16)),
        ("ct_to_mr", (32, 16, 16)),
        ("mr_to_ct", (16, 16, 16)),
    ]
    assert wording.data_of(settings[1]) == "phantom, 32 × 16 × 16 voxels of 20 × 20 × 16 mm"


def test_our_order_beside_the_papers(tmp_path):
    """In the paper's liver ASD: MRB, VoxelMorph-2, VoxelMorph-1. Here VoxelMorph-1 is first."""
    for system, more in (("mrb", 1.0), ("voxelmorph2", 0.0), ("voxelmorph1", 2.0)):
        write_run(tmp_path / system, [80 + more + 0.2 * more * n for n in range(6)], system=system)
    (table,) = tables_of(tmp_path)
    found = findings.order(table, "asd_mm/liver")
    assert found.ours == ["VoxelMorph-1", "F3RNet-MRB", "VoxelMorph-2"]
    assert found.papers == ["F3RNet-MRB", "VoxelMorph-2", "VoxelMorph-1"]
    assert found.pairs == 3
    assert sorted(found.swapped) == [
        ("VoxelMorph-1", "F3RNet-MRB", 0.03125),  # 2 / 2^6
        ("VoxelMorph-1", "VoxelMorph-2", 0.03125),
    ]
    text = findings.order_words(table)[0]
    assert text.startswith("Liver ASD: 2 of 3 pairs of methods are in the opposite order to the paper; significant (p")
    assert "VoxelMorph-1 before F3RNet-MRB (p = 0.031)" in text
    places = {label: [cell.shown for cell in cells] for label, _, cells in findings.order_grid(table).rows}
    assert places["VoxelMorph-1"] == ["1", "3", "1", "3"] and places["F3RNet-MRB"] == ["2", "1", "2", "1"]
    (finding,) = findings.findings([table])
    assert (
        "are not in the paper's order: 2 of 3 pairs in liver ASD and 2 of 3 pairs in mean Dice" in finding.sentences[-1]
    )
    assert "F3RNet-MRB, is 0.15 mm behind the best baseline, VoxelMorph-1 (p = 0.031)" in finding.sentences[1]


def test_findings_of_the_papers_order(tmp_path):
    write_run(tmp_path / "a", [80.0, 90.0])
    write_run(tmp_path / "b", [70.0, 80.0], system="faim")
    (finding,) = findings.findings(tables_of(tmp_path))
    assert finding.where == "CT to MR (phantom, 16 × 16 × 16 voxels of 20 × 20 × 16 mm; 2 test cases)"
    assert finding.sentences == [
        "F3RNet-MRB is best, with a liver ASD of 1.50 mm (3.95 before registration) and a mean Dice of 86.3 % (61.8 "
        "before registration).",
        "In liver ASD the best F3RNet, F3RNet-MRB, is 1.00 mm ahead of the best baseline, FAIM (p = 0.50, which may "
        "be chance).",
        "No field folds anywhere.",
        "Unknown whether the pair was learned: FAIM and F3RNet-MRB (no controls).",
        "The methods are in the paper's order.",
    ]


def test_findings_of_one_method_that_does_harm(tmp_path):
    folder = write_run(tmp_path / "run", [50.0, 90.0])
    edit(folder / "evaluation" / "cases.csv", ",90.0,", ",52.0,")
    edit(folder / "evaluation" / "cases.csv", ",1.0,2.0,", ",4.8,9.6,")
    edit(folder / "evaluation" / "summary.json", '"mean": 70.0', '"mean": 51.0')
    (finding,) = findings.findings(tables_of(folder))
    assert finding.sentences[0].startswith(
        "F3RNet-MRB reaches a liver ASD of 4.90 mm (3.95 before registration) and a "
    )
    assert finding.sentences[1] == "Worse than no registration: F3RNet-MRB in liver ASD."


def test_notes_name_what_a_reader_must_know(tmp_path):
    write_run(tmp_path / "a", [80.0, 90.0], system="faim")
    (table,) = tables_of(tmp_path)
    notes = wording.notes(table)
    assert "the smallest possible p of 2 cases is 0.5, which is not significant" in notes[0]
    assert "published has 233,683 parameters, f3r_jax's 233,683; the paper prints 0.217 M" in notes[1]
    assert notes[2].startswith("No run of SyN, VM-1, VM-2, F3RNet-w/o F3D, ") and notes[2].endswith("was given.")


def test_numbers_of_the_paper():
    assert [len(rows) for rows in paper_results.TABLES.values()] == [12, 7]
    assert paper_results.paper_value("ct_to_mr", "mrb", "asd_mm/liver") == (2.17, 0.46)
    assert paper_results.paper_value("mr_to_ct", "faim", "dice/kidney") == (83.44, 2.92)
    assert paper_results.paper_value("ct_to_mr", "moving", "dice/mean")[0] == pytest.approx((77.18 + 78.24 + 80.14) / 3)
    assert paper_results.paper_value("mr_to_ct", "enc", "dice/liver") is None
    assert paper_results.paper_value("ct_to_mr", "mrb", "hd95_mm/liver") is None
    assert paper_results.TABLE_2["mrb"].seconds_cpu == 25 and paper_results.TABLE_2["wo_f3d"].parameters == 0.746
