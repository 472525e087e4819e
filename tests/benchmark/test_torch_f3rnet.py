from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f3r_jax.models import initialise
from f3r_jax.models.f3rnet import VARIANTS, F3RNet
from f3r_jax.ops import losses
from f3r_jax.ops.warp import warp
from parameter_counts import COUNTS

QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}


def pair(shape: tuple[int, int, int]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).random((2, 1, *shape, 1), dtype=np.float32))


def channels_first(torch, x: np.ndarray):
    """A tensor (b c x y z)."""
    return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())


def networks(torch_f3rnet, variant: str) -> tuple[F3RNet, dict, object]:
    """Both networks with the same random parameters, the biases and the last layer far from zero too."""
    network, generator = F3RNet(VARIANTS[variant]), np.random.default_rng(1)
    shapes = jax.eval_shape(partial(initialise, network), jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: generator.normal(scale=1 / np.sqrt(leaf.size / leaf.shape[-1]), size=leaf.shape).astype(
            np.float32
        ),
        shapes,
    )
    twin = torch_f3rnet.F3RNet(variant)
    torch_f3rnet.load_flax(twin, params)
    return network, params, twin


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_count(torch_f3rnet, variant):
    twin = torch_f3rnet.F3RNet(variant)
    assert sum(parameter.numel() for parameter in twin.parameters()) == COUNTS[variant]


@pytest.mark.parametrize(
    "variant",
    ["wo_f3d", "mrb", *(pytest.param(name, marks=pytest.mark.slow) for name in ("w_f3d", "enc", "dec", "fr", "ms"))],
)
def test_agrees_with_flax_in_displacement_and_gradients(torch, torch_f3rnet, variant):
    network, params, twin = networks(torch_f3rnet, variant)
    moving, fixed = pair((16, 32, 16))

    def energy(params):
        displacement = network.apply({"params": params}, moving, fixed)
        return jnp.sum(displacement**2), displacement

    compiled = jax.jit(jax.grad(energy, has_aux=True), compiler_options=QUICKLY_COMPILED)
    gradients, displacement = compiled(params)
    expected = twin(channels_first(torch, moving), channels_first(torch, fixed))
    expected.square().sum().backward()
    assert float(jnp.abs(displacement).max()) > 0.1
    expected = expected.detach().movedim(1, -1).numpy()
    np.testing.assert_allclose(displacement, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    gradients = torch_f3rnet.state_from_flax(gradients)
    for name, parameter in twin.named_parameters():
        # A norm, since rounding may put a voxel on either side of the kink of LeakyReLU.
        assert float((gradients[name] - parameter.grad).norm()) < 3e-4 * float(parameter.grad.norm()), name


def test_agrees_with_flax_at_a_size_that_is_padded(torch, torch_f3rnet):
    network, params, twin = networks(torch_f3rnet, "mrb")
    moving, fixed = pair((17, 20, 30))
    displacement = jax.jit(network.apply, compiler_options=QUICKLY_COMPILED)({"params": params}, moving, fixed)
    with torch.inference_mode():
        expected = twin(channels_first(torch, moving), channels_first(torch, fixed)).movedim(1, -1).numpy()
    np.testing.assert_allclose(displacement, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_load_flax_refuses_another_variant(torch_f3rnet):
    _, params, _ = networks(torch_f3rnet, "mrb")
    with pytest.raises(RuntimeError, match="extra"):
        torch_f3rnet.load_flax(torch_f3rnet.F3RNet("w_f3d"), params)


def test_warp_of_a_ramp_is_the_ramp_moved_and_held_at_the_edge(torch, torch_f3rnet):
    x = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(1, 1, 5, 4, 3)
    displacement = torch.zeros(1, 3, 5, 4, 3)
    displacement[:, 0] = 1.25
    warped = torch_f3rnet.warp(x, displacement)
    np.testing.assert_allclose(warped[0, 0, :, 2, 1], [1.25, 2.25, 3.25, 4, 4], atol=1e-5)


def test_warp_and_loss_agree_with_ours(torch, torch_f3rnet):
    moving, fixed = pair((12, 10, 14))
    displacement = 3 * np.random.default_rng(2).standard_normal((1, 12, 10, 14, 3), dtype=np.float32)

    def ours(moving, fixed, displacement):
        warped = warp(moving, displacement)
        return warped, losses.mind_l1(fixed, warped, preset="mind_ssc"), losses.gradient_l2(displacement)

    warped, similarity, smoothness = jax.jit(ours, compiler_options=QUICKLY_COMPILED)(moving, fixed, displacement)
    expected = torch_f3rnet.warp(channels_first(torch, moving), channels_first(torch, displacement))
    np.testing.assert_allclose(warped, expected.movedim(1, -1), atol=1e-4)
    descriptors = (torch_f3rnet.mind_ssc(image) for image in (channels_first(torch, fixed), expected))
    assert float(similarity) == pytest.approx(float(torch.sub(*descriptors).abs().mean()), rel=1e-4)
    expected = torch_f3rnet.gradient_l2(channels_first(torch, displacement))
    assert float(smoothness) == pytest.approx(float(expected), rel=1e-5)


def test_gradient_l2_of_a_ramp(torch, torch_f3rnet):
    displacement = torch.zeros(1, 3, 4, 5, 6)
    displacement[:, 1] = 3 * torch.arange(6.0)  # a third of the components, one of three axes, 3 voxels a voxel
    assert float(torch_f3rnet.gradient_l2(displacement)) == pytest.approx(9 / 9)


def test_mind_is_one_where_the_image_repeats_itself_and_ignores_contrast(torch, torch_f3rnet):
    image = torch.rand(1, 1, 9, 8, 7)
    descriptor = torch_f3rnet.mind_ssc(image)
    assert descriptor.shape == (1, 12, 9, 8, 7)
    np.testing.assert_allclose(descriptor.amax(1), 1)
    np.testing.assert_allclose(torch_f3rnet.mind_ssc(5 - 3 * image), descriptor, atol=1e-5)


def test_training_lowers_the_loss(torch, torch_f3rnet):
    torch.manual_seed(0)
    fixed = torch.nn.functional.avg_pool3d(torch.rand(1, 1, 20, 20, 20), 5, stride=1)
    step = torch_f3rnet.train_step(torch_f3rnet.F3RNet("mrb"), lam=0.01, learning_rate=2e-3)
    values = [float(step(fixed.roll(1, 2), fixed)) for _ in range(10)]
    assert values[-1] < 0.95 * values[0]
