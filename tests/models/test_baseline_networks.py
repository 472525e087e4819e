"""VoxelMorph and FAIM: exact counts, the same layers written out in PyTorch, any size, the identity at the start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from f3r_jax.models import build, count_parameters, initialise, label
from f3r_jax.models.layers import repeat

COUNTS = {"voxelmorph1": 259_675, "voxelmorph2": 300_547, "faim": 233_683}  # of the published weights


@pytest.fixture(scope="module", params=COUNTS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def network(name):
    return build(ConfigDict({"name": name, "flow_init": 1e-5, "diffeomorphic": False}))


def volumes(shape, count=2):
    generator = np.random.default_rng(0)
    return [generator.random((1, *shape, 1), dtype=np.float32) for _ in range(count)]


def random_params(network):
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(lambda: initialise(network, jax.random.key(0)))
    return jax.tree.map(lambda leaf: generator.normal(scale=0.1, size=leaf.shape).astype(np.float32), shapes)


def test_parameter_counts_are_those_of_the_published_networks(name, network):
    assert count_parameters(network) == COUNTS[name]


def test_labels_are_the_papers():
    labels = [label(ConfigDict({"name": name, "diffeomorphic": False})) for name in COUNTS]
    assert labels == ["VoxelMorph-1", "VoxelMorph-2", "FAIM"]


@pytest.mark.parametrize("shape", [(16, 16, 16), (17, 20, 33)])
def test_any_size_has_a_field_of_that_size(network, shape):
    params = jax.eval_shape(lambda: initialise(network, jax.random.key(0)))
    volume = jax.ShapeDtypeStruct((2, *shape, 1), jnp.float32)
    u = jax.eval_shape(lambda p, m, f: network.apply({"params": p}, m, f), params, volume, volume)
    assert (u.shape, u.dtype) == ((2, *shape, 3), jnp.float32)


def test_training_starts_from_the_identity(network):
    params = jax.jit(lambda: initialise(network, jax.random.key(0)))()
    u = jax.jit(network.apply)({"params": params}, *volumes((16, 16, 16)))
    assert 0 < np.abs(u).max() < 1e-3


def test_repeat_is_nearest_neighbour():
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 2, 3, 2)
    expected = x.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_array_equal(repeat(jnp.asarray(x), 2), expected)


# The networks once more, layer by layer in PyTorch.


class Reference:
    """PyTorch's layers on the parameters of ours; tensors are (b c x y z)."""

    def __init__(self, torch, params):
        self.torch, self.params = torch, params

    def conv(self, name, x, stride=1):
        kernel, bias = (self.torch.tensor(np.asarray(self.params[name][part])) for part in ("kernel", "bias"))
        pads = []
        for n, k in zip(x.shape[:1:-1], kernel.shape[2::-1], strict=True):  # the last axis comes first
            total = max((-(-n // stride) - 1) * stride + k - n, 0)
            pads += [total // 2, total - total // 2]
        padded = self.torch.nn.functional.pad(x, pads)
        return self.torch.nn.functional.conv3d(padded, kernel.permute(4, 3, 0, 1, 2), bias, stride=stride)

    def up(self, name, x):
        kernel, bias = (np.asarray(self.params[name][part]) for part in ("kernel", "bias"))
        mirrored = self.torch.tensor(np.ascontiguousarray(kernel[::-1, ::-1, ::-1])).permute(3, 4, 0, 1, 2)
        y = self.torch.nn.functional.conv_transpose3d(x, mirrored, self.torch.tensor(bias), stride=2)
        return y[:, :, : 2 * x.shape[2], : 2 * x.shape[3], : 2 * x.shape[4]]

    def prelu(self, name, x):
        return self.torch.nn.functional.prelu(x, self.torch.tensor(np.asarray(self.params[name]["slope"])))


def voxelmorph(ref, images, last):
    torch = ref.torch

    def block(name, x, stride=1):
        return torch.nn.functional.leaky_relu(ref.conv(name, x, stride), 0.2)

    def up(x, skip):
        return torch.cat([torch.nn.functional.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1)

    half = block("encoder_0", images, 2)
    quarter = block("encoder_1", half, 2)
    eighth = block("encoder_2", quarter, 2)
    x = block("decoder_0", block("encoder_3", eighth, 2))
    x = block("decoder_1", up(x, eighth))
    x = block("decoder_2", up(x, quarter))
    x = block("decoder_4", block("decoder_3", up(x, half)))
    x = up(x, images)
    for name in last:
        x = block(name, x)
    return ref.conv("flow", x)


def faim(ref, images):
    full = ref.prelu("head_prelu", ref.torch.cat([ref.conv(f"head_{k}", images) for k in (2, 5, 7, 11)], dim=1))
    half = ref.conv("half", ref.prelu("down_0_prelu", ref.conv("down_0", full, 2)))
    quarter = ref.prelu("down_1_prelu", ref.conv("down_1", half, 2))
    quarter = quarter + ref.conv("bottom", quarter)
    x = ref.prelu("merge_0_prelu", ref.conv("merge_0", ref.up("up_0", quarter))) + half
    x = ref.prelu("merge_1_prelu", ref.conv("merge_1", ref.up("up_1", x))) + full
    return ref.conv("flow", x)


REFERENCES = {
    "voxelmorph1": lambda ref, images: voxelmorph(ref, images, ("decoder_5",)),
    "voxelmorph2": lambda ref, images: voxelmorph(ref, images, ("decoder_5", "decoder_6")),
    "faim": faim,
}


def test_agrees_with_torch(name, network, torch):
    params, (moving, fixed) = random_params(network), volumes((32, 16, 16))
    u = jax.jit(network.apply)({"params": params}, moving, fixed)
    images = torch.tensor(np.concatenate([moving, fixed], axis=-1)).movedim(-1, 1)
    expected = REFERENCES[name](Reference(torch, params), images).movedim(1, -1).numpy()
    np.testing.assert_allclose(u, expected, atol=2e-5 * np.abs(expected).max())
