"""The table of f3r_jax and the baselines: scores, messages, and what a failure leaves."""

import dataclasses
import json
import sys

import flax.linen as nn
import numpy as np
import pytest

from conftest import make_case
from f3r_jax.benchmark import registration as benchmark
from f3r_jax.benchmark import registration_tables, registration_worker
from f3r_jax.benchmark.environment import Environment, Machine
from f3r_jax.benchmark.registration_tables import RegisteredPair
from f3r_jax.benchmark.registration_worker import RegistrationCost
from f3r_jax.common.errors import UserError
from f3r_jax.config import SYNTHETIC
from f3r_jax.evaluate import classical

COST = RegistrationCost(2.0, 3.0, 100.0, 300.0, "cpu", None)
ORGANS = {"liver": (1,), "spleen": (2,)}


@pytest.fixture
def measured(monkeypatch):
    """Two tiny pairs: f3r_jax predicts zero, SyN the ground truth, greedy fails, another is not installed."""

    def register(method, *, folder, checkpoint):
        with np.load(folder / benchmark.PAIR_FILE) as pair:
            assert set(pair) == {"fixed", "moving", "spacing"}  # and neither labels nor truth
            shape = pair["fixed"].shape
        if method == "greedy":
            raise ChildProcessError("ValueError: no")
        number = sum(line.startswith("pair ") for line in told) - 1
        truth = cases[number].displacement if method == "SyN" else np.zeros((*shape, 3), np.float32)
        return truth, dataclasses.replace(COST, seconds=2.0 + number)

    opened, cases, told = benchmark.datasets.open_dataset, [], []

    def open_dataset(config, *, seed):
        dataset = opened(config, seed=seed)
        cases.extend(dataset.load(name) for name in dataset.makers)
        return dataset

    baselines = {name: classical.Baseline(classical.syn, "json", name) for name in ("SyN", "greedy")}
    monkeypatch.setattr(
        benchmark, "BASELINES", baselines | {"other": classical.Baseline(classical.syn, "no_such_module", "other-one")}
    )
    monkeypatch.setattr(benchmark, "OURS", {"f3r_jax": None})
    monkeypatch.setattr(benchmark, "register_in_worker", register)
    monkeypatch.setattr(benchmark.datasets, "open_dataset", open_dataset)
    found = benchmark.measure_registration(shape=(24, 20, 20), spacing=13.0, cases=2, checkpoint=None, note=told.append)
    return found, told


def test_scores_and_costs_of_each_method_and_case(measured):
    found, told = measured
    assert list(found.methods) == ["f3r_jax", "SyN", "greedy"]
    for before, still, exact in zip(found.before, found.methods["f3r_jax"], found.methods["SyN"], strict=True):
        assert all(still.scores[name] == before.scores[name] for name in ("dice", "liver_dice", "hd95_mm", "epe_mm"))
        assert still.scores["folding_percent"] == still.scores["sd_log_jacobian"] == 0
        assert exact.scores["epe_mm"] == 0 and exact.scores["dice"] > before.scores["dice"] + 5
        assert exact.scores["sd_log_jacobian"] > 0
        assert exact.cost.peak_mib == 300
    assert [pair.cost.seconds for pair in found.methods["SyN"]] == [2.0, 3.0]
    assert found.first_seconds == {"f3r_jax": 2.0}
    assert sum(line.startswith("pair ") for line in told) == 2
    assert any("SyN" in line and "2.0 s" in line for line in told)


def test_table_has_a_row_a_method_and_tells_what_failed_or_is_missing(measured):
    found, environment = measured[0], Environment("python", "2026-01-01", "abc", Machine("one", 2, 8.0), {"jax": "1"})
    text = registration_tables.as_markdown(found, environment)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    titles, _, before, first, syn = rows
    assert titles[0] == "method" and "HD95, mm" in titles and "end-point error, mm" in titles
    assert [row[0] for row in (before, first, syn)] == ["before", "f3r_jax", "SyN"]
    cell = dict(zip(titles, syn, strict=True))
    assert cell["seconds"] == "2.5 (2.0-3.0)" and cell["peak MiB (imports)"] == "300 (100)"
    assert cell["end-point error, mm"] == "0.00 (0.00-0.00)" and cell["first, s"] == ""
    assert dict(zip(titles, before, strict=True))["seconds"] == ""
    assert "Failed: greedy, pair 2: ValueError: no." in text
    pairs = [found.methods["SyN"][0], RegisteredPair(error="killed: out of memory?")]
    failed = dataclasses.replace(found, methods={**found.methods, "SyN": pairs})
    assert "| SyN (1 of 2 pairs) |" in registration_tables.as_markdown(failed, environment)
    assert "other is skipped" in text and "pip install other-one" in text


def test_the_json_has_scores_and_cost_of_a_pair_in_one_dict(measured):
    found = json.loads(json.dumps(measured[0].to_json()))
    keys = ["seed", "spacing", "left_out", "before", "methods", "device", "first_seconds"]
    assert list(found) == keys and (found["seed"], found["device"]) == (1008, "cpu")
    accuracy = ["dice", "hd95_mm", "liver_dice", "epe_mm"]
    assert [list(pair) for pair in found["before"]] == [accuracy] * 2
    cost = ["seconds", "cpu_seconds", "imported_mib", "peak_mib", "device", "device_peak_mib"]
    for pair in found["methods"]["SyN"]:
        assert list(pair) == [*accuracy, "sd_log_jacobian", "folding_percent", *cost]
    assert found["methods"]["greedy"] == [{"error": "ValueError: no"}] * 2


def test_scores_mean_over_organs_and_tell_the_liver_apart():
    case = make_case("ball", 2.0)
    found = benchmark.scores(case, case.displacement, {"liver": (1,)})
    assert found["epe_mm"] == 0 and found["dice"] == found["liver_dice"] > 95
    assert benchmark.before(case, {"liver": (1,)})["epe_mm"] == pytest.approx(2 * np.linalg.norm(case.spacing))


@pytest.mark.parametrize(("shape", "spacing"), [((64, 48, 48), 4.8), ((144, 144, 128), 2.2), ((32, 64, 64), 9.6)])
def test_spacing_lets_the_trunk_fit_in(shape, spacing):
    assert benchmark.fitting_spacing(shape) == spacing


def test_process_that_fails_is_told_by_its_last_line(tmp_path):
    with pytest.raises(ChildProcessError, match="No such file"):
        benchmark.register_in_worker("SyN", folder=tmp_path, checkpoint=None)


def test_process_that_is_killed_says_so(tmp_path, monkeypatch):
    killed = tmp_path / "killed"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(killed))
    with pytest.raises(ChildProcessError, match="out of memory"):
        benchmark.register_in_worker("SyN", folder=tmp_path, checkpoint=None)


def test_checkpoint_has_to_be_there_and_to_warp_ct_to_mr(tmp_path, monkeypatch, config):
    with pytest.raises(UserError, match=str(tmp_path)):
        benchmark.check_checkpoint(str(tmp_path))
    config.data.direction = "mr_to_ct"
    monkeypatch.setattr(benchmark.trained_network, "load_network", lambda source, step: (nn.Dense(1), {}, config, 1))
    with pytest.raises(UserError, match="mr_to_ct, expected ct_to_mr"):
        benchmark.check_checkpoint("runs/other")
    config.data.source = SYNTHETIC  # has seen either direction
    benchmark.check_checkpoint("runs/other")


def test_the_network_in_the_package_is_measured_too():
    benchmark.check_checkpoint("builtin")


def test_network_registers_through_the_spacing_it_was_trained_at(finished, tiny_network):
    case = make_case("ball", 1.5)
    pair = classical.VolumePair(case.fixed, case.moving, case.spacing)
    field = registration_worker.network(str(finished[0]), refined=False)(pair)
    assert field.shape == (*case.fixed.shape, 3) and np.isfinite(field).all() and np.ptp(field) > 0


@pytest.mark.slow
@pytest.mark.extras("ants", "picsl_greedy", "convexAdam")
def test_command_writes_table_and_json(commands, tmp_path):
    """f3r_jax and all baselines for real. On a grid coarser than this MIND is a poor guide, and ours may lose."""
    page, numbers = tmp_path / "B.md", tmp_path / "b.json"
    options = ["--what=registration", "--shape=48,36,36", "--cases=1"]
    result = commands.run("benchmark", *options, f"--markdown={page}", f"--json={numbers}")
    assert result.status == 0, result.out + result.err
    found = json.loads(numbers.read_text())["registration"]
    assert found["spacing"] == 6.4
    for name in ("f3r_jax", "f3r_jax, not diffeomorphic", *classical.BASELINES):
        (case,) = found["methods"][name]
        assert case["dice"] > found["before"][0]["dice"] or name in classical.BASELINES  # too coarse a grid for SyN
        assert ("compile_seconds" in case) == (name not in classical.BASELINES)
        assert case["peak_mib"] > case["imported_mib"] > 0 and case["seconds"] > 0
    assert "## Registration, 48 x 36 x 36 on cpu\n" in page.read_text()
