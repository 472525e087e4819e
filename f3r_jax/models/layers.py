"""Building blocks of the registration networks: convolutions, residual blocks, pooling and upsampling.

Letters: b batch, x y z voxels, c channels, f factor between two scales.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from f3r_jax.ops.conv import conv3d
from f3r_jax.shapes import Volume

Initializer = Callable[..., Array]

# He et al. 2015: keeps the variance of a LeakyReLU network's activations, whatever the channel count.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def leaky_relu(x: Volume, slope: float) -> Volume:
    """max(x, slope x): one elementwise operation, which XLA fuses into the one before it."""
    return jnp.maximum(x, slope * x)


class Conv(nn.Module):
    """One 3-D convolution with bias, "SAME" zero padding. No activation."""

    features: int
    size: tuple[int, int, int] = (3, 3, 3)
    stride: int = 1
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: Volume) -> Volume:
        kernel = self.param("kernel", self.kernel_init, (*self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return conv3d(x, kernel, bias, stride=self.stride)


class F3D(nn.Module):
    """Factorised 3-D convolution (Sec. 2.4): 3x3x1 in the slice, then 1x1x3 across slices, each with bias.

    The first factor keeps the smaller of the two channel counts, the reading that gives the paper's parameter counts.
    """

    features: int

    @nn.compact
    def __call__(self, x: Volume) -> Volume:
        x = Conv(min(x.shape[-1], self.features), (3, 3, 1), name="plane")(x)
        return Conv(self.features, (1, 1, 3), name="line")(x)


def convolution(features: int, *, factorised: bool, name: str) -> nn.Module:
    """A 3x3x3 convolution, or its factorised form."""
    return F3D(features, name=name) if factorised else Conv(features, name=name)


class ResidualBlock(nn.Module):
    """z + R(z) (Eq. 1): R is two convolutions, each followed by LeakyReLU.

    Attributes:
      form: "full", two 3x3x3 convolutions; "factorised", each of them an F3D pair (full-resolution stream);
        "cascade", the two replaced by one cascade of 3x3x1 and 1x1x3 (multi-scale stream).
      slope: of LeakyReLU.
    """

    form: str
    slope: float

    @nn.compact
    def __call__(self, z: Volume) -> Volume:
        c = z.shape[-1]
        first, second = {
            "full": (Conv(c, name="first"), Conv(c, name="second")),
            "factorised": (F3D(c, name="first"), F3D(c, name="second")),
            "cascade": (Conv(c, (3, 3, 1), name="first"), Conv(c, (1, 1, 3), name="second")),
        }[self.form]
        return z + leaky_relu(second(leaky_relu(first(z), self.slope)), self.slope)


def pool(x: Volume, factor: int) -> Volume:
    """Average over cubes of `factor` voxels an edge; every axis must be a multiple of it.

    The mean is taken because it keeps the position of an edge to a fraction of a coarse voxel, which a maximum does not, and because its gradient
    is a plain copy. It is written as a reshape: XLA's window reduction is several times slower on a CPU.
    """
    if factor == 1:
        return x
    b, nx, ny, nz, c = x.shape
    f = factor
    return x.reshape(b, nx // f, f, ny // f, f, nz // f, f, c).mean((2, 4, 6))


def upsample(x: Volume, factor: int) -> Volume:
    """Trilinear interpolation to `factor` times the size; voxel centres as in `pool`, edge values outside.

    Linear rather than nearest: the residual that the multi-scale stream adds is then smooth, and so is the displacement.
    """
    for axis in (1, 2, 3):
        x = _upsample_axis(x, factor, axis)
    return x


def _upsample_axis(x: Array, factor: int, axis: int) -> Array:
    if factor == 1:
        return x
    n = x.shape[axis]
    middle = jnp.expand_dims(x, axis + 1)
    before = jnp.expand_dims(
        jnp.concatenate([_edge(x, 0, axis), jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis), axis + 1
    )
    after = jnp.expand_dims(
        jnp.concatenate([jax.lax.slice_in_dim(x, 1, n, axis=axis), _edge(x, n - 1, axis)], axis), axis + 1
    )
    # The f new voxels of a coarse one lie at these fractions of it from its centre.
    offsets = (np.arange(factor) + 0.5) / factor - 0.5
    shape = [1] * x.ndim
    shape.insert(axis + 1, factor)
    back, ahead = (np.maximum(side, 0).reshape(shape).astype(x.dtype) for side in (-offsets, offsets))
    fine = (1 - back - ahead) * middle + back * before + ahead * after
    return fine.reshape(*x.shape[:axis], n * factor, *x.shape[axis + 1 :])


def _edge(x: Array, index: int, axis: int) -> Array:
    return jax.lax.slice_in_dim(x, index, index + 1, axis=axis)
