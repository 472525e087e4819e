"""Building blocks of the registration networks: convolutions, residual blocks, pooling and upsampling.

Letters: b batch, x y z voxels, c channels, f factor between two scales.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike

from f3r_jax.ops.conv import conv3d
from f3r_jax.ops.shapes import Features

Initializer = Callable[..., Array]

# Random numbers are drawn in multiples of this, because XLA compiles a generator again for each shape: half a second
# each, or three seconds for a shape of five axes.
_BLOCK = 2**16


def glorot(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
    """Uniform in +-sqrt(6 / (fan in + fan out)) for kernels (x y z i o).

    The distribution is that of `nn.initializers.glorot_uniform()`; the values differ. It is the default of Keras and so
    presumably the paper's choice. He initialisation is usual before LeakyReLU, but here the features then grow a
    thousandfold along the chain of residual blocks, and training diverges at the first step.
    """
    *size, inputs, outputs = shape
    limit = math.sqrt(6 / (math.prod(size) * (inputs + outputs)))
    return limit * _draw(partial(jax.random.uniform, minval=-1.0), key, shape, dtype)


def normal(deviation: float) -> Initializer:
    """Normal with mean zero: the distribution of `nn.initializers.normal`, with other values."""

    def initialise(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        return deviation * _draw(jax.random.normal, key, shape, dtype)

    return initialise


def _draw(sample: Callable[..., Array], key: Array, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    count = math.prod(shape)
    return sample(key, (-(-count // _BLOCK) * _BLOCK,), dtype)[:count].reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x: Features, slope: float) -> Features:
    """max(x, slope x): one elementwise operation, which XLA fuses into the previous one.

    The derivative is computed from the sign of the result. The next layer stores the result anyway, so x need not be
    stored as well.
    """
    return jnp.maximum(x, slope * x)


def _leaky_relu_forward(x: Features, slope: float) -> tuple[Features, Features]:
    y = lax.platform_dependent(x, cpu=partial(_materialised, slope=slope), default=partial(leaky_relu, slope=slope))
    return y, y


def _materialised(x: Features, *, slope: float) -> Features:
    """leaky_relu whose result XLA on a CPU stores. Otherwise XLA stores all its inputs and recomputes it.

    At the end of a residual block, the inputs are the five volumes of a 3x3x3 convolution. At 144 x 144 x 128 the train
    step of F3RNet-w/o F3D then took 9.0 GB of buffers instead of 4.9 GB. XLA does not fuse a concatenation into the
    operations that use it. An optimization_barrier has no effect, because XLA removes it before fusion.
    """
    middle = x.shape[1] // 2
    return jnp.concatenate([leaky_relu(x[:, :middle], slope), leaky_relu(x[:, middle:], slope)], axis=1)


def _leaky_relu_backward(slope: float, y: Features, g: Features) -> tuple[Features]:
    return (jnp.where(y > 0, g, slope * g),)


leaky_relu.defvjp(_leaky_relu_forward, _leaky_relu_backward)


class Conv(nn.Module):
    """One 3-D convolution with bias and "SAME" zero padding, without activation.

    It computes in the type of its input. The parameters are float32.
    """

    features: int
    size: tuple[int, int, int] = (3, 3, 3)
    stride: int = 1
    kernel_init: Initializer = glorot

    @nn.compact
    def __call__(self, x: Features) -> Features:
        kernel = self.param("kernel", self.kernel_init, (*self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return conv3d(x, kernel.astype(x.dtype), bias.astype(x.dtype), stride=self.stride)


class F3D(nn.Module):
    """Factorised 3-D convolution (Sec. 2.4): 3x3x1 in the slice, then 1x1x3 across slices, each with bias.

    The first factor has the smaller of the two channel counts. This agrees with the paper's parameter counts.
    """

    features: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        x = Conv(min(x.shape[-1], self.features), (3, 3, 1), name="plane")(x)
        return Conv(self.features, (1, 1, 3), name="line")(x)


def convolution(features: int, *, factorised: bool, name: str) -> nn.Module:
    """A 3x3x3 convolution, or its factorised form."""
    return F3D(features, name=name) if factorised else Conv(features, name=name)


class ResidualBlock(nn.Module):
    """z + R(z) (Eq. 1): R is two convolutions, each followed by LeakyReLU.

    Attributes:
      form: "full": two 3x3x3 convolutions; "factorised": two F3D pairs (full-resolution stream);
        "cascade": one 3x3x1 and one 1x1x3 convolution (multi-scale stream).
      slope: slope of LeakyReLU for negative values.
    """

    form: str
    slope: float

    @nn.compact
    def __call__(self, z: Features) -> Features:
        c = z.shape[-1]
        forms: dict[str, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
            "full": (Conv, Conv),
            "factorised": (F3D, F3D),
            "cascade": (partial(Conv, size=(3, 3, 1)), partial(Conv, size=(1, 1, 3))),
        }
        first, second = (layer(c, name=name) for layer, name in zip(forms[self.form], ("first", "second"), strict=True))
        return z + leaky_relu(second(leaky_relu(first(z), self.slope)), self.slope)


def pool(x: Features, factor: int) -> Features:
    """Mean over cubes with an edge of `factor` voxels; the size along each axis must be a multiple of it.

    A mean preserves the position of an edge to a fraction of a coarse voxel, which a maximum does not, and its gradient
    is a plain copy. It is written as a reshape because XLA's window reduction is several times slower on a CPU.
    """
    if factor == 1:
        return x
    b, nx, ny, nz, c = x.shape
    f = factor
    return x.reshape(b, nx // f, f, ny // f, f, nz // f, f, c).mean((2, 4, 6))


def upsample(x: Features, factor: int) -> Features:
    """Trilinear interpolation to `factor` times the size; voxel centres as in `pool`, edge values outside.

    Linear interpolation makes the residual of the multi-scale stream smooth, and so the field; nearest-neighbour would
    not. Each axis is a product with a small banded matrix. On a CPU this is seven times faster than weighted sums of
    shifted copies, and its derivative is fifty times faster than theirs.
    """
    # The weights are multiples of 1 / (2 factor). Up to factor 16, bfloat16 represents them exactly.
    return _along_axes(x, [_interpolation(n, factor) for n in x.shape[1:4]])


def upsample_sum(parts: dict[int, Features]) -> Features:
    """The sum of `upsample(x, factor)` over all `factor: x`. All results must have the same grid.

    One product with the joined matrices along the last axis computes the sum, so the fine grid is written only once.
    """
    partly_upsampled = [
        _along_axes(x, [None, *(_interpolation(n, factor) for n in x.shape[2:4])]) for factor, x in parts.items()
    ]
    matrix = np.concatenate([_interpolation(x.shape[1], factor) for factor, x in parts.items()], axis=1)
    return _along_axes(jnp.concatenate(partly_upsampled, axis=1), [matrix, None, None])


def resample(x: Features, factor: int, new_factor: int) -> Features:
    """`pool(upsample(x, factor), new_factor)`, computed in float32 and without the fine grid."""

    def matrix(n: int) -> np.ndarray:
        return _interpolation(n, factor).reshape(-1, new_factor, n).mean(1)

    return _along_axes(x.astype(jnp.float32), [matrix(n) for n in x.shape[1:4]]).astype(x.dtype)


def _along_axes(x: Features, matrices: Sequence[np.ndarray | None]) -> Features:
    """Products with a matrix along each of x, y and z; None skips an axis."""
    for axis, matrix in reversed(list(enumerate(matrices, start=1))):
        if matrix is not None:
            x = jnp.moveaxis(jnp.tensordot(matrix.astype(x.dtype), x, axes=((1,), (axis,))), 0, axis)
    return x


def repeat(x: Features, factor: int) -> Features:
    """Nearest-neighbour interpolation to `factor` times the size, as in VoxelMorph."""
    b, nx, ny, nz, c = x.shape
    f = factor
    x = jnp.broadcast_to(x[:, :, None, :, None, :, None], (b, nx, f, ny, f, nz, f, c))
    return x.reshape(b, nx * f, ny * f, nz * f, c)


def pad_to_multiple(x: Features, multiple: int) -> Features:
    """Pads each axis to a multiple by repeating the last plane. Zeros would add an artificial edge to the image."""
    extra = [(0, -n % multiple) for n in x.shape[1:4]]
    return jnp.pad(x, [(0, 0), *extra, (0, 0)], mode="edge") if any(e for _, e in extra) else x


def crop(x: Features, like: Features) -> Features:
    """Crops x to the size of `like`, which undoes `pad_to_multiple`."""
    _, nx, ny, nz, _ = like.shape
    return x[:, :nx, :ny, :nz]


def _interpolation(n: int, factor: int) -> np.ndarray:
    """Interpolation matrix (n factor, n): row i holds the weights of the coarse voxels for the fine voxel i."""
    places = (np.arange(n * factor) + 0.5) / factor - 0.5
    distance = np.abs(np.clip(places, 0, n - 1)[:, None] - np.arange(n))
    return np.maximum(1 - distance, 0).astype(np.float32)
