"""The validation of a training, with a function for a network."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from conftest import make_case
from f3r_jax.data.datasets import Dataset
from f3r_jax.train.record import _validation_line
from f3r_jax.train.validation import validate

ORGANS = {"ball": (1,)}


def shifted_balls(shifts):
    cases = {f"ball_{n}": make_case(f"ball_{n}", shift) for n, shift in enumerate(shifts)}
    makers = {name: (lambda case=case: case) for name, case in cases.items()}
    return Dataset({"train": (), "validation": tuple(cases), "test": ()}, makers)


def constant(params, moving, fixed):
    return jnp.full((*moving.shape[:-1], 3), 1.5), moving


def knowing(dataset, factor):
    """A network that predicts each case's ground truth times a factor."""
    cases = [dataset.load(name) for name in dataset.split["validation"]]

    def predict(params, moving, fixed):
        (case,) = [case for case in cases if np.array_equal(case.moving, moving[0, ..., 0])]
        return factor * jnp.asarray(case.displacement)[None], moving

    return predict


def test_a_constant_network_gains_nothing(tmp_path):
    values = validate(constant, {}, shifted_balls([0.5, 1.5, 2.5]), ORGANS, scratch=tmp_path / "scratch")
    assert values["dice_gain"] == 0 and values["dice"] == values["dice_mean_field"] == values["dice_other_pair"]
    assert "correlation" not in values
    assert values["epe_mm"] == pytest.approx(np.linalg.norm([2, 2, 3]) * 2 / 3)  # 1, 0 and 1 voxels along each axis
    assert not list(tmp_path.iterdir())


def test_a_network_that_knows_the_pair_gains(tmp_path):
    dataset = shifted_balls([0.5, 1.5, 4.0])
    values = validate(knowing(dataset, 1.0), {}, dataset, ORGANS, scratch=tmp_path / "scratch")
    assert values["epe_mm"] == 0 and values["correlation"] == pytest.approx(1)
    assert values["dice_gain"] == pytest.approx(values["dice"] - values["dice_mean_field"]) and values["dice_gain"] > 5
    assert values["dice_other_pair"] < values["dice_mean_field"]
    line = _validation_line(20, values)
    assert f"Dice gain over the mean field {values['dice_gain']:+.2f} points, correlation 1.00" in line
    away = validate(knowing(dataset, -0.5), {}, dataset, ORGANS, scratch=tmp_path / "scratch")
    assert away["correlation"] == pytest.approx(-1)


def test_one_case_has_no_controls(tmp_path):
    values = validate(constant, {}, shifted_balls([0.5]), ORGANS, scratch=tmp_path / "scratch")
    assert set(values) == {"folding", "epe_mm", "dice", "dice_ball"}
    assert "gain" not in _validation_line(1, values) and "correlation" not in _validation_line(1, values)


def test_no_case_has_no_values(tmp_path):
    assert validate(constant, {}, shifted_balls([]), ORGANS, scratch=tmp_path / "scratch") == {}


def test_without_labels_and_ground_truth_there_is_only_folding(tmp_path):
    dataset = shifted_balls([0.5, 1.5])
    bare = {"fixed_labels": None, "moving_labels": None, "displacement": None}
    cases = {name: dataclasses.replace(dataset.load(name), **bare) for name in dataset.split["validation"]}
    makers = {name: (lambda case=case: case) for name, case in cases.items()}
    values = validate(constant, {}, Dataset(dataset.split, makers), ORGANS, scratch=tmp_path / "scratch")
    assert values == {"folding": 0.0}


def test_what_a_killed_validation_left_is_deleted(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "ball_0.npz.tmp").write_text("half")
    validate(constant, {}, shifted_balls([0.5, 1.0]), ORGANS, scratch=scratch)
    assert not scratch.exists()
