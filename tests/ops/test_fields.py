"""Calculus of fields against analytic values, naive loops and finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy import ndimage
from scipy.linalg import expm

from f3r_jax.ops.fields import (
    compose,
    exponential,
    folding_percent,
    forward_differences,
    gradient,
    identity_grid,
    invert,
    jacobian_determinant,
    nondiffeomorphic_percent,
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


def _turned_volume(position, at):
    """The volume turned inside out in the cube at `at`, averaged over both ways to divide it, one by one."""
    total = 0.0
    for parity in (0, 1):
        corners = [c for c in itertools.product((0, 1), repeat=3) if sum(c) % 2 == parity]
        tetrahedra = [corners] + [
            [c, *([*c[:k], 1 - c[k], *c[k + 1 :]] for k in range(3))]
            for c in itertools.product((0, 1), repeat=3)
            if sum(c) % 2 != parity
        ]
        for tetrahedron in tetrahedra:
            before = np.array(tetrahedron, float)
            after = np.array([position[tuple(np.add(at, c))] for c in tetrahedron], float)
            volumes = [np.linalg.det(points[1:] - points[0]) / 6 for points in (before, after)]
            total += max(-volumes[1] * np.sign(volumes[0]), 0)
    return total / 2


def test_nondiffeomorphic_volume_is_that_of_turned_tetrahedra():
    rng = np.random.default_rng(0)
    field = rng.normal(size=(2, 5, 4, 6, 3)).astype(np.float32) * 0.6
    cubes = list(itertools.product(range(4), range(3), range(5)))
    for one, found in zip(field, nondiffeomorphic_percent(jnp.asarray(field)), strict=True):
        position = np.moveaxis(np.indices(one.shape[:3]), 0, -1) + one
        np.testing.assert_allclose(found, 100 * np.mean([_turned_volume(position, at) for at in cubes]), rtol=1e-4)


def test_nondiffeomorphic_volume_sees_what_central_differences_miss():
    mirrored = affine_displacement(np.diag([-1.0, 1, 1]))
    np.testing.assert_allclose(nondiffeomorphic_percent(jnp.concatenate([mirrored, 0 * mirrored])), [100, 0], atol=1e-4)
    alternating = jnp.zeros((1, 6, 5, 4, 3)).at[:, ::2, :, :, 0].set(1.5)  # every second cube is turned to -0.5
    assert folding_percent(alternating)[0] < 40  # only at the border
    inner = jacobian_determinant(alternating)[0, 1:-1]
    assert float(inner.min()) == 1.0
    np.testing.assert_allclose(nondiffeomorphic_percent(alternating), [100 * 0.5 * 3 / 5], rtol=1e-5)


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


def smooth_velocity(largest, shape=(16, 15, 14), sigma=3):
    """A random velocity of at most `largest` voxels that vanishes towards the border, so that points stay inside."""
    rng = np.random.default_rng(7)
    field = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), sigma) for _ in range(3)], -1)
    for axis, n in enumerate(shape):
        field *= np.sin(np.pi * np.arange(n) / (n - 1)).reshape(np.roll([n, 1, 1], axis))[..., None]
    return jnp.asarray((field * largest / np.abs(field).max())[None], jnp.float32)


def linear_velocity(matrix, shape=(9, 8, 7)):
    """matrix @ (p - centre): a contraction keeps every point inside, where interpolation of it is exact."""
    centred = np.asarray(identity_grid(shape)) - (np.array(shape) - 1) / 2
    return centred, jnp.asarray((centred @ np.asarray(matrix).T)[None], jnp.float32)


CONTRACTION = np.array([[-0.5, 0.1, 0.0], [-0.1, -0.4, 0.05], [0.0, 0.1, -0.6]])


@pytest.mark.parametrize("squarings", [0, 3, 7])
def test_exponential_of_a_linear_velocity_is_the_power_of_its_step(squarings):
    centred, velocity = linear_velocity(CONTRACTION)
    power = np.linalg.matrix_power(np.eye(3) + CONTRACTION / 2**squarings, 2**squarings) - np.eye(3)
    displacement = exponential(velocity, squarings=squarings)
    np.testing.assert_allclose(displacement[0], centred @ power.T, atol=1e-4)
    if squarings == 7:
        np.testing.assert_allclose(displacement[0], centred @ (expm(CONTRACTION) - np.eye(3)).T, atol=5e-3)


def test_exponential_of_a_constant_velocity_is_its_translation():
    velocity = jnp.broadcast_to(jnp.array([1.0, -2.0, 0.5]), (1, *SHAPE, 3))
    np.testing.assert_allclose(exponential(velocity), velocity, atol=1e-5)


def test_exponential_of_the_negative_velocity_is_the_inverse():
    velocity = smooth_velocity(2.0)
    there, back = exponential(velocity), exponential(-velocity)
    assert jacobian_determinant(there).min() > 0
    np.testing.assert_allclose(compose(there, back), 0, atol=0.1)
    solved, _ = invert(there)
    np.testing.assert_allclose(solved, back, atol=0.1)


def test_exponential_gradient_agrees_with_finite_differences():
    with jax.enable_x64(True):
        velocity = jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, 3, 3, 3), scale=0.3))
        weights = jnp.asarray(np.random.default_rng(4).normal(size=velocity.shape))
        check_grads(lambda v: jnp.sum(weights * exponential(v, squarings=3)), (velocity,), order=1, modes=["rev"])


@pytest.mark.parametrize("stretch", [-0.9, -0.3, 0.5, 1.5, 4.0])
def test_inverse_of_a_linear_field_is_that_of_its_matrix(stretch):
    """Also where plain fixed-point iteration diverges, for |grad u| of 1.5 and 4."""
    matrix = np.diag([stretch, 0.2, -0.2])
    centred, field = linear_velocity(matrix)
    solved, residual = invert(field)
    assert residual.shape == field.shape[:4] and residual.max() < 0.01
    expected = centred @ (np.linalg.inv(np.eye(3) + matrix) - np.eye(3)).T
    inside = (np.abs(centred + expected) <= (np.array(field.shape[1:4]) - 1) / 2).all(-1)
    assert inside.any()
    np.testing.assert_allclose(np.asarray(solved[0])[inside], expected[inside], atol=0.01)


@pytest.mark.parametrize(("largest", "within"), [(0.0, 0.0), (1.0, 0.1), (3.0, 0.3)])
def test_inverse_composed_with_the_field_is_the_identity(largest, within):
    """Solved at the voxels; what is left is trilinear interpolation of an inverse that bends within three voxels."""
    field = exponential(smooth_velocity(largest, shape=(24, 24, 20)))
    solved, residual = invert(field)
    assert residual.max() < 0.01
    np.testing.assert_allclose(jnp.linalg.norm(solved + warp(field, solved), axis=-1), residual, atol=1e-5)
    assert np.linalg.norm(compose(solved, field), axis=-1).max() <= within


def test_inverse_of_each_field_of_a_batch_is_its_own():
    fields = jnp.concatenate([exponential(smooth_velocity(largest)) for largest in (0.5, 2.0)])
    together = invert(fields)[0]
    for one, expected in zip(fields, together, strict=True):
        np.testing.assert_allclose(invert(one[None])[0][0], expected, atol=2e-3)


def test_where_a_field_folds_the_residual_says_so():
    x = identity_grid((16, 6, 6))[..., 0]
    bump = 5 * jnp.sin(2 * jnp.pi * x / 15)  # x + bump(x) turns back: three points lead to one, none is lost
    field = jnp.stack([bump, 0 * x, 0 * x], axis=-1)[None]
    assert folding_percent(field)[0] > 20
    solved, residual = invert(field)
    assert np.isfinite(solved).all()
    np.testing.assert_allclose(jnp.linalg.norm(solved + warp(field, solved), axis=-1), residual, atol=1e-5)
