"""Smoothing and resampling of images."""

import numpy as np
import pytest
from scipy import ndimage

from f3r_jax.data import resample
from f3r_jax.data.nifti import Grid, Image

AFFINE = np.diag([1.0, 1.2, 2.0, 1.0])
TURNED = np.array([[4, 0.3, 0, 10], [0, 3.5, 0.2, 12], [0, 0, 5, 20], [0, 0, 0, 1.0]])
BEYOND = np.array([[4, 0, 0, -10], [0, 3.5, 0, -12], [0, 0, 5, -20], [0, 0, 0, 1.0]])
FAR = np.array([[4, 0, 0, 500], [0, 3.5, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1.0]])


@pytest.fixture
def image():
    return Image(np.random.default_rng(0).random((60, 50, 40), np.float32), AFFINE)


def test_smoothing_equals_scipys_gaussian_filter(image):
    for sigma in ((2.0, 1.0, 0.5), (0.0, 1.5, 3.0)):
        expected = ndimage.gaussian_filter(image.data, sigma, mode="nearest")
        np.testing.assert_array_equal(resample.smoothed(image.data, sigma), expected)


@pytest.mark.parametrize(("affine", "shape"), [(TURNED, (10, 9, 8)), (BEYOND, (30, 30, 30)), (FAR, (4, 4, 4))])
def test_a_coarser_grid_is_sampled_as_if_the_whole_image_were_smoothed(image, affine, shape):
    grid = Grid(shape, affine)
    step = np.linalg.norm((np.linalg.inv(AFFINE) @ affine)[:3, :3], axis=1)
    whole = ndimage.gaussian_filter(image.data, np.sqrt(step**2 - 1) / resample.FWHM, mode="nearest")
    at = np.einsum("ij,jxyz->ixyz", (np.linalg.inv(AFFINE) @ affine)[:3, :3], np.indices(shape))
    at += (np.linalg.inv(AFFINE) @ affine)[:3, 3, None, None, None]
    expected = ndimage.map_coordinates(whole, at, order=1, mode="nearest")
    last = np.reshape(image.shape, (3, 1, 1, 1)) - 0.5
    expected[((at < -0.5) | (at > last)).any(axis=0)] = 0
    np.testing.assert_allclose(resample.resample(image, grid), expected, atol=1e-6)
    assert (affine is FAR) == (not expected.any())
