"""Instance optimisation as a system of a study and after a network."""

import json

import numpy as np
import pytest

from conftest import TINY_DATA, make_case
from f3r_jax.common.errors import UserError
from f3r_jax.config import instance_config, network_config
from f3r_jax.data.phantom.cases import phantom_case
from f3r_jax.evaluate import controls, instance, metrics
from f3r_jax.evaluate.instance import optimise_case, settings_of


@pytest.fixture
def section():
    section = instance_config(option="").instance
    section.update(spacings=(4, 2), steps=20, lam=0.05, mind="mind_ssc_near")
    return section


def error(case, displacement):
    return metrics.end_point_error_mm(displacement, case.displacement, case.spacing, case.fixed_labels > 0)


def test_moves_a_case_towards_the_ground_truth_and_keeps_a_good_start(section):
    case = make_case("ball", 1.5)
    zero = np.zeros_like(case.displacement)
    found = optimise_case(case, settings_of(section)).displacement
    assert error(case, found) < 0.7 * error(case, zero)
    started = optimise_case(case, settings_of(section), start=case.displacement).displacement
    assert error(case, started) < 0.5 * error(case, zero)


def test_the_network_takes_part_in_the_result_with_its_weight(section):
    case = make_case("ball", 1.5)
    start = np.float32(0.7) * case.displacement
    alone, mixed, kept = (
        optimise_case(case, settings_of(section), start=start, network_weight=weight).displacement
        for weight in (0.0, 0.25, 1.0)
    )
    np.testing.assert_allclose(mixed, 0.75 * alone + 0.25 * start, atol=1e-5)
    np.testing.assert_array_equal(kept, start)
    assert error(case, alone) != pytest.approx(error(case, mixed), rel=1e-3)
    # Without a network there is nothing to mix.
    zero = [optimise_case(case, settings_of(section), network_weight=weight).displacement for weight in (0.0, 0.25)]
    np.testing.assert_array_equal(*zero)


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_the_weight_of_the_network_is_between_zero_and_one(weight):
    section = network_config(option="", lam=1.0, paper_lam=1.0, name="faim").instance
    assert instance.network_weight_of(section) == 0.2
    section.network_weight = weight
    with pytest.raises(UserError, match=r"instance\.network_weight is .*, expected 0 to 1"):
        instance.network_weight_of(section)


def test_a_dark_body_is_compared_and_the_air_is_not(tmp_path, monkeypatch):
    """In an MR of little signal, the bright organs alone were once the body, and the result was Dice 2 to 20."""
    config = instance_config(option="")
    config.data.update(ct_phases=("arterial",), mr_sequences=("diffusion", "hepatobiliary"))
    case = phantom_case("dark", 3, tmp_path, config.data, seed=5)
    settings, organs = settings_of(config.instance), {name: tuple(of) for name, of in config.data.organs.items()}
    compared = []

    def refine(*volumes, fixed_mask, **others):
        compared.append(np.asarray(fixed_mask)[0, ..., 0] > 0)
        return original(*volumes, fixed_mask=fixed_mask, **others)

    original = instance.refine
    monkeypatch.setattr(instance, "refine", refine)
    found = optimise_case(case, settings)
    dices = controls.organ_dices(case.fixed_labels, found.warped_labels, organs)
    assert np.mean([*dices.values()]) > 75
    (mask,) = compared
    assert mask[case.fixed_labels > 0].all() and not mask[[0, 0, -1, -1], [0, -1, 0, -1]].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mind": "mint"}, "instance.mind is 'mint', expected one of"),
        ({"lam": -1.0}, "instance.lam is -1.0, expected 0 or more"),
        ({"spacings": ()}, r"instance.spacings is \(\), expected grid spacings"),
        ({"spacings": (6, 4)}, r"instance: the grids have spacings \[6, 4\]"),
        ({"steps": 0}, "instance.steps is 0, expected a number above 0"),
        ({"steps": 7}, "instance: a level has 7 steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(section, changes, message):
    section.update(changes)
    with pytest.raises(UserError, match=message):
        settings_of(section)


def test_main_evaluates_it_without_training(commands, phantoms, tmp_path):
    workdir = tmp_path / "instance"
    changes = TINY_DATA | {"data.root": phantoms, "instance.steps": 5}
    arguments = ["--config=configs/instance.py", f"--workdir={workdir}"]
    arguments += [f"--config.{key}={value}" for key, value in changes.items()]
    result = commands.run("main", *arguments)
    assert result.status == 0, result.err
    summary = json.loads((workdir / "evaluation" / "summary.json").read_text())
    assert (summary["method"], summary["step"], summary["controls"]) == ("instance optimisation", None, None)
    for flag in ("--step=3", "--refine"):
        refused = commands.run("evaluate", f"--workdir={workdir}", flag)
        assert refused.status == 2 and f"is not trained, expected no {flag.split('=')[0]}" in refused.err
    wrong = commands.run("main", *arguments, "--config.instance.lam=-1")
    assert wrong.status == 2 and "instance.lam is -1" in wrong.err
