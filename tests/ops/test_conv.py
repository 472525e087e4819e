"""Convolution against a naive loop, XLA's own, PyTorch and finite differences; the program it becomes per platform."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from f3r_jax.ops import conv_cpu
from f3r_jax.ops.conv import conv3d, conv_transpose3d

SIZES = ((1, 1, 1), (3, 3, 1), (1, 1, 3), (3, 3, 3))
# Channels in and out, volume, batch: odd and even sizes, axes of one voxel, all the ways the fast form branches.
VOLUMES = (
    ((2, 16), (5, 4, 6), 1),
    ((16, 3), (4, 5, 3), 2),
    ((16, 16), (1, 6, 5), 1),
    ((8, 32), (6, 1, 4), 2),
    ((48, 32), (3, 4, 1), 1),
    ((2, 3), (4, 5, 6), 2),
)
FOLDED = [(size, 1, volume) for size in SIZES for volume in VOLUMES]
FOLDED += [(size, 2, volume) for size in SIZES for volume in (VOLUMES[0], VOLUMES[2], VOLUMES[3])]
# Kernels of other sizes, as FAIM has them: even ones, unequal ones, and some that are larger than the volume.
OTHERS = [
    ((2, 2, 2), 1, ((2, 3), (4, 5, 3), 1)),
    ((2, 2, 2), 2, ((2, 3), (4, 5, 3), 1)),
    ((2, 4, 2), 2, ((2, 3), (5, 6, 4), 2)),
    ((5, 5, 5), 1, ((2, 3), (4, 5, 3), 1)),
    ((4, 4, 1), 1, ((3, 8), (4, 5, 3), 1)),
    ((4, 4, 1), 1, ((3, 2), (4, 5, 6), 1)),
    ((1, 1, 4), 1, ((3, 8), (4, 5, 6), 2)),
    ((3, 1, 2), 1, ((2, 3), (6, 5, 4), 1)),
    ((7, 7, 7), 1, ((2, 8), (5, 4, 2), 1)),
]


QUICKLY_COMPILED = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnames="stride", compiler_options=QUICKLY_COMPILED)
def values_and_gradients(x, kernel, bias, g, *, stride):
    """The result, and the gradients of sum(g * result) by x, kernel and bias."""
    y, gradients = jax.vjp(functools.partial(conv3d, stride=stride), x, kernel, bias)
    return y, *gradients(g)


def random_arrays(size, stride, volume, seed=0):
    """x, kernel, bias and the gradient g that arrives at the result."""
    (i, o), shape, batch = volume
    generator = np.random.default_rng(seed)
    shapes = ((batch, *shape, i), (*size, i, o), (o,), (batch, *(-(-n // stride) for n in shape), o))
    return [generator.normal(size=shape).astype(np.float32) for shape in shapes]


@functools.cache
def ours(size, stride, volume):
    return values_and_gradients(*random_arrays(size, stride, volume), stride=stride)


def naive(x, kernel, bias, g, stride):
    """Voxel by voxel: TensorFlow's SAME puts the odd plane of zeros at the end."""
    size, shape = kernel.shape[:3], x.shape[1:4]
    totals = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(shape, size, strict=True)]
    padded = np.pad(x.astype(np.float64), [(0, 0), *((t // 2, t - t // 2) for t in totals), (0, 0)])
    y, dx, dkernel = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(kernel.shape)
    for voxel in np.ndindex(g.shape[1:4]):
        window = (slice(None), *(slice(v * stride, v * stride + k) for v, k in zip(voxel, size, strict=True)))
        here = (slice(None), *voxel)
        y[here] = np.einsum("bxyzi,xyzio->bo", padded[window], kernel) + bias
        dx[window] += np.einsum("xyzio,bo->bxyzi", kernel, g[here])
        dkernel += np.einsum("bxyzi,bo->xyzio", padded[window], g[here])
    inner = tuple(slice(t // 2, t // 2 + n) for t, n in zip(totals, shape, strict=True))
    return y, dx[:, *inner], dkernel, g.sum((0, 1, 2, 3))


def xla_conv(x, kernel, stride):
    return lax.conv_general_dilated(x, kernel, (stride,) * 3, "SAME", dimension_numbers=("NXYZC", "XYZIO", "NXYZC"))


@functools.partial(jax.jit, static_argnums=4, compiler_options=QUICKLY_COMPILED)
def xla(x, kernel, bias, g, stride):
    y, gradients = jax.vjp(lambda x, kernel, bias: xla_conv(x, kernel, stride) + bias, x, kernel, bias)
    return y, *gradients(g)


def pytorch(torch, x, kernel, bias, g, stride):
    volume, weights, offset = (torch.tensor(a, requires_grad=True) for a in (x, kernel, bias))
    pads = []
    for n, k in zip(x.shape[3:0:-1], kernel.shape[2::-1], strict=True):  # the last axis comes first
        total = max((-(-n // stride) - 1) * stride + k - n, 0)
        pads += [total // 2, total - total // 2]
    padded = torch.nn.functional.pad(volume.movedim(-1, 1), pads)
    y = torch.nn.functional.conv3d(padded, weights.permute(4, 3, 0, 1, 2), offset, stride=stride).movedim(1, -1)
    y.backward(torch.tensor(g))
    return y.detach().numpy(), *(a.grad.numpy() for a in (volume, weights, offset))


def assert_agree(case, reference):
    expected = reference(*random_arrays(*case), case[1])
    for name, mine, theirs in zip(("y", "dx", "dkernel", "dbias"), ours(*case), expected, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == np.float32, name
        theirs = np.asarray(theirs)
        np.testing.assert_allclose(mine, theirs, atol=2e-6 * max(np.abs(theirs).max(), 1), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("case", FOLDED + OTHERS, ids=str)
def test_agrees_with_a_loop(case):
    assert_agree(case, naive)


@pytest.mark.parametrize("values", [1, 300, 1200])
@pytest.mark.parametrize("size", [(1, 1, 3), (3, 3, 1), (3, 3, 3)], ids=str)
def test_slabs_of_any_width_add_up(size, values, monkeypatch):
    monkeypatch.setattr(conv_cpu, "_SLAB", values)
    *inputs, g = map(jnp.asarray, random_arrays(size, 1, ((2, 3), (6, 8, 5), 2)))
    kernel_gradient = jax.vjp(conv3d, *inputs)[1](g)[1]
    np.testing.assert_allclose(
        kernel_gradient, naive(*map(np.asarray, inputs), np.asarray(g), 1)[2], atol=1e-4, rtol=1e-5
    )


@pytest.mark.parametrize("case", FOLDED + OTHERS, ids=str)
def test_agrees_with_torch(case, torch):
    assert_agree(case, functools.partial(pytorch, torch))


@pytest.mark.parametrize("case", [case for case in FOLDED if case[2] == VOLUMES[0]], ids=str)
def test_agrees_with_xla(case):
    assert_agree(case, xla)


@pytest.mark.parametrize("case", FOLDED, ids=str)
def test_gradients_agree_with_finite_differences(case):
    """Along a random direction of x, kernel and bias together; a bilinear map's central difference is exact."""
    *inputs, g = random_arrays(*case)
    *direction, _ = random_arrays(*case, seed=1)

    def loss(step):
        moved = [a + step * d for a, d in zip(inputs, direction, strict=True)]
        return np.vdot(g.astype(np.float64), values_and_gradients(*moved, g, stride=case[1])[0])

    slope = sum(np.vdot(d.astype(np.float64), gradient) for d, gradient in zip(direction, ours(*case)[1:], strict=True))
    scale = np.linalg.norm(g) * np.linalg.norm(ours(*case)[0])
    np.testing.assert_allclose(loss(0.5) - loss(-0.5), slope, atol=1e-5 * scale)


def test_sum_of_a_constant_counts_the_neighbours():
    x = jnp.ones((1, 4, 5, 6, 1))
    y = np.asarray(jax.jit(conv3d)(x, jnp.ones((3, 3, 3, 1, 1))))[0, ..., 0]
    assert (y[0, 0, 0], y[1, 0, 0], y[1, 1, 0], y[1, 1, 1]) == (8, 12, 18, 27)


@pytest.mark.parametrize(
    ("stride", "shape", "expected"), [(1, (5, 4, 1), (5, 4, 1)), (2, (5, 4, 1), (3, 2, 1)), (2, (7, 6, 2), (4, 3, 1))]
)
def test_shape_of_the_result(stride, shape, expected):
    for size in (*SIZES, (2, 2, 2), (5, 5, 5)):
        x, kernel = jax.ShapeDtypeStruct((2, *shape, 4), "float32"), jax.ShapeDtypeStruct((*size, 4, 6), "float32")
        y = jax.eval_shape(functools.partial(conv3d, stride=stride), x, kernel)
        assert (y.shape, y.dtype) == ((2, *expected, 6), np.float32)


def convolutions(platform, size, stride, *, gradient):
    """The ranks of the convolutions' inputs in the program as lowered for a platform, which needn't be at hand."""
    arrays = random_arrays(size, stride, ((8, 32), (6, 5, 4), 1))

    def forward(x, kernel, bias, g):
        return conv3d(x, kernel, bias, stride=stride)

    def gradients(x, kernel, bias, g):
        return jax.vjp(functools.partial(conv3d, stride=stride), x, kernel, bias)[1](g)

    text = jax.jit(gradients if gradient else forward).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    return [spec.count("x") for spec in re.findall(r"stablehlo\.convolution\(.*: \(tensor<([\dx]+)f32>", text)]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_cpu_program_holds_no_3d_convolution_and_others_hold_nothing_else(size, stride, gradient):
    on_cpu = convolutions("cpu", size, stride, gradient=gradient)
    assert 5 not in on_cpu
    assert on_cpu or size == (1, 1, 1)
    for platform in ("cuda", "tpu"):
        # The gradients by x and by the kernel are a convolution each.
        assert set(convolutions(platform, size, stride, gradient=gradient)) == {5}
        assert len(convolutions(platform, size, stride, gradient=False)) == 1


def test_a_stride_that_no_network_here_has():
    arrays = random_arrays((3, 3, 3), 3, ((2, 3), (7, 5, 3), 1))
    with pytest.raises(ValueError, match="stride is 3, expected 1 or 2"):
        conv3d(*map(jnp.asarray, arrays[:3]), stride=3)


@pytest.mark.parametrize("size", [(3, 3, 3), (1, 1, 1), (5, 3, 1)], ids=str)
def test_transposed_convolution_is_the_gradient_of_a_strided_one(size):
    x, kernel, bias, _ = map(jnp.asarray, random_arrays(size, 1, ((4, 3), (3, 4, 2), 2)))
    y = conv_transpose3d(x, kernel, bias)
    mirrored = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    strided = functools.partial(xla_conv, kernel=mirrored, stride=2)
    (expected,) = jax.vjp(strided, jnp.zeros((2, 6, 8, 4, 3)))[1](x)
    np.testing.assert_allclose(y, expected + bias, atol=1e-5)


def test_transposed_convolution_of_an_even_kernel():
    x, kernel, *_ = map(jnp.asarray, random_arrays((2, 2, 2), 1, ((4, 3), (3, 4, 2), 2)))
    with pytest.raises(ValueError, match=r"\(2, 2, 2\), expected odd edges"):
        conv_transpose3d(x, kernel)


def test_transposed_convolution_agrees_with_torch(torch):
    x, kernel, bias, _ = random_arrays((3, 3, 3), 1, ((4, 3), (3, 4, 2), 2))
    weights = torch.tensor(np.ascontiguousarray(kernel[::-1, ::-1, ::-1])).permute(3, 4, 0, 1, 2)
    y = torch.nn.functional.conv_transpose3d(torch.tensor(x).movedim(-1, 1), weights, torch.tensor(bias), stride=2)
    expected = y[:, :, :6, :8, :4].movedim(1, -1).numpy()  # Keras' SAME drops the last plane
    np.testing.assert_allclose(conv_transpose3d(*map(jnp.asarray, (x, kernel, bias))), expected, atol=1e-5)


def test_vmap_over_volumes_and_over_kernels():
    x, kernel, bias, g = map(jnp.asarray, random_arrays((3, 3, 3), 1, ((2, 3), (4, 3, 5), 1)))
    scales = np.array([0.5, -2.0], np.float32)

    def value_and_gradient(x, scale):
        y, gradient = jax.vjp(lambda x: conv3d(x, scale * kernel, bias), x)
        return y, *gradient(g)

    volumes = np.stack([x, 3 * x])
    y, dx, _, _ = ours((3, 3, 3), 1, ((2, 3), (4, 3, 5), 1))
    linear = y - bias
    for axes, inputs, factors in (((None, 0), (x, scales), scales), ((0, None), (volumes, scales[0]), (0.5, 1.5))):
        values, gradients = jax.jit(jax.vmap(value_and_gradient, axes), compiler_options=QUICKLY_COMPILED)(*inputs)
        np.testing.assert_allclose(values, np.stack([f * linear + bias for f in factors]), atol=1e-4)
        scaled = scales if axes[1] == 0 else (scales[0], scales[0])
        np.testing.assert_allclose(gradients, np.stack([f * dx for f in scaled]), atol=1e-4)
