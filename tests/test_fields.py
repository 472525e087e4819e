"""Calculus of fields against analytic values, naive loops and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from f3r_jax.ops.fields import (
    compose,
    folding_percent,
    forward_differences,
    gradient,
    identity_grid,
    jacobian_determinant,
)
from f3r_jax.ops.warp import warp

SHAPE = (6, 5, 4)
SPACING = (0.8, 1.5, 5.0)


def affine_displacement(matrix, shape=SHAPE):
    grid = np.asarray(identity_grid(shape))
    return jnp.asarray((grid @ (np.asarray(matrix) - np.eye(3)).T)[None], jnp.float32)


def random_field(seed=0, shape=SHAPE, scale=1.0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, *shape, 3), scale=scale), jnp.float32)


def test_identity_grid_holds_voxel_indices():
    grid = identity_grid((2, 3, 4))
    assert grid.shape == (2, 3, 4, 3) and grid.dtype == jnp.float32
    for index in np.ndindex(2, 3, 4):
        np.testing.assert_array_equal(grid[index], index)


def test_gradient_of_a_linear_field_is_per_mm():
    x, y, z = np.moveaxis(np.asarray(identity_grid(SHAPE)) * SPACING, -1, 0)
    field = jnp.asarray((2 * x - 3 * y + 0.5 * z)[None, ..., None], jnp.float32)
    np.testing.assert_allclose(gradient(field, SPACING), np.broadcast_to([2, -3, 0.5], (1, *SHAPE, 1, 3)), rtol=1e-4)
    for axis, difference in enumerate(forward_differences(field, SPACING)):
        assert difference.shape[axis + 1] == SHAPE[axis] - 1
        np.testing.assert_allclose(difference, [2, -3, 0.5][axis], rtol=1e-4)


def test_gradient_of_a_square_is_central_within_and_one_sided_on_the_border():
    x = np.arange(6.0)
    field = jnp.broadcast_to(jnp.asarray(x**2, jnp.float32)[None, :, None, None, None], (1, *SHAPE, 1))
    along_x = gradient(field)[0, :, 0, 0, 0, 0]
    np.testing.assert_allclose(along_x, [1, 2, 4, 6, 8, 9])
    np.testing.assert_allclose(forward_differences(field)[0][0, :, 0, 0, 0], [1, 3, 5, 7, 9])


def test_gradient_agrees_with_numpy():
    field = random_field()
    expected = np.stack(np.gradient(np.asarray(field), *SPACING, axis=(1, 2, 3)), -1)
    np.testing.assert_allclose(gradient(field, np.array(SPACING)), expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 2), (4, 1, 1)])
def test_axes_of_one_voxel_have_no_slope(shape):
    field = random_field(shape=shape)
    slopes = gradient(field)
    for axis, n in enumerate(shape):
        if n == 1:
            np.testing.assert_array_equal(slopes[..., axis], 0)
            assert forward_differences(field)[axis].size == 0
    assert np.isfinite(jacobian_determinant(field)).all()


@pytest.mark.parametrize("spacing", [(1, 1, 1), SPACING])
def test_determinant_of_an_affine_field_is_that_of_its_matrix(spacing):
    matrix = np.array([[1.2, 0.1, -0.3], [0.2, 0.9, 0.4], [0.0, -0.1, 1.1]])
    determinant = jacobian_determinant(affine_displacement(matrix), spacing)
    np.testing.assert_allclose(determinant, np.linalg.det(matrix), rtol=1e-5)


def test_determinant_agrees_with_a_loop():
    field = random_field()
    slopes = np.stack(np.gradient(np.asarray(field, np.float64), axis=(1, 2, 3)), -1)
    expected = np.empty(field.shape[:4])
    for index in np.ndindex(expected.shape):
        expected[index] = np.linalg.det(slopes[index] + np.eye(3))
    np.testing.assert_allclose(jacobian_determinant(field), expected, atol=1e-4)


def test_determinant_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        field = jnp.asarray(np.random.default_rng(2).normal(size=(1, 4, 3, 2, 3)))
        check_grads(jax.jit(lambda u: jacobian_determinant(u)), (field,), order=1)


def test_folding_percent_counts_the_voxels_that_mirror():
    mirrored = affine_displacement(np.diag([-1.0, 1, 1]))
    fields = jnp.concatenate([mirrored, 0 * mirrored, affine_displacement(np.diag([0.0, 1, 1]))])
    np.testing.assert_allclose(folding_percent(fields), [100, 0, 100])
    half = jnp.where(jnp.arange(SHAPE[1])[:, None, None] < 2, mirrored, 0)
    np.testing.assert_allclose(folding_percent(half), 40)  # differences along y don't enter: only u_x(x) is not zero


def test_translations_add():
    first = jnp.broadcast_to(jnp.array([1.0, -2.0, 0.5]), (1, *SHAPE, 3))
    second = jnp.broadcast_to(jnp.array([0.5, 1.0, -1.5]), (1, *SHAPE, 3))
    np.testing.assert_allclose(compose(first, second), first + second)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_composition_warps_like_two_warps(seed):
    rng = np.random.default_rng(seed)
    # An affine image stays exact under interpolation as long as nothing leaves the volume.
    grid = np.asarray(identity_grid((8, 8, 8)))
    moving = jnp.asarray((grid @ rng.normal(size=3))[None, ..., None], jnp.float32)
    first, second = jnp.asarray(rng.uniform(-1, 1, (2, 1, 8, 8, 8, 3)), jnp.float32)
    inner = np.s_[:, 3:-3, 3:-3, 3:-3]
    twice = warp(warp(moving, first), second)
    np.testing.assert_allclose(warp(moving, compose(first, second))[inner], twice[inner], atol=1e-4)
    np.testing.assert_array_equal(compose(first, 0 * second), first)
    np.testing.assert_array_equal(compose(0 * first, second), second)
