"""The loss terms against their definitions, and the gradient that training takes through warp and MIND."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f3r_jax.ops.losses import POOLED, POOLED_WEIGHT, Batch, Objective, Prepared, gradient_l2, mind_l1, terms
from f3r_jax.ops.mind import PRESETS, mind
from f3r_jax.ops.warp import warp

SHAPE = (6, 5, 7)


def random_images(dtype=np.float32):
    return jnp.asarray(np.random.default_rng(0).random((2, 1, *SHAPE, 1)).astype(dtype))


@pytest.mark.parametrize("preset", PRESETS)
def test_mind_l1_is_the_mean_over_voxels_and_channels(preset):
    fixed, warped = random_images()
    difference = np.asarray(mind(fixed, preset=preset)) - np.asarray(mind(warped, preset=preset))
    np.testing.assert_allclose(mind_l1(fixed, warped, preset=preset), np.abs(difference).mean(), rtol=1e-5)
    assert mind_l1(fixed, fixed, preset=preset) == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_mind_l1_with_a_mask_is_the_mean_over_its_voxels(preset):
    fixed, warped = random_images()
    weight = np.random.default_rng(3).choice([0.0, 0.5, 1.0], (1, *SHAPE, 1)).astype(np.float32)
    difference = np.abs(np.asarray(mind(fixed, preset=preset)) - np.asarray(mind(warped, preset=preset)))
    expected = np.average(difference.mean(-1, keepdims=True), weights=weight)
    np.testing.assert_allclose(mind_l1(fixed, warped, preset=preset, mask=jnp.asarray(weight)), expected, rtol=1e-5)
    without = mind_l1(fixed, warped, preset=preset)
    np.testing.assert_allclose(mind_l1(fixed, warped, preset=preset, mask=jnp.ones_like(fixed)), without, rtol=1e-5)
    assert mind_l1(fixed, warped, preset=preset, mask=jnp.zeros_like(fixed)) == 0


def test_voxels_outside_the_mask_do_not_drive_the_loss():
    fixed, moving = random_images()
    mask = np.zeros((1, *SHAPE, 1), np.float32)
    mask[:, :3] = 1
    field = jnp.full((1, *SHAPE, 3), 0.3)
    gradient = jax.jit(
        jax.grad(lambda u: mind_l1(fixed, warp(moving, u), preset="mind_fixed", mask=jnp.asarray(mask)))
    )(field)
    assert gradient[:, :3].any() and not gradient[:, 4:].any()  # the descriptor of plane 2 sees plane 3


def pooled_similarity(fixed, moving, u):
    batch = Batch(moving=moving, fixed=fixed)
    objective = Objective(mind="mind_ssc_near", similarity="pooled_mind")
    return terms(objective, Prepared(batch, batch, None), u, jnp.float32(0))["similarity"]


def test_pooled_mind_without_motion_is_the_squared_difference_of_mean_descriptors():
    fixed, moving = jnp.asarray(np.random.default_rng(0).random((2, 1, 8, 12, 4, 1)), jnp.float32)
    expected = []
    for size in POOLED:
        difference = np.asarray(mind(fixed, preset="mind_ssc_near") - mind(moving, preset="mind_ssc_near"))[0]
        cubes = [
            difference[x : x + size, y : y + size, z : z + size].mean((0, 1, 2))
            for x in range(0, 8, size)
            for y in range(0, 12, size)
            for z in range(0, 4, size)
        ]
        expected.append(np.mean(np.square(cubes)))
    found = pooled_similarity(fixed, moving, jnp.zeros((1, 8, 12, 4, 3)))
    np.testing.assert_allclose(found, POOLED_WEIGHT * np.mean(expected), rtol=1e-4)


def test_pooled_mind_is_least_at_the_shift_between_the_volumes():
    whole = jnp.asarray(np.random.default_rng(1).random((1, 28, 12, 12, 1)), jnp.float32)
    fixed, moving = whole[:, 4:], whole[:, :-4]  # fixed(p) = moving(p + 4)
    values = [
        pooled_similarity(fixed, moving, jnp.full((1, 24, 12, 12, 3), s) * jnp.array([1.0, 0, 0]))
        for s in (0.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    ]
    assert np.argmin(values) == 3 and values[3] < 0.5 * values[0]


def test_the_second_similarity_takes_over_at_its_step():
    fixed, moving = jnp.asarray(np.random.default_rng(0).random((2, 1, 8, 12, 4, 1)), jnp.float32)
    prepared = Prepared(*[Batch(moving=moving, fixed=fixed)] * 2, None)
    u = jnp.full((1, 8, 12, 4, 3), 0.4)

    def similarity_at(step, **names):
        objective = Objective(mind="mind_ssc_near", **names)
        return float(terms(objective, prepared, u, jnp.float32(0), step)["similarity"])

    first, second = (similarity_at(0, similarity=name) for name in ("mind", "pooled_mind"))
    assert abs(first - second) > 0.01
    changing = {"similarity": "mind", "second_similarity": "pooled_mind", "second_from": 3}
    found = [similarity_at(jnp.int32(step), **changing) for step in range(5)]
    np.testing.assert_allclose(found, [first, first, first, second, second], rtol=1e-6)


def test_gradient_l2_of_a_linear_field():
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    matrix = np.array([[0.1, 0.2, 0.3], [0.0, -0.1, 0.4], [0.2, 0.0, 0.5]])
    displacement = jnp.asarray((grid @ matrix.T)[None], jnp.float32)
    np.testing.assert_allclose(gradient_l2(displacement), np.mean(matrix**2), rtol=1e-4)


def test_gradient_l2_agrees_with_a_loop():
    displacement = np.random.default_rng(1).normal(size=(2, 4, 3, 2, 3)).astype(np.float32)
    terms = [[], [], []]
    for b, x, y, z, c in np.ndindex(displacement.shape):
        for axis, (dx, dy, dz) in enumerate(np.eye(3, dtype=int)):
            if x + dx < 4 and y + dy < 3 and z + dz < 2:
                terms[axis].append((displacement[b, x + dx, y + dy, z + dz, c] - displacement[b, x, y, z, c]) ** 2)
    np.testing.assert_allclose(gradient_l2(jnp.asarray(displacement)), np.mean([np.mean(t) for t in terms]), rtol=1e-5)


def test_gradient_l2_of_a_single_slice_is_finite():
    assert gradient_l2(jnp.ones((1, 4, 4, 1, 3))) == 0


def test_gradient_through_the_whole_loss_agrees_with_finite_differences():
    with jax.enable_x64(True):
        fixed, moving = random_images(np.float64)
        rng = np.random.default_rng(2)
        displacement = jnp.asarray(rng.uniform(0.2, 0.8, (1, *SHAPE, 3)))
        direction = jnp.asarray(rng.normal(size=displacement.shape))

        @jax.jit
        def loss(displacement):
            return mind_l1(fixed, warp(moving, displacement), preset="mind_fixed") + 1.5 * gradient_l2(displacement)

        slope = jnp.vdot(jax.jit(jax.grad(loss))(displacement), direction)
        numeric = (loss(displacement + 1e-7 * direction) - loss(displacement - 1e-7 * direction)) / 2e-7
        np.testing.assert_allclose(slope, numeric, rtol=1e-4)


def test_descent_moves_a_shifted_image_back():
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 10, 8)), indexing="ij")

    def blob(offset):
        return jnp.asarray(np.exp(-4 * ((x - offset) ** 2 + y**2 + z**2))[None, ..., None], jnp.float32)

    # One voxel is 2 / 11: what sits at x = 0 in the fixed image is one voxel further in the moving one.
    fixed, moving = blob(0.0), blob(2 / 11)
    field = jnp.zeros((1, 12, 10, 8, 3))
    gradient = jax.jit(jax.grad(lambda u: mind_l1(fixed, warp(moving, u), preset="mind_fixed")))(field)
    assert gradient[..., 0].sum() < 0 and abs(gradient[..., 0].sum()) > 3 * abs(gradient[..., 1].sum())
