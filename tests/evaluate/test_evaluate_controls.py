"""Controls from a checkpoint to the printed words."""

import csv
import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from f3r_jax import models
from f3r_jax.data.datasets import open_dataset
from f3r_jax.evaluate import evaluation, score_tables
from f3r_jax.evaluate.summary import Summary
from f3r_jax.workdir import checkpoints

pytestmark = pytest.mark.usefixtures("tiny_network")


@pytest.fixture
def constant(config, phantoms, tmp_path):
    """A function: the run of a network that moves every voxel of every case by one shift, with so many test cases."""

    def make(test_cases):
        config.data.update(root=str(phantoms), cases=test_cases + 3, test_cases=test_cases)
        params = models.initialise(models.build(config.model), jax.random.key(0))
        params = jax.tree.map(jnp.zeros_like, params)
        params["Conv_1"]["bias"] = jnp.array([0.0, 0.5, -0.75])
        kept = checkpoints.Checkpoints(tmp_path)
        kept.save(3, params, {"count": jnp.zeros(())}, config)
        kept.close()
        return tmp_path

    return make


def test_a_constant_network_is_found_out(constant, capsys):
    workdir = constant(6)
    evaluation.print_report(evaluation.evaluate(workdir, drawn=0), workdir)
    folder = workdir / "evaluation"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["controls"]) == {"mean_field", "other_pair", "pair_specific"}
    found = summary["controls"]["pair_specific"]
    numbers = {"correlation": None, "deviation_mm": 0.0, "dice_gain": 0.0, "dice_gain_p": 1.0}
    assert found == numbers | {"cases": 6, "learned": False}
    for kind in ("mean_field", "other_pair"):
        assert summary["controls"][kind] == {key: summary[key] for key in ("organs", "epe_mm", "tre_mm")}
    words = "The network has not learned the pair: it predicts the average motion, the same field for every pair"
    assert words in capsys.readouterr().out and words in (folder / "table.md").read_text()
    with (folder / "cases.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["dice"] == row["dice_mean_field"] == row["dice_other_pair"]
            assert row["epe_mm"] == row["epe_mm_mean_field"] == row["epe_mm_other_pair"] != ""
    assert not [path.name for path in folder.iterdir() if path.name.startswith((".", "scored"))]


def test_a_single_test_case_is_compared_with_training_cases(constant):
    workdir = constant(1)
    summary = evaluation.evaluate(workdir, drawn=0)
    assert summary.cases == 1 and summary.controls.pair_specific.cases == 1
    assert summary.controls.pair_specific.learned is False  # one field for every pair needs no statistics
    assert summary.controls.mean_field.organs["liver"]["dice"] == summary.after.organs["liver"]["dice"]


def test_predictions_of_a_killed_evaluation_are_used_and_those_of_another_step_are_deleted(constant, monkeypatch):
    workdir = constant(3)
    other = workdir / "evaluation" / ".predictions_2"
    other.mkdir(parents=True)
    scored = evaluation.score_cases

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "score_cases", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluation.evaluate(workdir, drawn=0)
    kept = workdir / "evaluation" / ".predictions_3"
    assert not other.exists() and len(list(kept.iterdir())) == 3
    written = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    seen = {}

    def looked_at(*arguments, **options):
        seen.update({path.name: path.stat().st_mtime_ns for path in kept.iterdir()})
        scored(*arguments, **options)

    monkeypatch.setattr(evaluation, "score_cases", looked_at)
    assert evaluation.evaluate(workdir, drawn=0).cases == 3
    assert seen == written and not kept.exists()


def test_a_method_that_is_not_trained_has_no_controls(constant, monkeypatch):
    workdir = constant(2)
    method = evaluation.open_method(workdir)._replace(step=None)
    monkeypatch.setattr(evaluation, "open_method", lambda *_, **__: method)
    summary = evaluation.evaluate(workdir, drawn=0)
    assert summary.controls is None and "no controls: the method is not trained" in score_tables.table(summary)
    with (workdir / "evaluation" / "cases.csv").open() as file:
        assert {row["dice_mean_field"] for row in csv.DictReader(file)} == {""}


def test_a_summary_of_an_earlier_version(constant):
    workdir = constant(2)
    summary = evaluation.evaluate(workdir, drawn=0)
    found = json.loads((workdir / "evaluation" / "summary.json").read_text())
    assert Summary.from_json(found) == summary and summary.to_json() == found
    del found["controls"]
    found["moving"] = found.pop("before")
    earlier = Summary.from_json(found)
    assert earlier == dataclasses.replace(summary, controls=None, early=True)
    new, old = score_tables.table(summary), score_tables.table(earlier)
    assert "no controls: evaluated by a version without them" in old
    assert old.splitlines()[:8] == new.splitlines()[:8]


def test_a_data_set_without_other_cases(constant):
    workdir = constant(1)
    method = evaluation.open_method(workdir)
    whole = open_dataset(method.config.data, seed=method.config.seed)
    alone = type(whole)({**whole.split, "train": ()}, whole.makers)
    summary = evaluation.evaluate(workdir, dataset=alone, drawn=0)
    assert summary.controls is None
    assert "no controls: there is no other case to predict" in score_tables.table(summary)
