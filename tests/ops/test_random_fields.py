import jax
import numpy as np
import pytest

from f3r_jax.ops.random_fields import knots_for, smooth_noise, spline_matrix

SHAPE = (20, 14, 9)


def many(intervals, count=400):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: smooth_noise(key, SHAPE, intervals=intervals, channels=2))(keys))


@pytest.mark.parametrize("intervals", [1, 4, 8])
def test_has_zero_mean_and_unit_variance_everywhere(intervals):
    fields = many(intervals)
    assert fields.shape == (400, *SHAPE, 2)
    assert np.abs(fields.mean(axis=0)).max() < 5 / np.sqrt(400)
    np.testing.assert_allclose(fields.std(axis=0), 1, atol=0.2)


def test_more_intervals_vary_faster():
    steps = [np.mean(np.diff(many(intervals, 40), axis=1) ** 2) for intervals in (2, 4, 8)]
    assert steps[0] < 0.5 * steps[1] < 0.25 * steps[2]


def test_fields_of_other_keys_and_channels_are_others():
    fields = many(4)
    assert abs(np.corrcoef(fields[..., 0].ravel(), fields[..., 1].ravel())[0, 1]) < 0.1
    assert abs(np.corrcoef(fields[0].ravel(), fields[1].ravel())[0, 1]) < 0.6
    np.testing.assert_array_equal(fields[0], many(4)[0])


def test_is_as_smooth_along_each_axis():
    assert knots_for((64, 48, 48), 4) == (5, 4, 4)
    assert knots_for((64, 48, 48), 8) == (9, 7, 7)
    assert knots_for((64, 4, 1), 4) == (5, 2, 2)


def test_interpolates_between_the_knots():
    matrix = spline_matrix(9, 5)
    np.testing.assert_allclose(matrix[::2], np.eye(5), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, rtol=1e-6)
