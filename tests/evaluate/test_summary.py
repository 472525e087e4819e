"""`summary.json`: what is written is read again, and what earlier versions wrote is read too."""

import json
import math

import pytest

from f3r_jax.common.files import json_safe
from f3r_jax.evaluate.controls import PairSpecific
from f3r_jax.evaluate.scores import FieldScores
from f3r_jax.evaluate.summary import ControlSummary, FieldSummary, MeanStd, Summary


def field(dice: float) -> FieldSummary:
    scores = {"dice": MeanStd(dice, 1.0), "asd_mm": MeanStd(2.0, 0.5), "hd95_mm": MeanStd(4.0, 0.5)}
    return FieldSummary({"liver": scores}, MeanStd(3.0, 0.1), None)


PAIR_SPECIFIC = PairSpecific(0.5, 2.0, 1.0, 0.03, 6, True)
SUMMARY = Summary(
    method="F3RNet-MRB",
    direction="ct_to_mr",
    cases=6,
    parameters=297_289,
    step=120,
    seconds_per_pair=0.5,
    device="cpu",
    folding_percent=MeanStd(0.1, 0.0),
    sd_log_jacobian=MeanStd(0.2, 0.0),
    after=field(85.0),
    before=field(70.0),
    controls=ControlSummary(field(84.0), field(60.0), PAIR_SPECIFIC),
    versions={"jax": "0.10"},
    origin={"command": "python -m f3r_jax.main", "versions": {"jax": "0.10"}, "commit": "abc"},
)


def stored() -> dict:
    return json.loads(json.dumps(SUMMARY.to_json()))


def test_the_layout_of_the_file():
    found = stored()
    assert Summary.from_json(found) == SUMMARY
    assert list(found) == [
        *("method", "direction", "cases", "parameters", "step", "seconds_per_pair", "device"),
        *("folding_percent", "sd_log_jacobian", "organs", "epe_mm", "tre_mm"),
        *("before", "controls", "versions", "origin"),
    ]
    assert found["organs"]["liver"]["dice"] == {"mean": 85.0, "std": 1.0} and found["tre_mm"] is None
    assert list(found["before"]) == list(found["controls"]["mean_field"]) == ["organs", "epe_mm", "tre_mm"]
    assert found["controls"]["pair_specific"] == {
        "correlation": 0.5,
        "deviation_mm": 2.0,
        "dice_gain": 1.0,
        "dice_gain_p": 0.03,
        "cases": 6,
        "learned": True,
    }


def test_a_summary_of_an_earlier_version():
    found = stored()
    before = found.pop("before")
    del found["controls"], found["versions"], found["origin"], found["folding_percent"]
    old = Summary.from_json(found | {"moving": {"organs": before["organs"]}, "command": "python"})
    assert old.early and old.controls is None and old.before.organs == SUMMARY.before.organs
    assert old.before.epe_mm is None and math.isnan(old.folding_percent.mean)
    assert old.origin == {"command": "python"} and not SUMMARY.early


def test_a_number_that_is_not_finite_is_null_in_the_file():
    lost = MeanStd.of([1.0, math.inf])
    assert lost.mean == math.inf and math.isnan(lost.std)
    assert math.isnan(MeanStd.from_json(json_safe({"mean": lost.mean, "std": lost.std})).mean)
    assert math.isnan(FieldSummary({"liver": {"dice": MeanStd(math.nan, 0.0)}}, None, None).mean_over_organs("dice"))
    assert math.isnan(FieldSummary({}, None, None).mean_over_organs("dice"))


@pytest.mark.parametrize("key", ["method", "organs", "step"])
def test_a_key_that_is_missing_is_named(key):
    found = stored()
    del found[key]
    with pytest.raises(KeyError, match=key):
        Summary.from_json(found)


def test_means_are_over_the_cases_that_have_a_score():
    dices = [{"liver": {"dice": dice, "asd_mm": 1.0, "hd95_mm": 2.0}} for dice in (80.0, 90.0)]
    cases = [FieldScores(dices[0], 1.0, None), FieldScores(dices[1], None, None), FieldScores(None, 2.0, None)]
    found = FieldSummary.of(cases)
    dice = found.organs["liver"]["dice"]
    assert (dice.mean, dice.std) == (85.0, pytest.approx(math.sqrt(50)))
    assert (found.epe_mm.mean, found.tre_mm) == (1.5, None)
