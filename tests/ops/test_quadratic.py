"""The quadratic of the squared difference against the warp and its derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f3r_jax.ops.quadratic import chain, evaluate, linearise
from f3r_jax.ops.warp import warp

SHAPE = (6, 5, 4)


def random_case(shape, channels=3):
    rng = np.random.default_rng(0)
    fixed, moving = (jnp.asarray(rng.random((1, *shape, channels)), jnp.float32) for _ in range(2))
    # Inside the grid: beyond it the quadratic has the slope of the last cell, the warp has none.
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    places = rng.uniform(0.05, 0.95, (*shape, 3)) * (np.array(shape) - 1)
    step = jnp.asarray(rng.normal(size=(1, *shape, 3)), jnp.float32)
    return fixed, moving, jnp.asarray((places - grid)[None], jnp.float32), step


@pytest.mark.parametrize("shape", [SHAPE, (4, 5, 1)])
def test_is_the_square_of_the_linearised_difference(shape):
    fixed, moving, u, step = random_case(shape)
    value, slope = jax.jvp(lambda u: warp(moving, u), (u,), (step,))
    expected = jnp.sum((fixed - value - slope) ** 2, axis=-1)[0]
    quadratic = linearise(fixed, moving, u)
    np.testing.assert_allclose(evaluate(quadratic, step), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(quadratic.constant, jnp.sum((fixed - value) ** 2, axis=-1)[0], rtol=1e-4, atol=1e-6)


def test_its_gradient_is_that_of_the_warped_difference():
    fixed, moving, u, _ = random_case(SHAPE)
    quadratic = linearise(fixed, moving, u)
    ours = jax.grad(lambda step: jnp.sum(evaluate(quadratic, step)))(jnp.zeros_like(u))
    expected = jax.grad(lambda u: jnp.sum((fixed - warp(moving, u)) ** 2))(u)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_beyond_the_grid_lies_the_edge_value():
    fixed, moving, _, _ = random_case(SHAPE)
    away = jnp.broadcast_to(jnp.array([-20.0, 30.0, 0.0]), (1, *SHAPE, 3))
    expected = jnp.sum((fixed - warp(moving, away)) ** 2, axis=-1)[0]
    np.testing.assert_allclose(linearise(fixed, moving, away).constant, expected, rtol=1e-4)


def test_chained_it_is_the_same_of_the_mapped_step():
    fixed, moving, u, step = random_case(SHAPE)
    quadratic = linearise(fixed, moving, u)
    jacobian = jnp.asarray(np.random.default_rng(1).normal(size=(*SHAPE, 3, 3)), jnp.float32)
    mapped = jnp.einsum("xyzij,bxyzj->bxyzi", jacobian, step)
    np.testing.assert_allclose(
        evaluate(chain(quadratic, jacobian), step), evaluate(quadratic, mapped), rtol=1e-3, atol=1e-3
    )
