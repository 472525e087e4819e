"""Roofline model: the minimum cost of a network, and the peak performance of the device.

The cost is for one pair of volumes (b = 1). It is counted from the shapes; nothing is computed.

FLOPs are 2 x the multiply-adds of the convolutions. All taps are counted for every voxel of y, also those on padding:

    2 * (voxels of y) * (taps) * (channels of x) * (channels of y)

The forward pass, the gradient by the kernel and the gradient by x need this number each. The first convolution of the
network needs no gradient by x. Biases, activations, sums, pools, upsamplings and the loss are not counted; together
they are a few per cent.

Bytes are the minimum memory traffic. All voxel-wise operations count as fused into the convolutions, and nothing stays
in a cache between two convolutions:

    convolution               reads x and the parameters, writes y
    its gradient by x         reads g and the parameters, writes one like x; none for the first convolution
    its gradient by kernel    reads x and g, writes one like the parameters
    pool, upsampling          reads and writes once; the gradient as much
    loss and its gradient     `LOSS_VOLUMES` float32 volumes of one channel
    Adam                      reads parameters, gradient and two moments, writes all but the gradient

Features and their gradients have the dtype of the network's convolutions; parameters are float32. The parts of a
concatenation are read in place. The second operand of a sum is not counted.
Letters: x input, y output and g the gradient by y of a convolution; l and h as in `models/f3rnet.py`.
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from f3r_jax.models.f3rnet import COARSEST, VARIANTS, F3RNet
from f3r_jax.models.layers import Conv
from f3r_jax.models.voxelmorph import DECODERS, FACTOR, VoxelMorph

Shape = Sequence[int]  # x y z

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(F3RNet, row) for name, row in VARIANTS.items()},
    **{name: partial(VoxelMorph, decoder) for name, decoder in DECODERS.items()},
}

# A lower bound: MIND's 12 channels count as never written. Forward: the warp reads the moving volume and the field and
# writes one volume (5); MIND reads that and the fixed volume (2). Backward: MIND reads both and writes a gradient (3);
# the warp reads it, the moving volume and the field, and writes the gradient of the field (8). The smoothness term uses
# the same reads.
LOSS_VOLUMES = 18

PARAMETER, ADAM = 4, 7 * 4  # bytes per parameter


class Cost(NamedTuple):
    """Floating-point operations, and bytes to and from memory."""

    flops: float
    bytes: float


class Convolution(NamedTuple):
    """One convolution of a network, for one pair."""

    flops: int
    x_bytes: int
    y_bytes: int
    parameters: int  # of kernel and bias

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return self.x_bytes + self.y_bytes + PARAMETER * self.parameters


class Peaks(NamedTuple):
    """Measured peak performance of the device."""

    flops_per_second: float
    bytes_per_second: float


def forward_cost(variant: str, shape: Shape, *, dtype: str = "float32") -> Cost:
    """Minimum cost of a forward pass of the network.

    Args:
      variant: a variant of F3RNet, "voxelmorph1" or "voxelmorph2".
      shape: of the volumes; the padding by the network is counted.
      dtype: of the features.
    """
    layers = convolutions(NETWORKS[variant](dtype=dtype), shape)
    moved = sum(layer.bytes for layer in layers)
    return Cost(sum(layer.flops for layer in layers), moved + _resampled_bytes(variant, shape, dtype))


def train_cost(variant: str, shape: Shape, *, dtype: str = "float32") -> Cost:
    """Minimum cost of one train step on one pair: network, loss, gradients and Adam. Arguments as in `forward_cost`."""
    layers = convolutions(NETWORKS[variant](dtype=dtype), shape)
    resampled, first = _resampled_bytes(variant, shape, dtype), layers[0]
    # Each gradient of a convolution has the same FLOPs as the convolution and moves the same three arrays.
    flops = 3 * sum(layer.flops for layer in layers) - first.flops
    moved = 3 * sum(layer.bytes for layer in layers) - first.bytes + 2 * resampled
    moved += ADAM * sum(layer.parameters for layer in layers) + LOSS_VOLUMES * 4 * math.prod(shape)
    return Cost(flops, moved)


def convolutions(network: nn.Module, shape: Shape) -> list[Convolution]:
    """All convolutions of the network, in the order in which they run."""
    found = []

    def record(
        function: Callable[..., Any], args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
        y = function(*args, **kwargs)
        if isinstance(layer := context.module, Conv) and context.method_name == "__call__":
            (x,) = args
            kernel = math.prod(layer.size) * x.shape[-1] * layer.features
            flops = 2 * y.size // layer.features * kernel
            found.append(Convolution(flops, x.nbytes, y.nbytes, kernel + layer.features))
        return y

    volume = jax.ShapeDtypeStruct((1, *shape, 1), jnp.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(partial(network.init, mutable=["params"]), jax.random.key(0), volume, volume)
    return found


def _resampled_bytes(variant: str, shape: Shape, dtype: str) -> float:
    """Bytes that pools and upsamplings read and write."""
    voxels = math.prod(-(-n // FACTOR) * FACTOR for n in shape)
    values = _resampled_by_f3rnet(variant) if variant in VARIANTS else _resampled_by_voxelmorph(variant)
    return values * voxels * jnp.dtype(dtype).itemsize


def _resampled_by_f3rnet(variant: str) -> float:
    """Values per voxel: the pyramid of l, the residuals for each later MRB and for l itself, and h between scales."""
    low, high = 16, 32  # channels of l and h
    coarse, extra = range(1, COARSEST + 1), [COARSEST] * VARIANTS[variant].extra_mrbs
    scales = [*coarse, *extra, *range(COARSEST - 1, 0, -1)]
    pyramid = sum(_share(k - 1) + _share(k) for k in coarse)
    residuals = sum(_share(a) + _share(b) for n, b in enumerate(scales) for a in set(scales[:n]))
    whole = 1 + sum(_share(k) for k in coarse)
    between = sum(_share(a) + _share(b) for a, b in pairwise(scales) if a != b)
    return low * (pyramid + residuals + whole) + high * between


def _resampled_by_voxelmorph(variant: str) -> float:
    """Values per voxel: the decoder upsamples by repetition from 1/16, 1/8, 1/4 and finally 1/2."""
    coarse = [DECODERS[variant][n] for n in (0, 1, 2, 4)]
    return sum(c * (_share(k) + _share(k - 1)) for c, k in zip(coarse, (4, 3, 2, 1), strict=True))


def _share(scale: int) -> float:
    """Voxels at 1/2^scale of the resolution, per voxel of the input."""
    return 8.0**-scale


# ---------------------------------------------------------------------------------------------------------------------
# The device


class Load(NamedTuple):
    """Size of the work that `peaks` times."""

    edge: int  # of the matrices
    numbers: int  # in an array
    runs: int


# On a CPU a run takes a tenth of a second, and the arrays are larger than any cache. On an accelerator it takes a
# millisecond, far more than starting a compiled function takes.
CPU, ACCELERATOR = Load(2048, 2**26, 6), Load(8192, 2**28, 20)


def peaks(*, dtype: str = "float32") -> Peaks:
    """Measures the peak FLOP/s with a product of two square matrices, and the peak bytes/s with a = a / 2 + b.

    Runs on JAX's default device and keeps the best of several runs; takes a second or two on two cores. By default a
    GPU multiplies float32 as TF32, in products and in convolutions, and this does too. `dtype` is that of the
    matrices; the arrays are always float32.
    """
    load = CPU if jax.default_backend() == "cpu" else ACCELERATOR
    matrix = jnp.full((load.edge, load.edge), 0.5, dtype)
    product = _best_seconds(lambda _: jnp.dot(matrix, matrix), matrix, runs=load.runs)
    a, b = jnp.zeros(load.numbers, jnp.float32), jnp.ones(load.numbers, jnp.float32)
    # In place: getting new memory pages for every result would take longer than the arithmetic.
    triad = jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0)
    return Peaks(2 * load.edge**3 / product, 3 * b.nbytes / _best_seconds(lambda a: triad(a, b), a, runs=load.runs))


def _best_seconds(function: Callable[[jax.Array], jax.Array], argument: jax.Array, *, runs: int) -> float:
    """Seconds of the fastest run after a warm-up run. Each run gets the result of the previous one."""
    argument, best = jax.block_until_ready(function(argument)), math.inf
    for _ in range(runs):
        start = time.perf_counter()
        argument = jax.block_until_ready(function(argument))
        best = min(best, time.perf_counter() - start)
    return best
