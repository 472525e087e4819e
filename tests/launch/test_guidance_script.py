"""The pairs of `launch/guidance.py`: what is known of them agrees with their ground truth."""

import numpy as np
import pytest

import guided_pairs
from f3r_jax.data.transforms import Transform
from f3r_jax.register.guidance import parts_of


@pytest.fixture(scope="module")
def pair():
    return guided_pairs.make_pair(0)


def exact(pair):
    return Transform(pair.fixed.image.grid, np.eye(4), pair.truth)


def test_the_ground_truth_has_nearly_perfect_scores(pair):
    scores = guided_pairs.scores(pair, exact(pair))
    assert scores.pop("epe_mm") < 1e-3 and min(scores.values()) > 90


def test_landmarks_have_the_stated_noise_and_one_outlier(pair):
    marked, points, there = guided_pairs.with_landmarks(pair)
    away = np.linalg.norm(marked.moving.landmarks - there[: guided_pairs.LANDMARKS], axis=1)
    assert 1 < np.sqrt(np.mean(away**2)) < 3 and len(points) == guided_pairs.LANDMARKS + guided_pairs.OTHERS
    wrong, _, _ = guided_pairs.with_landmarks(pair, outlier=True)
    np.testing.assert_allclose(wrong.moving.landmarks - marked.moving.landmarks, np.eye(8, 3) * 30 * np.eye(8, 1))


def test_the_spine_is_one_long_part_and_the_tumour_a_ball_in_the_liver(pair):
    spine = guided_pairs.spine_of(pair).data
    where = np.argwhere(spine)
    assert parts_of(guided_pairs.spine_of(pair)).data.max() == 1
    assert np.ptp(where[:, 2]) * guided_pairs.SPACING > 100 > np.ptp(where[:, 0]) * guided_pairs.SPACING
    bulky, mask = guided_pairs.with_tumour(pair)
    inside = mask.data > 0
    assert np.mean(pair.fixed.labels.data[inside] == 1) > 0.7
    assert bulky.fixed.image.data[inside].std() < pair.fixed.image.data[inside].std()
