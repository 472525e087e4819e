import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from f3r_jax.benchmark import roofline
from f3r_jax.models import f3rnet, voxelmorph
from f3r_jax.models.layers import Conv

SHAPE = (16, 32, 16)
VOXELS = math.prod(SHAPE)
# Channels read and written, and the scales 1/2^k of both, for each layer of VoxelMorph-2.
VOXELMORPH2 = (
    (2, 16, 0, 1),
    (16, 32, 1, 2),
    (32, 32, 2, 3),
    (32, 32, 3, 4),
    (32, 32, 4, 4),
    (32 + 32, 32, 3, 3),
    (32 + 32, 32, 2, 2),
    (32 + 16, 32, 1, 1),
    (32, 32, 1, 1),
    (32 + 2, 16, 0, 0),
    (16, 16, 0, 0),
    (16, 3, 0, 0),
)


class OneConvolution(nn.Module):
    """Of both volumes, to 5 channels."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, moving, fixed):
        return Conv(5, (3, 3, 1))(jnp.concatenate([moving, fixed], axis=-1).astype(self.dtype))


def test_one_convolution_by_hand():
    (found,) = roofline.convolutions(OneConvolution(), (4, 6, 8))
    assert found == roofline.Convolution(
        flops=2 * 192 * 9 * 2 * 5, x_bytes=192 * 2 * 4, y_bytes=192 * 5 * 4, parameters=9 * 2 * 5 + 5
    )
    assert found.bytes == 4 * (192 * (2 + 5) + 95)


def test_bfloat16_halves_the_features_and_not_the_parameters():
    ((full,), (half,)) = (roofline.convolutions(OneConvolution(dtype), (4, 6, 8)) for dtype in ("float32", "bfloat16"))
    assert half == full._replace(x_bytes=full.x_bytes // 2, y_bytes=full.y_bytes // 2)


@pytest.mark.parametrize(("variant", "channels"), [("wo_f3d", (16,)), ("mrb", (2, 16))])
def test_the_stem_comes_first(variant, channels):
    found = roofline.convolutions(roofline.NETWORKS[variant](), SHAPE)
    taps = {"wo_f3d": (27,), "mrb": (9, 3)}[variant]
    for layer, k, i, o in zip(found, taps, (2, 2), channels, strict=False):
        assert layer.flops == 2 * VOXELS * k * i * o
        assert layer.parameters == k * i * o + o


def test_voxelmorph_by_hand():
    flops = [2 * 27 * i * o * VOXELS // 8**k for i, o, _, k in VOXELMORPH2]
    features = [(i / 8**j + o / 8**k) * VOXELS for i, o, j, k in VOXELMORPH2]
    parameters = [27 * i * o + o for i, o, _, _ in VOXELMORPH2]
    repeated = sum(32 * (1 / 8**k + 1 / 8 ** (k - 1)) for k in (1, 2, 3, 4)) * VOXELS
    assert sum(parameters) == 300_547
    by_kernel = sum(features) + sum(parameters)
    by_x = by_kernel - features[0] - parameters[0]
    assert roofline.forward_cost("voxelmorph2", SHAPE) == (sum(flops), 4 * (by_kernel + repeated))
    training = roofline.train_cost("voxelmorph2", SHAPE)
    assert training.flops == 3 * sum(flops) - flops[0]
    assert training.bytes == 4 * (2 * by_kernel + by_x + 2 * repeated + 7 * sum(parameters) + 18 * VOXELS)


@pytest.mark.parametrize("variant", ["wo_f3d", "mrb", "voxelmorph1", "voxelmorph2"])
def test_pools_and_upsamplings_are_those_that_the_network_runs(variant, monkeypatch):
    moved = []

    def counted(function):
        def run(x, *factors):
            y = function(x, *factors)
            moved.append(y.size + sum(part.size for part in jax.tree.leaves(x)))
            return y

        return run

    resampling = [(f3rnet, name) for name in ("pool", "resample", "upsample", "upsample_sum")]
    for module, name in [*resampling, (voxelmorph, "repeat")]:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    convolutions = roofline.convolutions(roofline.NETWORKS[variant](), SHAPE)
    expected = 4 * sum(moved) + sum(layer.bytes for layer in convolutions)
    assert roofline.forward_cost(variant, SHAPE).bytes == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("variant", ["wo_f3d", "mrb"])
def test_agrees_with_what_pytorch_counts(variant, torch, flop_counter, torch_f3rnet):
    twin, moved = torch_f3rnet.F3RNet(variant).to("meta"), []  # shapes alone

    def add(module, inputs, output):
        parameters = module.weight.numel() + module.bias.numel()
        moved.append(4 * (inputs[0].numel() + output.numel() + parameters))

    for module in twin.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(add)
    volumes = torch.zeros(2, 1, 1, 16, 20, 16, device="meta")  # padded to SHAPE
    with flop_counter.FlopCounterMode(display=False) as forward:
        displacement = twin(*volumes)
    with flop_counter.FlopCounterMode(display=False) as backward:
        displacement.sum().backward()
    shape = (16, 20, 16)
    found = roofline.convolutions(roofline.NETWORKS[variant](), shape)
    assert [layer.bytes for layer in found] == moved
    assert roofline.forward_cost(variant, shape).flops == forward.get_total_flops()
    assert roofline.train_cost(variant, shape).flops == forward.get_total_flops() + backward.get_total_flops()


@pytest.mark.parametrize("cost", [roofline.forward_cost, roofline.train_cost])
def test_cost_grows_with_the_volume_as_it_is_padded(cost):
    small, padded, large = (cost("voxelmorph2", shape) for shape in ((16, 16, 16), (16, 16, 17), (16, 16, 32)))
    assert small.flops < padded.flops == large.flops == 2 * small.flops
    assert small.bytes < padded.bytes <= large.bytes < 2 * small.bytes


def test_bfloat16_halves_the_traffic_but_for_field_parameters_and_loss():
    full, half = (roofline.forward_cost("voxelmorph2", SHAPE, dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert half.flops == full.flops
    flow = 4 * (16 + 3) * VOXELS
    assert 2 * half.bytes == pytest.approx(full.bytes + flow + 4 * 300_547, rel=1e-12)
    full, half = (roofline.train_cost("voxelmorph2", SHAPE, dtype=dtype).bytes for dtype in ("float32", "bfloat16"))
    kept = 3 * flow + 4 * (3 * 300_547 - 880) + 4 * 7 * 300_547 + 4 * 18 * VOXELS
    assert 2 * half == pytest.approx(full + kept, rel=1e-12)


def test_peaks_are_work_by_time(monkeypatch):
    monkeypatch.setattr(roofline, "CPU", roofline.Load(64, 1000, 2))
    monkeypatch.setattr(roofline, "ACCELERATOR", roofline.CPU)
    results, clock = [], iter([0.0, 4.0, 10.0, 12.0, 20.0, 21.0, 30.0, 30.5])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    block = jax.block_until_ready
    monkeypatch.setattr(roofline.jax, "block_until_ready", lambda x: results.append(block(x)) or x)
    assert roofline.peaks() == (2 * 64**3 / 2.0, 3 * 4 * 1000 / 0.5)
    assert float(results[0][0, 0]) == 64 / 4  # a product of matrices of halves
    assert float(results[-1][0]) == 1.75  # 0 -> 1 -> 1.5 -> 1.75


def test_peaks_of_this_device(monkeypatch):
    small = roofline.Load(128, 2**16, 3)
    monkeypatch.setattr(roofline, "CPU", small)
    monkeypatch.setattr(roofline, "ACCELERATOR", small)
    for dtype in ("float32", "bfloat16"):
        assert all(0 < peak < math.inf for peak in roofline.peaks(dtype=dtype))
