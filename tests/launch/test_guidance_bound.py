"""The bound of `launch/guidance_bound.py` on residuals whose covariance is known."""

import numpy as np
import pytest

import guidance_bound
from guidance_bound import Residual


def cases_of(length, count=8, size=120):
    """Residuals of 3 mm in two organs, with the covariance exp(-distance / length); zero stands for none."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(count):
        points = random.uniform(0, 60, (size, 3))
        away = np.linalg.norm(points[:, None] - points, axis=2)
        covariance = np.exp(-away / length) if length else np.eye(size)
        error = 3 * np.linalg.cholesky(covariance + 1e-9 * np.eye(size)) @ random.standard_normal((size, 3))
        normals = np.where(np.arange(size)[:, None] < 40, np.eye(3)[0], 0.0)
        found.append(Residual(points, error, np.arange(size) % 2 + 1, normals))
    return found


def test_what_is_not_correlated_cannot_be_corrected():
    cases = cases_of(0.0)
    before, after = guidance_bound.bound(cases, guidance_bound.landmarks(0.0))
    # Four of 120 points are the landmarks themselves.
    assert before == pytest.approx(3 * np.sqrt(8 / np.pi), rel=0.05) and 0.93 < after / before < 1.01
    assert np.abs(guidance_bound.correlations(cases, same=True)[1:5]).max() < 0.2


def test_what_is_correlated_is_corrected_and_noise_costs():
    cases = cases_of(80.0)
    (before, exact), (_, noisy) = (guidance_bound.bound(cases, guidance_bound.landmarks(noise)) for noise in (0.0, 3.0))
    assert exact < noisy < before and exact < 0.8 * before
    assert guidance_bound.correlations(cases, same=True)[2].mean() == pytest.approx(np.exp(-25 / 80), abs=0.15)


def test_a_surface_shows_less_along_its_normal_than_as_a_whole():
    cases = cases_of(80.0)
    (before, normal), (_, whole) = (
        guidance_bound.bound(cases, guidance_bound.surfaces(whole=each)) for each in (False, True)
    )
    assert whole < normal < before


def test_the_residual_at_what_is_known_is_zero():
    (case,) = cases_of(40.0, count=1)
    known = guidance_bound.landmarks(0.0)(case, np.random.default_rng(0))
    rest = guidance_bound.left(case, known, known.voxels, np.full(3, 9.0), 40.0, 1.0)
    assert np.abs(rest).max() < 0.01 < np.abs(case.error[known.voxels]).max()
