"""The script that measures registrations at random placements, and its pairs."""

import csv
import subprocess
import sys

import numpy as np
import pytest

import placed_pairs
import placement_tables
from conftest import REPOSITORY
from f3r_jax.data.transforms import apply_matrix

SCRIPT = REPOSITORY / "launch" / "placements.py"
SMALL = f"""
import runpy, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import placed_pairs
from f3r_jax.data.affine import search
search.COUNT = 1  # one placement is enough for a row
placed_pairs.FIXED = placed_pairs.MOVING = (288.0, 240.0, 144.0)
placed_pairs.make_pair.__kwdefaults__["spacing"] = 12.0
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def run(folder, *arguments):
    environment = {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "HOME": str(folder), "PATH": ""}
    command = [sys.executable, "-c", SMALL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.fixture(scope="module")
def pair():
    turn = placed_pairs.Placement(
        np.array([100.0, -50.0, 20.0]), 1.2, np.array([0.0, 0.0, 15.0]), np.array([4.0, 0.0, -8.0]), "fixed, upper half"
    )
    return placed_pairs.make_pair(0, 1, spacing=8.0, placement=turn)


def test_the_ground_truth_of_a_placed_pair_is_where_the_ct_shows_the_same_tissue(pair):
    there = apply_matrix(pair.placement.matrix, pair.patient.T).T
    assert pair.errors(there) == pytest.approx((0, 0), abs=1e-9)
    assert pair.errors(there + np.array([12.0, 0, 0])) == pytest.approx((10, 10))  # mm of the patient
    assert pair.errors(pair.points)[0] > 60
    grid = pair.moving.image.grid
    voxels = np.round(apply_matrix(np.linalg.inv(grid.affine), there[pair.body :].T)).astype(int)
    organs = pair.moving.image.data[tuple(np.minimum(voxels, np.array(grid.shape)[:, None] - 1))]
    assert np.mean((organs > -20) & (organs < 300)) > 0.9  # liver, spleen and kidneys, and neither air nor fat


def test_a_cut_field_of_view_keeps_the_stated_half(pair):
    depth = placed_pairs.FIXED[2]
    assert pair.fixed.image.shape[2] * 8 == depth / 2 and pair.moving.image.shape[2] * 8 == placed_pairs.MOVING[2]
    assert pair.points[:, 2].min() > 0 and pair.fixed.image.affine[2, 3] == 4.0


def test_placements_are_inside_their_limits_and_cut_in_half_of_the_cases():
    drawn = [placed_pairs.draw_placement(np.random.default_rng(seed)) for seed in range(400)]
    assert 290 < max(np.linalg.norm(each.shift) for each in drawn) <= placed_pairs.MOST_SHIFT
    assert 19 < max(np.linalg.norm(each.rotation) for each in drawn) <= placed_pairs.MOST_ROTATION
    scales = [each.scale for each in drawn]
    assert 0.8 <= min(scales) < 0.82 and 1.22 < max(scales) <= 1.25
    assert 0.4 < np.mean([each.cut != "neither" for each in drawn]) < 0.6
    assert {each.cut for each in drawn} == set(placed_pairs.CUTS)


def test_a_diverged_result_counts_as_wrong_and_a_pair_without_organs_not_at_all():
    row = dict.fromkeys(placement_tables.COLUMNS, "") | {
        "seconds": "1",
        "level": "ok",
        "rotation": "3",
        "method": "search",
    }
    row |= dict.fromkeys(placement_tables.ERRORS, "4")
    rows = [row, row | {"end_body": "nan", "level": "check"}, row | dict.fromkeys(placement_tables.ERRORS[1::2], "nan")]
    body, organs = (placement_tables.table_row("all", rows, points).split(" | ") for points in placement_tables.POINTS)
    assert body[1] == "3" and body[4] == "66.7" and body[6] == "inf" and body[7:9] == ["1 of 1", "0 of 2"]
    assert organs[1] == "2" and organs[4] == "100.0" and organs[7:9] == ["0 of 0", "1 of 2"]
    text = "\n\n".join(placement_tables.tables(rows))
    assert text.count("| all | ") == 2 and "| turned by 0 to 5 degrees | 3 |" in text and "5 to 10" not in text


@pytest.mark.slow
def test_rows_are_kept_and_a_second_run_goes_on(tmp_path):
    done = run(tmp_path, "--cases=1", "--output=rows.csv")
    assert done.returncode == 0 and done.stderr == "", done
    first = (tmp_path / "rows.csv").read_text()
    again = run(tmp_path, "--cases=2", "--output=rows.csv")
    assert again.returncode == 0 and "placements 2/2" in again.stdout and "placements 1/" not in again.stdout
    text = (tmp_path / "rows.csv").read_text()
    assert text.startswith(first)
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["case"] for row in rows] == ["0", "1"]
    for row in rows:
        assert float(row["end_body"]) > 0 and row["level"] in ("ok", "check", "failed")
        assert float(row["best_body"]) <= float(row["end_body"]) + 0.01
    assert "| all | 2 |" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods=search"], "expected --output=FILE"),
        (["--output=new.csv", "--methods=search,other"], "found search,other, expected some of search, register"),
        (["--output=other.csv"], "other.csv: columns ['a', 'b'], expected those that this script writes"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, words):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    done = run(tmp_path, *arguments)
    assert done.returncode == 2 and done.stdout == "" and words in done.stderr, done
    assert done.stderr.count("\n") == 1 and not (tmp_path / "new.csv").exists()
