"""Pooling, smoothing, resizing and extension against naive loops, SciPy and linear fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from f3r_jax.ops.fields import identity_grid
from f3r_jax.ops.pyramid import extend, pool, pool_known, resize, smooth

SHAPE = (6, 5, 4)


def random_volume(seed=0, shape=SHAPE, channels=2, batch=2):
    return jnp.asarray(np.random.default_rng(seed).random((batch, *shape, channels)), jnp.float32)


@pytest.mark.parametrize("factor", [1, 2, 3, 8])
def test_pool_agrees_with_a_loop(factor):
    volume = random_volume()
    pooled = np.asarray(pool(volume, factor))
    assert pooled.shape == (2, *(-(-n // factor) for n in SHAPE), 2)
    for x, y, z in np.ndindex(pooled.shape[1:4]):
        within = [
            np.minimum(np.arange(i * factor, (i + 1) * factor), n - 1) for i, n in zip((x, y, z), SHAPE, strict=True)
        ]
        cube = np.asarray(volume)[:, within[0]][:, :, within[1]][:, :, :, within[2]]
        np.testing.assert_allclose(pooled[:, x, y, z], cube.mean((1, 2, 3)), rtol=1e-5)


def test_pool_known_takes_the_mean_of_what_is_known():
    volume = random_volume(shape=(4, 4, 4))
    weight = np.ones((2, 4, 4, 4, 1), np.float32)
    weight[:, 1] = weight[:, 2:] = 0
    means, known = pool_known(volume.at[:, 1].set(1e6), jnp.asarray(weight), 2)
    np.testing.assert_allclose(known[:, 0], 0.5)
    np.testing.assert_allclose(means[:, 0], pool(jnp.repeat(volume[:, :1], 2, axis=1), 2)[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(known[:, 1], 0)
    np.testing.assert_array_equal(means[:, 1], 0)


@pytest.mark.parametrize("spacing", [1, 2, 4])
def test_resize_reproduces_a_linear_field_inside(spacing):
    shape = (8, 12, 16)
    matrix = jnp.array([[0.1, 0.2, -0.1], [0.0, 0.3, 0.1], [-0.2, 0.1, 0.2]])
    full = (identity_grid(shape) @ matrix.T + jnp.array([1.0, -2.0, 0.5]))[None]
    coarse = pool(full, spacing) / spacing
    inside = (slice(None), *(slice(spacing, n - spacing) for n in shape))
    np.testing.assert_allclose(resize(coarse, shape, spacing)[inside], full[inside], atol=1e-4)


def test_resize_keeps_a_constant_displacement_in_full_voxels():
    field = jnp.broadcast_to(jnp.array([1.0, 2.0, 3.0]), (1, 3, 1, 2, 3))
    np.testing.assert_allclose(
        resize(field, (5, 2, 4), 1.5), jnp.broadcast_to(1.5 * field[0, 0, 0, 0], (1, 5, 2, 4, 3))
    )


@pytest.mark.parametrize("shape", [SHAPE, (2, 1, 3)])
def test_smooth_is_scipys_box_filter(shape):
    volume, expected = random_volume(shape=shape), []
    for times in (1, 3):
        expected = np.asarray(volume, np.float64)
        for _ in range(times):
            expected = ndimage.uniform_filter(expected, (0, 3, 3, 3, 0), mode="nearest")
        np.testing.assert_allclose(smooth(volume, times), expected, rtol=1e-5)


def test_gradient_of_smooth_is_its_adjoint():
    a, b = random_volume(1), random_volume(2)
    gradient = jax.grad(lambda v: jnp.vdot(smooth(v, 2), b))(a)
    direction = random_volume(3)
    np.testing.assert_allclose(jnp.vdot(gradient, direction), jnp.vdot(b, smooth(direction, 2)), rtol=1e-5)


def test_extend_keeps_what_is_known_and_forgets_the_rest():
    image = np.asarray(random_volume(shape=(9, 9, 9), channels=1, batch=1)).copy()
    weight = np.zeros_like(image)
    weight[:, 3:6, 3:6, 3:6] = 1
    other = np.where(weight > 0, image, np.nan).astype(np.float32)
    extended, again = (np.asarray(extend(jnp.asarray(i), jnp.asarray(weight), voxels=2)) for i in (image, other))
    np.testing.assert_array_equal(extended, again)
    np.testing.assert_array_equal(extended[weight > 0], image[weight > 0])
    np.testing.assert_allclose(extended[0, 2, 2, 2], image[0, 3, 3, 3])  # its only known neighbour
    np.testing.assert_allclose(extended[0, 2, 4, 4], image[0, 3, 3:6, 3:6].mean(), rtol=1e-5)
    assert (extended[0, 1, 1:8, 1:8] != 0).all() and (extended[0, 0] == 0).all()
