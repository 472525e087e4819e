"""3-D convolution that is also fast on a CPU, where XLA's own is slow.

Letters: b batch, x y z voxels, i input channels, o output channels; kernels are (kx, ky, kz, i, o).

On a CPU, XLA computes 2-D convolutions with Eigen, which is fast, and 3-D convolutions in a slow loop. This package
therefore writes every 3-D convolution on a CPU as one 2-D convolution. Most of them need no copy of the data. In the
row-major layout (b, x, y, z, c) the axes y and z together form one long axis. A step along y is a step of z places
on it, that is, a dilated tap. A `custom_vjp` computes the gradients in the same way, because XLA's derivative of these
forms is slow. On other platforms `lax.conv_general_dilated` is called directly. The choice is made when the function
is lowered, so one jitted function works on every platform. `python -m f3r_jax.benchmark --what=conv` measures both.
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


@partial(jax.jit, static_argnames="stride")  # layers of equal shape are traced and lowered once, in a third of the time
def conv3d(x: Input, kernel: Kernel, bias: Bias | None = None, *, stride: int = 1) -> Features:
    """3-D convolution (cross-correlation) with zero padding, "SAME" as TensorFlow and Keras define it.

    Args:
      x: (b x y z i).
      kernel: (kx ky kz i o) of any size.
      bias: (o,), added to every voxel.
      stride: 1 or 2, the step along all three axes. An axis of n voxels becomes one of ceil(n / stride) voxels.

    Returns:
      (b x y z o), of the common type of x, kernel and bias: float32 or bfloat16. Sums are computed in float32.
    """
    if stride not in (1, 2):
        raise ValueError(f"stride is {stride}, expected 1 or 2")
    y = _conv(x, kernel, stride)
    return y if bias is None else _add(y, bias)


def conv_transpose3d(x: Input, kernel: Kernel, bias: Bias | None = None) -> Features:
    """Transposed convolution of stride 2: (b x y z i) -> (b 2x 2y 2z o), zero padding "SAME" as Keras defines it.

    The result is the stride-1 convolution of `kernel` with x after zeros are inserted between the voxels of x. The
    kernel is (kx ky kz i o) with odd edges. Keras stores its mirror image.
    """
    if any(k % 2 == 0 for k in kernel.shape[:3]):
        raise ValueError(f"the kernel is {kernel.shape[:3]}, expected odd edges")
    shape = tuple(2 * n for n in x.shape[1:4])
    return conv3d(zeros_between(x, shape, kernel.shape[:3]), kernel, bias)


@jax.custom_vjp
def _add(x: Array, bias: Array) -> Array:
    """x + bias. The gradient of bias is summed in float32: a sum over millions of voxels in bfloat16 stops at 256."""
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
