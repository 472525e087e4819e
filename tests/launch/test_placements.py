"""The script that measures registrations at random placements, and its pairs."""

import csv
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import placed_pairs
import placement_methods
import placement_tables
from conftest import REPOSITORY
from f3r_jax.data.affine import guided
from f3r_jax.data.transforms import Transform, apply_matrix
from f3r_jax.register.guidance import Guidance

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


def test_landmarks_have_the_stated_noise_and_are_not_among_the_points(pair):
    here, there = pair.landmarks
    assert here.shape == there.shape == (8, 3)
    assert not (pair.points[:, None] == here).all(axis=2).any()
    nearest = np.linalg.norm(pair.points[pair.body :, None] - here, axis=2).argmin(axis=0)  # of the organs
    back = apply_matrix(np.linalg.inv(pair.placement.matrix), there.T).T
    motion = (pair.patient - pair.points)[pair.body :][nearest]
    noise = np.linalg.norm(back - here - motion, axis=1)
    assert 1 < np.sqrt(np.mean(noise**2)) < 4  # 2 mm, and the motion between neighbours


def test_the_label_maps_of_a_placed_pair_show_the_same_organs(pair):
    there = apply_matrix(pair.placement.matrix, pair.patient[pair.body :].T).T
    voxels = apply_matrix(np.linalg.inv(pair.labels[1].affine), there.T).T
    index = np.clip(np.round(voxels).astype(int), 0, np.array(pair.labels[1].data.shape) - 1)
    assert np.mean(pair.labels[1].data[tuple(index.T)] == pair.organ) > 0.85
    grid = pair.fixed.image.grid
    assert pair.labels[0].data.shape == pair.visible.shape == grid.shape
    still = np.zeros((*grid.shape, 3), np.float32)
    right, wrong = (
        pair.kidney_dice(Transform(grid, matrix @ pair.placement.matrix, still))
        for matrix in (np.eye(4), np.eye(4) + 40 * np.eye(4, k=3))
    )
    assert right > 50 > 20 > wrong
    assert pair.kidney_error(apply_matrix(pair.placement.matrix, pair.patient.T).T) == pytest.approx(0, abs=1e-9)


def test_the_controls_use_only_landmarks_or_labels(pair):
    errors = {
        name: pair.errors(placement_methods.METHODS[name](pair).end)
        for name in ("landmarks-alone", "landmarks-alone-rigid", "landmarks-alone-affine", "labels-alone")
    }
    assert errors["landmarks-alone"][1] < 0.8 * errors["landmarks-alone-rigid"][1]  # the scale is 1.2
    assert max(body for body, _ in errors.values()) < pair.errors(pair.points)[0]
    x = np.random.default_rng(0).normal(0, 50, (8, 3))
    y = apply_matrix(pair.placement.matrix, x.T).T
    for fit in (partial(guided.rigid_motion, scaled=True), placement_methods.affine):
        np.testing.assert_allclose(fit(x, y), pair.placement.matrix, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "guidance", "given"),
    [
        ("register", Guidance(), ()),
        ("register-landmarks", Guidance(landmarks_weight=0.1), ("landmarks",)),
        ("register-labels", Guidance(labels_weight=0.2, labels_drive=(1, 2)), ("labels",)),
    ],
)
def test_a_guided_method_passes_on_what_is_known(monkeypatch, pair, method, guidance, given):
    calls, grid = [], pair.fixed.image.grid
    transform = Transform(grid, pair.placement.matrix, np.zeros((*grid.shape, 3), np.float32))

    def registered(fixed, moving, settings):
        calls.append((fixed, moving, settings))
        return SimpleNamespace(transform=transform, verdict=None, search=None)

    monkeypatch.setattr(placement_methods, "register_scans", registered)
    result = placement_methods.METHODS[method](pair)
    ((*scans, settings),) = calls
    assert settings.guidance == guidance
    for side, scan in enumerate(scans):
        for kind in ("landmarks", "labels"):
            assert getattr(scan, kind) is (getattr(pair, kind)[side] if kind in given else None)
    assert pair.errors(result.end) == pytest.approx(pair.errors(apply_matrix(pair.placement.matrix, pair.points.T).T))


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
    last = run(tmp_path, "--cases=1", "--first=1", "--output=rows.csv")
    assert last.returncode == 0 and (tmp_path / "rows.csv").read_text().count("\n") == 3
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
