"""Layers against analytic values, PyTorch and finite differences."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f3r_jax.models.layers import (
    F3D,
    Conv,
    ResidualBlock,
    glorot,
    leaky_relu,
    normal,
    pool,
    resample,
    upsample,
    upsample_sum,
)

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}
FACTORS = (2, 4, 16)
FORMS = ("full", "factorised", "cascade")


def random_volume(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def ramp(shape, factor=1):
    """2 x - 3 y + 0.5 z + 1 at the centres of voxels that are `factor` wide, in units of the finest grid."""
    x, y, z = np.meshgrid(*(factor * np.arange(n) + (factor - 1) / 2 for n in shape), indexing="ij")
    return jnp.asarray(2 * x - 3 * y + 0.5 * z + 1, jnp.float32)[None, ..., None]


def torch_volume(torch, x):
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1).copy(), requires_grad=True)


@partial(jax.jit, static_argnums=(0, 2))
def with_gradient(function, x, factor, g):
    y, gradient = jax.vjp(lambda x: function(x, factor), x)
    return y, *gradient(g)


def torch_with_gradient(torch, function, x, g):
    volume = torch_volume(torch, x)
    y = function(volume)
    y.backward(torch_volume(torch, g).detach())
    return [a.detach().movedim(1, -1).numpy() for a in (y, volume.grad)]


def assert_gradient_is_the_slope(function, x, factor, g):
    """Of sum(g * function(x)) along a random direction; a linear map's central difference is exact."""
    x, direction = np.asarray(x), np.asarray(random_volume(x.shape, seed=3))
    slope = np.vdot(direction, with_gradient(function, x, factor, g)[1])
    ahead, behind = (np.asarray(with_gradient(function, x + s * direction, factor, g)[0]) for s in (1, -1))
    difference = np.vdot(g, (ahead - behind) / 2)
    np.testing.assert_allclose(difference, slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("factor", FACTORS)
def test_pool_of_a_ramp_is_its_value_at_the_coarse_centres(factor):
    coarse = (3, 2, 1)
    fine = tuple(factor * n for n in coarse)
    np.testing.assert_allclose(pool(ramp(fine), factor), ramp(coarse, factor), rtol=1e-5, atol=1e-5)


def test_pool_keeps_the_mean_and_leaves_factor_one_alone():
    x = random_volume((2, 4, 8, 6, 3))
    np.testing.assert_allclose(pool(x, 2).mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_array_equal(pool(x, 1), x)


def test_pool_agrees_with_torch_and_finite_differences(torch):
    x, g = random_volume((2, 4, 8, 12, 3)), random_volume((2, 1, 2, 3, 3), seed=1)
    expected = torch_with_gradient(torch, lambda v: torch.nn.functional.avg_pool3d(v, 4), x, g)
    for mine, theirs in zip(with_gradient(pool, x, 4, g), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)
    assert_gradient_is_the_slope(pool, x, 4, g)


@pytest.mark.parametrize("factor", FACTORS)
def test_upsample_of_a_ramp_is_the_ramp_between_the_outer_centres(factor):
    coarse = (4, 2, 3)
    inner = np.s_[:, *(slice(factor // 2, factor * n - factor // 2) for n in coarse)]
    fine = ramp([factor * n for n in coarse])
    np.testing.assert_allclose(upsample(ramp(coarse, factor), factor)[inner], fine[inner], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("factor", FACTORS)
def test_upsample_keeps_constants_means_and_edge_values(factor):
    np.testing.assert_allclose(upsample(jnp.full((1, 2, 1, 3, 2), 0.7), factor), 0.7, rtol=1e-6)
    x = random_volume((2, 2, 3, 1, 2))
    fine = upsample(x, factor)
    np.testing.assert_allclose(fine.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(fine[:, 0, -1, 0], x[:, 0, -1, 0], rtol=1e-5)


@pytest.mark.parametrize(("shape", "factor"), [((3, 4, 5), 2), ((2, 3, 1), 4), ((2, 1, 1), 16)])
def test_upsample_agrees_with_torch_and_finite_differences(torch, shape, factor):
    x = random_volume((2, *shape, 3))
    g = random_volume((2, *(factor * n for n in shape), 3), seed=1)

    def interpolate(volume):
        size = [factor * n for n in shape]
        return torch.nn.functional.interpolate(volume, size=size, mode="trilinear", align_corners=False)

    expected = torch_with_gradient(torch, interpolate, x, g)
    for mine, theirs in zip(with_gradient(upsample, x, factor, g), expected, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, atol=2e-6 * np.abs(theirs).max())
    assert_gradient_is_the_slope(upsample, x, factor, g)


@pytest.mark.parametrize("shape", [(16, 32, 16), (32, 16, 48)])
def test_upsample_sum_is_the_sum_of_the_upsampled(shape):
    parts = {f: random_volume((2, *(n // f for n in shape), 3), seed=f) for f in FACTORS}
    expected = sum(upsample(x, factor) for factor, x in parts.items())
    np.testing.assert_allclose(upsample_sum(parts), expected, atol=2e-6)
    (factor, x), *_ = parts.items()
    np.testing.assert_allclose(upsample_sum({factor: x}), upsample(x, factor), atol=2e-6)


@pytest.mark.parametrize("factors", [(2, 2), (2, 16), (16, 2), (4, 16)])
def test_resample_is_the_pool_of_the_upsampled(factors):
    factor, new_factor = factors
    x = random_volume((2, *(n // factor for n in (16, 48, 32)), 3))
    np.testing.assert_allclose(resample(x, *factors), pool(upsample(x, factor), new_factor), atol=1e-6)


def test_resample_rounds_once_in_bfloat16():
    x = random_volume((1, 4, 4, 4, 2)).astype(jnp.bfloat16)
    exact = resample(x.astype(jnp.float32), 4, 16)
    np.testing.assert_array_equal(resample(x, 4, 16), exact.astype(jnp.bfloat16))


def test_leaky_relu():
    x = jnp.array([-3.0, -1.0, 0.0, 2.0]).reshape(1, 4, 1, 1, 1)
    np.testing.assert_allclose(leaky_relu(x, 0.2).ravel(), [-0.6, -0.2, 0, 2], rtol=1e-6)
    gradient = jax.grad(lambda x: leaky_relu(x, 0.2).sum())(x)
    np.testing.assert_allclose(np.delete(gradient.ravel(), 2), [0.2, 0.2, 1], rtol=1e-6)


def parameters(layer, channels):
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4, 4, 4, channels), "float32"))
    return shapes["params"]


def count(layer, channels):
    return sum(leaf.size for leaf in jax.tree.leaves(parameters(layer, channels)))


@pytest.mark.parametrize(("i", "o", "narrow"), [(2, 16, 2), (16, 16, 16), (48, 32, 32), (16, 3, 3)])
def test_f3d_is_a_plane_and_a_line_of_the_smaller_channel_count(i, o, narrow):
    shapes = parameters(F3D(o), i)
    assert {name: layer["kernel"].shape for name, layer in shapes.items()} == {
        "plane": (3, 3, 1, i, narrow),
        "line": (1, 1, 3, narrow, o),
    }
    assert count(F3D(o), i) == 9 * i * narrow + narrow + 3 * narrow * o + o


def test_conv_counts_its_bias_and_steps():
    assert count(Conv(16), 2) == 27 * 2 * 16 + 16
    x = jax.ShapeDtypeStruct((1, 5, 4, 6, 2), "float32")
    y, params = jax.eval_shape(Conv(3, (2, 2, 2), stride=2).init_with_output, jax.random.key(0), x)
    assert y.shape == (1, 3, 2, 3, 3)
    assert params["params"]["kernel"].shape == (2, 2, 2, 2, 3)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("full", 2 * (27 * 64 + 8)),
        ("factorised", 2 * (9 * 64 + 8 + 3 * 64 + 8)),
        ("cascade", 9 * 64 + 8 + 3 * 64 + 8),
    ],
)
def test_residual_block_parameters(form, expected):
    assert count(ResidualBlock(form, 0.2), 8) == expected


@pytest.mark.parametrize("form", FORMS)
def test_residual_block_with_zero_kernels_is_the_identity(form):
    z = random_volume((1, 3, 4, 2, 4))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), parameters(ResidualBlock(form, 0.2), 4))
    np.testing.assert_array_equal(ResidualBlock(form, 0.2).apply({"params": params}, z), z)


@pytest.mark.parametrize(("bias", "residual"), [(2.0, 2.0), (-2.0, -0.4)])
def test_residual_block_adds_an_activated_residual(bias, residual):
    z = random_volume((1, 3, 4, 2, 4))
    block = ResidualBlock("full", 0.2)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), parameters(block, 4))
    params["second"]["bias"] = jnp.full(4, bias)
    np.testing.assert_allclose(block.apply({"params": params}, z), z + residual, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 3, 1, 2, 16), (3, 3, 3, 64, 48)])
def test_initialisers_are_those_of_flax(shape):
    key = jax.random.key(3)
    for ours, theirs in (
        (glorot, nn.initializers.glorot_uniform()),
        (normal(1e-5), nn.initializers.normal(1e-5)),
    ):
        expected = jax.jit(lambda theirs=theirs: theirs(key, shape), compiler_options=QUICKLY_COMPILED)()
        np.testing.assert_allclose(ours(key, shape), expected, rtol=1e-6)
