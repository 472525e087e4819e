"""3-D convolution that is fast where XLA's own is not.

Letters: b batch, x y z voxels, i input channels, o output channels; kernels are (kx, ky, kz, i, o).

XLA hands 2-D convolutions on a CPU to Eigen, which is fast, and runs 3-D ones in a slow loop of its own. On a CPU
every 3-D convolution of this package is therefore written as one 2-D convolution, most of them without moving a voxel:
in the row-major layout (b, x, y, z, c) the pair of axes (y, z) is also one long axis on which a step along y is a step
of z places, that is, a dilated tap. The gradients are written the same way in a `custom_vjp`, since XLA's derivative of
these forms is slow again. On other platforms `lax.conv_general_dilated` is called directly; the choice is made when the
program is lowered, so one jitted function serves every platform. `python -m f3r_jax.benchmark --what=conv` measures
both.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from f3r_jax.ops.conv_cpu import conv_as_2d, gradients_as_2d, in_float32, zeros_between
from f3r_jax.ops.shapes import Features

Input = Float[Array, "b x y z i"]
Kernel = Float[Array, "kx ky kz i o"]
Bias = Float[Array, " o"]


_NXYZC = ("NXYZC", "XYZIO", "NXYZC")


@partial(jax.jit, static_argnames="stride")  # the layers of one shape are traced and lowered once: a third of the time
def conv3d(x: Input, kernel: Kernel, bias: Bias | None = None, *, stride: int = 1) -> Features:
    """3-D convolution (cross-correlation) with zero padding, "SAME" as TensorFlow and Keras define it.

    Args:
      x: (b x y z i).
      kernel: (kx ky kz i o) of any size.
      bias: (o,), added to every voxel.
      stride: 1 or 2, the step along all three axes; the result has ceil(n / stride) voxels along an axis of n.

    Returns:
      (b x y z o), of the type that x, kernel and bias share: float32 or bfloat16. Sums are made in float32.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}, expected 1 or 2")
    y = _conv(x, kernel, stride)
    return y if bias is None else _add(y, bias)


def conv_transpose3d(x: Input, kernel: Kernel, bias: Bias | None = None) -> Features:
    """Transposed convolution of stride 2: (b x y z i) -> (b 2x 2y 2z o), zero padding "SAME" as Keras defines it.

    The kernel, (kx ky kz i o) with odd edges, is that of the stride-1 convolution of x with zeros between its voxels:
    the mirror image of Keras' own.
    """
    if any(k % 2 == 0 for k in kernel.shape[:3]):
        raise ValueError(f"the kernel is {kernel.shape[:3]}, expected odd edges")
    shape = tuple(2 * n for n in x.shape[1:4])
    return conv3d(zeros_between(x, shape, kernel.shape[:3]), kernel, bias)


@jax.custom_vjp
def _add(x: Array, bias: Array) -> Array:
    """x + bias, whose derivative is summed over millions of voxels: in bfloat16 the sum would stop growing at 256."""
    return x + bias


def _add_forward(x: Array, bias: Array) -> tuple[Array, None]:
    return _add(x, bias), None


def _add_backward(_: None, g: Array) -> tuple[Array, Array]:
    return g, g.sum((0, 1, 2, 3), dtype=jnp.float32).astype(g.dtype)


_add.defvjp(_add_forward, _add_backward)


def _native(x: Array, kernel: Array, stride: int) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride,) * 3, "SAME", dimension_numbers=_NXYZC)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: Array, kernel: Array, stride: int) -> Array:
    return lax.platform_dependent(
        x, kernel, cpu=in_float32(partial(conv_as_2d, stride=stride)), default=partial(_native, stride=stride)
    )


def _conv_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, kernel, stride), (x, kernel)


def _conv_backward(stride: int, residuals: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    return lax.platform_dependent(
        *residuals,
        g,
        cpu=in_float32(partial(gradients_as_2d, stride=stride)),
        default=partial(_native_gradients, stride=stride),
    )


_conv.defvjp(_conv_forward, _conv_backward)


def _native_gradients(x: Array, kernel: Array, g: Array, *, stride: int) -> tuple[Array, Array]:
    return jax.vjp(partial(_native, stride=stride), x, kernel)[1](g)


# ---------------------------------------------------------------------------------------------------------------------
# CPU: forward


# ---------------------------------------------------------------------------------------------------------------------
# CPU: gradients


# ---------------------------------------------------------------------------------------------------------------------
# Borders
