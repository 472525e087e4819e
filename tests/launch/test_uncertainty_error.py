"""The measures of `launch/uncertainty_error.py`."""

import numpy as np
import pytest

import uncertainty_error
from uncertainty_error import Agreement


def test_a_predictor_that_orders_the_errors_agrees_and_noise_does_not():
    random = np.random.default_rng(0)
    error = random.gamma(2.0, 2.0, 5000)
    exact = uncertainty_error.agreement(error**3, error)
    assert exact.correlation == pytest.approx(1)
    ordered = np.sort(error)
    assert exact.highest == pytest.approx(ordered[-1000:].mean()) and exact.lowest == pytest.approx(
        ordered[:1000].mean()
    )
    noise = uncertainty_error.agreement(random.permutation(error), error)
    assert abs(noise.correlation) < 0.05 and noise.highest == pytest.approx(noise.lowest, rel=0.1)


def test_the_table_has_means_and_spans():
    pairs = [{"uncertainty": Agreement(0.2, 6.0, 1.0)}, {"uncertainty": Agreement(0.6, 8.0, 2.0)}]
    assert uncertainty_error.table(pairs).splitlines()[-1] == "| uncertainty | 0.40 (0.20 to 0.60) | 7.0, 1.5 |"
