"""Whether the controls tell a network that registers the pair from one that predicts the average motion."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates

from conftest import blob
from f3r_jax.data.cases import Case
from f3r_jax.data.datasets import Dataset
from f3r_jax.evaluate import controls, scoring
from f3r_jax.evaluate.inference import apply_displacement
from f3r_jax.evaluate.predictions import ControlFields, Predictions
from f3r_jax.evaluate.scores import CaseScores
from f3r_jax.evaluate.summary import ControlSummary

SHAPE, ORGANS = (16, 16, 16), {"ball": (1,)}
COMMON = np.array([3.0, 0.0, 0.0])  # voxels, of every pair
SPACING = np.array([2.0, 2.0, 3.0])


def one_way_case(name: str, seed: int) -> Case:
    """A pair moved by a large common shift and a small smooth motion of its own."""
    noise = np.random.default_rng(seed).normal(size=(*SHAPE, 3))
    own = np.stack([gaussian_filter(noise[..., axis], 4.0, mode="wrap") for axis in range(3)], axis=-1)
    motion = (COMMON + own / own.std()).astype(np.float32)
    moving = blob(0.0, shape=SHAPE)
    places = np.moveaxis(motion + np.stack(np.indices(SHAPE), axis=-1), -1, 0)
    fixed = map_coordinates(moving, places, order=1, mode="nearest")
    labels = [(image > 0.3).astype(np.uint8) for image in (fixed, moving)]
    frame = np.diag([*SPACING, 1.0])
    return Case(name, fixed, moving, *labels, motion, SPACING, frame, frame.copy())


def one_way_data(count: int = 8) -> Dataset:
    cases = {f"pair_{seed}": one_way_case(f"pair_{seed}", seed) for seed in range(count)}
    makers = {name: (lambda case=case: case) for name, case in cases.items()}
    return Dataset({"train": (), "validation": (), "test": tuple(cases)}, makers)


def evaluated(dataset: Dataset, network, folder) -> tuple[list[CaseScores], ControlSummary]:
    """The scores and the summary of the controls of a function case -> displacement."""
    names = dataset.split["test"]
    predictions = Predictions(folder / "predictions")
    for name in names:
        predictions.add(name, network(dataset.load(name)).astype(np.float32))
    fields, scores = ControlFields(predictions, dataset, names), []
    for name in names:
        case, prediction = dataset.load(name), predictions.read(name)
        found = scoring.score_controls(case, prediction, fields, ORGANS)
        result = apply_displacement(case, prediction)
        scores.append(scoring.score(case, result, ORGANS, seconds=1.0, control_scores=found))
    return scores, ControlSummary.of(scores)


def average_motion(case: Case) -> np.ndarray:
    return np.broadcast_to(COMMON, (*SHAPE, 3))


def test_a_constant_network_has_not_learned_the_pair(tmp_path):
    scores, summary = evaluated(one_way_data(), average_motion, tmp_path)
    assert np.mean([case.after.organs["ball"]["dice"] - case.before.organs["ball"]["dice"] for case in scores]) > 10
    found = summary.pair_specific
    assert found.dice_gain == 0 and found.dice_gain_p == 1 and found.deviation_mm == 0
    assert found.correlation is None and found.learned is False
    words = controls.explain(found)
    assert "has not learned the pair" in words and "predicts the average motion" in words


def test_noise_about_the_average_motion_has_not_learned_the_pair(tmp_path):
    """Predictions that differ, and know nothing: their mean field is better than they are."""

    def noisy(case):
        return one_way_case("another", 100 + int(case.name[-1])).displacement

    found = evaluated(one_way_data(), noisy, tmp_path)[1].pair_specific
    assert found.learned is False and abs(found.correlation) < 0.3 and found.deviation_mm > 0.5
    assert "has not learned the pair: it predicts the average motion" in controls.explain(found)


def test_a_perfect_network_has_learned_the_pair(tmp_path):
    _, summary = evaluated(one_way_data(), lambda case: case.displacement, tmp_path)
    found = summary.pair_specific
    assert found.correlation == pytest.approx(1.0) and found.learned is True
    assert found.dice_gain > 3 and found.dice_gain_p == 0.5**8 and found.cases == 8
    assert "has learned the pair" in controls.explain(found)
    own, other = 0.0, summary.other_pair.epe_mm.mean
    assert own < summary.mean_field.epe_mm.mean < other
    assert summary.other_pair.organs["ball"]["dice"].mean < 97
    assert set(summary.mean_field.organs["ball"]) == {"dice", "asd_mm", "hd95_mm"}


def test_half_of_the_own_motion_correlates_fully(tmp_path):
    half = evaluated(one_way_data(), lambda case: COMMON + (case.displacement - COMMON) / 2, tmp_path)[1]
    assert half.pair_specific.correlation == pytest.approx(1.0)
    assert half.pair_specific.learned is True


def test_few_cases_decide_nothing(tmp_path):
    found = evaluated(one_way_data(4), lambda case: case.displacement, tmp_path)[1].pair_specific
    assert found.learned is None and found.cases == 4 and found.dice_gain > 0
    assert "4 test cases are too few for significance" in controls.explain(found)
    assert controls.too_few(4) and not controls.too_few(5)


def test_without_labels_and_ground_truth():
    sums = [controls.Deviations(300, 1.0, 9.0, None, None, None)] * 2
    found = controls.judge([], sums)
    assert found.deviation_mm == pytest.approx(0.3)
    assert found == controls.PairSpecific(None, found.deviation_mm, None, None, 0, None)
    assert "unknown: no organ labels" in controls.explain(found)
    assert controls.judge([], [controls.Deviations(0, 0.0, 0.0, None, None, None)]).deviation_mm is None


@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_mean_of_the_others_is_that_of_a_loop(count, tmp_path):
    rng = np.random.default_rng(count)
    names = [f"case_{n}" for n in range(count)]
    stored = {name: rng.normal(0, 30, (4, 5, 6, 3)).astype(np.float32) for name in names}
    predictions = Predictions(tmp_path / "predictions")
    for name, field in stored.items():
        predictions.add(name, field)
    cases = {name: one_way_case(name, 0) for name in names}
    fields = ControlFields(predictions, Dataset({}, {n: (lambda n=n: cases[n]) for n in names}), names)
    for n, name in enumerate(names):
        others = [stored[other] for other in names if other != name]
        np.testing.assert_allclose(fields.mean_field(name), np.mean(others, axis=0, dtype=np.float64), rtol=1e-6)
        np.testing.assert_array_equal(fields.other_pair(name), stored[names[(n + 1) % count]])
    np.testing.assert_allclose(fields.mean_field("apart"), np.mean(list(stored.values()), axis=0), rtol=1e-4, atol=1e-5)


def test_the_correlation_is_numpys():
    """Pooled over cases and components, in mm and inside the mask."""
    rng = np.random.default_rng(5)
    mask = rng.random((4, 5, 6)) < 0.5
    x, y = (rng.normal(size=(3, 4, 5, 6, 3)).astype(np.float32) for _ in range(2))
    y += x
    zero = np.zeros((4, 5, 6, 3), np.float32)
    sums = [controls.deviations(a, zero, b, zero, spacing=SPACING, mask=mask) for a, b in zip(x, y, strict=True)]
    pooled = [np.concatenate([(field[mask] * SPACING).ravel() for field in fields]) for fields in (x, y)]
    assert controls.correlate(sums) == pytest.approx(np.corrcoef(*pooled)[0, 1])
    everywhere = controls.deviations(x[0], zero, None, None, spacing=SPACING, mask=None)
    length = np.sqrt(np.mean(np.sum((x[0] * SPACING) ** 2, axis=-1)))
    assert controls.deviation_mm([everywhere]) == pytest.approx(length)
    assert controls.correlate([everywhere]) is None


def test_a_field_that_is_not_finite_has_no_correlation():
    sums = [controls.Deviations(30, np.nan, np.nan, 1.0, 30.0, np.nan)]
    assert controls.correlate(sums) is None and controls.deviation_mm(sums) is None


def test_the_references():
    assert controls.choose_references(["a", "b"], ["c"]) == ("a", "b")
    assert controls.choose_references(["a"], [f"train_{n}" for n in range(20)]) == tuple(f"train_{n}" for n in range(8))
    assert [controls.other_of(name, ("a", "b", "c")) for name in "abcx"] == ["b", "c", "a", "a"]


def test_the_gain_is_over_the_organs_that_both_have():
    assert controls.dice_gain({"a": 80.0, "b": np.nan, "c": 90.0}, {"a": 70.0, "b": 0.0, "c": np.nan}) == 10
    assert controls.dice_gain({"a": np.nan}, {"a": 70.0}) is None


def test_ties_and_signs_of_the_gains():
    assert controls.gain_p([]) is None and controls.gain_p([0.0, 0.0]) == 1
    assert controls.gain_p([1.0] * 6) == pytest.approx(0.5**6) and controls.gain_p([-1.0] * 6) == 1
