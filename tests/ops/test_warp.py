"""Warping against analytic values, SciPy, PyTorch and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.ndimage import map_coordinates

from f3r_jax.ops.warp import warp, warp_nearest, warp_slopes

SHAPE = (5, 6, 4)


def random_case(seed=0, shape=SHAPE, channels=2, batch=2, scale=3.0):
    rng = np.random.default_rng(seed)
    moving = rng.normal(size=(batch, *shape, channels)).astype(np.float32)
    displacement = rng.normal(size=(batch, *shape, 3), scale=scale).astype(np.float32)
    return jnp.asarray(moving), jnp.asarray(displacement)


def positions(displacement):
    grid = np.stack(np.meshgrid(*map(np.arange, displacement.shape[1:4]), indexing="ij"), -1)
    return grid + np.asarray(displacement)


def uniform(vector, shape=SHAPE):
    return jnp.broadcast_to(jnp.asarray(vector, jnp.float32), (1, *shape, 3))


def test_no_displacement_gives_the_image_itself():
    moving, displacement = random_case()
    for padding in ("edge", "zero"):
        np.testing.assert_array_equal(warp(moving, 0 * displacement, padding=padding), moving)


def test_positive_displacement_pulls_from_higher_coordinates():
    moving, _ = random_case(batch=1)
    np.testing.assert_allclose(warp(moving, uniform((1, 0, 0)))[:, :-1], moving[:, 1:], rtol=1e-6)
    np.testing.assert_allclose(warp(moving, uniform((0, 0, -2)))[:, :, :, 2:], moving[:, :, :, :-2], rtol=1e-6)


def test_affine_image_is_reproduced_between_voxels():
    coefficients = np.array([0.5, -2.0, 3.0])
    displacement = jnp.asarray(np.random.default_rng(1).uniform(-0.4, 0.4, (1, *SHAPE, 3)), jnp.float32)
    moving = positions(0 * displacement) @ coefficients + 1
    expected = positions(displacement) @ coefficients + 1
    warped = warp(jnp.asarray(moving[..., None], jnp.float32), displacement)
    inner = np.s_[:, 1:-1, 1:-1, 1:-1]
    np.testing.assert_allclose(warped[..., 0][inner], expected[inner], rtol=1e-5)


@pytest.mark.parametrize("shape", [SHAPE, (1, 6, 4), (5, 1, 1), (2, 2, 2)])
def test_edge_padding_agrees_with_scipy(shape):
    moving, displacement = random_case(shape=shape)
    points = np.moveaxis(positions(displacement), -1, 1)
    warped = warp(moving, displacement)
    for b in range(moving.shape[0]):
        for c in range(moving.shape[-1]):
            expected = map_coordinates(np.asarray(moving[b, ..., c]), points[b], order=1, mode="nearest")
            np.testing.assert_allclose(warped[b, ..., c], expected, atol=2e-5)


def torch_warp(torch, moving, displacement, padding):
    volume = torch.tensor(np.moveaxis(np.asarray(moving), -1, 1).copy(), requires_grad=True)
    field = torch.tensor(np.asarray(displacement), requires_grad=True)
    sizes = torch.tensor(moving.shape[1:4])
    grid = torch.stack(torch.meshgrid(*map(torch.arange, moving.shape[1:4]), indexing="ij"), -1)
    points = ((grid + field) * 2 / (sizes - 1) - 1).flip(-1)
    mode = {"edge": "border", "zero": "zeros"}[padding]
    warped = torch.nn.functional.grid_sample(volume, points, align_corners=True, padding_mode=mode).movedim(1, -1)
    (warped**2).sum().backward()
    return warped.detach().numpy(), volume.grad.movedim(1, -1).numpy(), field.grad.numpy()


@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_values_and_gradients_agree_with_torch(torch, padding):
    moving, displacement = random_case()

    def loss(moving, displacement):
        return jnp.sum(warp(moving, displacement, padding=padding) ** 2)

    expected = torch_warp(torch, moving, displacement, padding)
    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(moving, displacement)
    np.testing.assert_allclose(warp(moving, displacement, padding=padding), expected[0], atol=2e-5)
    for ours, theirs in zip(gradients, expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize("shape", [(3, 4, 2), (1, 3, 2)])
def test_gradients_agree_with_finite_differences(padding, shape):
    rng = np.random.default_rng(4)
    with jax.enable_x64(True):
        moving = jnp.asarray(rng.normal(size=(1, *shape, 2)))
        # Whole voxels plus a fraction away from the kinks at 0 and 1, some of it beyond the border.
        displacement = jnp.asarray(rng.integers(-2, 2, (1, *shape, 3)) + rng.uniform(0.1, 0.9, (1, *shape, 3)))
        check_grads(jax.jit(lambda m, u: warp(m, u, padding=padding)), (moving, displacement), order=1, eps=1e-5)


def image_of(function, shape=SHAPE):
    grid = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    return function(*grid)[None, ..., None]


@pytest.mark.parametrize("padding", ["edge", "zero"])
@pytest.mark.parametrize("whole", [(0, 0, 0), (1, -1, 0)])
def test_gradient_on_the_kinks_is_the_slope_forward_and_on_the_last_plane_backward(padding, whole):
    moving = image_of(lambda x, y, z: np.sin(x + 0.3 * y) + np.cos(0.7 * z * y))
    gradient = jax.jit(jax.grad(lambda u, m: jnp.sum(warp(m, u, padding=padding))))
    with jax.enable_x64(True):
        volume = jnp.asarray(moving)
        displacement = jnp.broadcast_to(jnp.asarray(whole, jnp.float64), (1, *SHAPE, 3))
        ours = gradient(displacement, volume)
        here = warp(volume, displacement, padding=padding)
        for axis, n in enumerate(SHAPE):
            step = 1e-6 * np.eye(3)[axis]
            forward = (warp(volume, displacement + step, padding=padding) - here) / 1e-6
            backward = (here - warp(volume, displacement - step, padding=padding)) / 1e-6
            # With zeros around, the last plane is one further out.
            last = n if padding == "zero" else n - 1
            at_last = (np.arange(n) + whole[axis] == last).reshape([-1 if a == axis else 1 for a in range(3)])
            expected = np.where(at_last[None, ..., None], backward, forward)
            np.testing.assert_allclose(ours[..., axis], expected[..., 0], atol=1e-5)


def test_gradient_at_zero_displacement_is_that_of_the_image():
    moving = image_of(lambda x, y, z: 2 * x - 3 * y + 0.5 * z)
    gradient = jax.grad(lambda u: jnp.sum(warp(jnp.asarray(moving, jnp.float32), u)))(uniform((0, 0, 0)))
    np.testing.assert_allclose(gradient, np.broadcast_to([2, -3, 0.5], gradient.shape), rtol=1e-5)


def test_gradient_beyond_the_edge_is_zero():
    moving, _ = random_case(batch=1)
    gradient = jax.jit(jax.grad(lambda u: jnp.sum(warp(moving, u) ** 2)))
    for far in (-50.0, 50.0, 1e9):
        np.testing.assert_array_equal(gradient(uniform((far, far, far))), 0)


def test_zero_padding_falls_off_over_one_voxel():
    ones = jnp.ones((1, *SHAPE, 1))
    for shift, expected in ((0.25, 0.75), (0.9, 0.1), (1.0, 0.0), (40.0, 0.0)):
        warped = warp(ones, uniform((shift, 0, 0)), padding="zero")
        np.testing.assert_allclose(warped[:, -1], expected, atol=1e-6)
        np.testing.assert_allclose(warp(ones, uniform((-shift, 0, 0)), padding="zero")[:, 0], expected, atol=1e-6)


def test_no_scatter_when_only_the_displacement_is_differentiated():
    moving, displacement = random_case()
    gradient = jax.jit(jax.grad(lambda u, m: jnp.sum(warp(m, u) ** 2)))
    assert "scatter" not in gradient.lower(displacement, moving).as_text()


def test_a_displacement_that_is_no_number_shows():
    moving, displacement = random_case()
    warped = warp(moving, displacement.at[0, 1, 2, 3, 1].set(jnp.nan))
    assert np.isnan(warped[0, 1, 2, 3]).all() and np.isnan(warped).sum() == moving.shape[-1]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 20))
def test_warp_is_linear_in_the_image_and_stays_within_its_range(seed, scale):
    moving, displacement = random_case(seed, scale=scale)
    warped = warp(moving, displacement)
    np.testing.assert_allclose(warp(2 * moving + 1, displacement), 2 * warped + 1, atol=1e-5)
    assert warped.min() >= moving.min() - 1e-5 and warped.max() <= moving.max() + 1e-5


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("padding", ["edge", "zero"])
def test_nearest_agrees_with_a_loop(dtype, padding):
    _, displacement = random_case(scale=2.0)
    displacement = jnp.round(displacement * 2) / 2  # with many ties
    labels = np.random.default_rng(5).integers(1, 200 if dtype == np.uint8 else 1000, (2, *SHAPE, 1)).astype(dtype)
    expected = np.zeros_like(labels)
    for index in np.ndindex(labels.shape[:4]):
        voxel = np.rint(positions(displacement)[index]).astype(int)
        nearest = np.clip(voxel, 0, np.array(SHAPE) - 1)
        if padding == "edge" or (nearest == voxel).all():
            expected[index] = labels[(index[0], *nearest)]
    warped = warp_nearest(jnp.asarray(labels), displacement, padding=padding)
    assert warped.dtype == dtype
    np.testing.assert_array_equal(warped, expected)


def test_padding_of_another_name_is_refused():
    moving, displacement = random_case()
    for function in (warp, warp_nearest):
        with pytest.raises(ValueError, match="'mirror'"):
            function(moving, displacement, padding="mirror")


def test_slopes_are_the_derivatives_by_the_displacement():
    rng = np.random.default_rng(7)
    moving = jnp.asarray(rng.random((2, 5, 4, 3, 2)), jnp.float32)
    displacement, step = (jnp.asarray(rng.uniform(-2, 2, (2, 5, 4, 3, 3)), jnp.float32) for _ in range(2))
    _, expected = jax.jvp(lambda u: warp(moving, u), (displacement,), (step,))
    found = jnp.stack([jnp.sum(slope * step, axis=-1) for slope in warp_slopes(moving, displacement)], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
