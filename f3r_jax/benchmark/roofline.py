"""What a network must cost at least, and what the device can do at most: the two sides of a roofline.

Counted without computing anything, for one pair of volumes (b = 1).

FLOPs: 2 x multiply-adds of the convolutions, each of y's voxels meeting all taps, those on the padding's zeros too:

    2 * (voxels of y) * (taps) * (channels of x) * (channels of y)

for y, as often for the gradient by the kernel, and as often for that by x, which the network's first convolution
doesn't need. Biases, activations, sums, pools, upsamplings and the loss aren't counted: together a few per cent.

Bytes: the least traffic when all that works on single voxels is fused into the convolutions, and nothing stays in a
cache between two of them:

    convolution               reads x and the parameters, writes y
    its gradient by x         reads g and the parameters, writes one like x; none for the first convolution
    its gradient by kernel    reads x and g, writes one like the parameters
    pool, upsampling          reads and writes once; the gradient as much
    loss and its gradient     `LOSS_VOLUMES` float32 volumes of one channel
    Adam                      reads parameters, gradient and two moments, writes all but the gradient

Features and their gradients have the type in which the network's convolution takes and gives them, parameters are
float32. A concatenation is read where its parts lie; the second operand of a sum isn't counted.
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

NETWORKS = {
    **{name: partial(F3RNet, row) for name, row in VARIANTS.items()},
    **{name: partial(VoxelMorph, decoder) for name, decoder in DECODERS.items()},
}

# A lower estimate, as if MIND's 12 channels were never written. Forward: the warp reads the moving volume and the field
# and writes one volume (5), MIND reads that and the fixed one (2). Backward: MIND reads both and writes a gradient (3),
# the warp reads it, the moving volume and the field and writes the field's gradient (8). The smoothness reads along.
LOSS_VOLUMES = 18

PARAMETER, ADAM = 4, 7 * 4  # bytes a parameter


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
        """What it moves."""
        return self.x_bytes + self.y_bytes + PARAMETER * self.parameters


class Peaks(NamedTuple):
    """What the device reaches, measured."""

    flops_per_second: float
    bytes_per_second: float


def forward_cost(variant: str, shape: Shape, *, dtype: str = "float32") -> Cost:
    """One displacement by the network alone.

    Args:
      variant: a variant of F3RNet, "voxelmorph1" or "voxelmorph2".
      shape: of the volumes; the network pads them, which is counted.
      dtype: of the features.
    """
    layers = convolutions(NETWORKS[variant](dtype=dtype), shape)
    moved = sum(layer.bytes for layer in layers)
    return Cost(sum(layer.flops for layer in layers), moved + _resampled_bytes(variant, shape, dtype))


def train_cost(variant: str, shape: Shape, *, dtype: str = "float32") -> Cost:
    """One step of training on one pair: network, loss, their gradients and Adam. Arguments as of `forward_cost`."""
    layers = convolutions(NETWORKS[variant](dtype=dtype), shape)
    resampled, first = _resampled_bytes(variant, shape, dtype), layers[0]
    # Each of a convolution's gradients works as much as itself, and moves the same three arrays in other roles.
    flops = 3 * sum(layer.flops for layer in layers) - first.flops
    moved = 3 * sum(layer.bytes for layer in layers) - first.bytes + 2 * resampled
    moved += ADAM * sum(layer.parameters for layer in layers) + LOSS_VOLUMES * 4 * math.prod(shape)
    return Cost(flops, moved)


def convolutions(network: nn.Module, shape: Shape) -> list[Convolution]:
    """All of them, in the order in which they run."""
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
    """What pools and upsamplings read and write."""
    voxels = math.prod(-(-n // FACTOR) * FACTOR for n in shape)
    values = _resampled_by_f3rnet(variant) if variant in VARIANTS else _resampled_by_voxelmorph(variant)
    return values * voxels * jnp.dtype(dtype).itemsize


def _resampled_by_f3rnet(variant: str) -> float:
    """Values a voxel: the pyramid of l, the residuals for each later MRB and for l itself, and h between scales."""
    low, high = 16, 32  # channels of l and h
    coarse, extra = range(1, COARSEST + 1), [COARSEST] * VARIANTS[variant].extra_mrbs
    scales = [*coarse, *extra, *range(COARSEST - 1, 0, -1)]
    pyramid = sum(_share(k - 1) + _share(k) for k in coarse)
    residuals = sum(_share(a) + _share(b) for n, b in enumerate(scales) for a in set(scales[:n]))
    whole = 1 + sum(_share(k) for k in coarse)
    between = sum(_share(a) + _share(b) for a, b in pairwise(scales) if a != b)
    return low * (pyramid + residuals + whole) + high * between


def _resampled_by_voxelmorph(variant: str) -> float:
    """Values a voxel: what the decoder has at 1/16, at 1/8, at 1/4 and last at 1/2 is repeated."""
    coarse = [DECODERS[variant][n] for n in (0, 1, 2, 4)]
    return sum(c * (_share(k) + _share(k - 1)) for c, k in zip(coarse, (4, 3, 2, 1), strict=True))


def _share(scale: int) -> float:
    """Voxels at 1/2^scale of the resolution, for one of the input."""
    return 8.0**-scale


# ---------------------------------------------------------------------------------------------------------------------
# The device


class Load(NamedTuple):
    """The work that `peaks` times."""

    edge: int  # of the matrices
    numbers: int  # in an array
    runs: int


# On a CPU a tenth of a second a run, and arrays beyond any cache. On an accelerator a millisecond, far above what
# starting a program takes.
CPU, ACCELERATOR = Load(2048, 2**26, 6), Load(8192, 2**28, 20)


def peaks(*, dtype: str = "float32") -> Peaks:
    """The best of several runs of a product of two square matrices, and of a = a / 2 + b, which memory alone limits.

    On JAX's default device, in a second or two on two cores. A GPU multiplies float32 as TF32 by default, in products
    and convolutions alike, and so does this. `dtype` is the matrices'; the arrays are float32 always.
    """
    load = CPU if jax.default_backend() == "cpu" else ACCELERATOR
    matrix = jnp.full((load.edge, load.edge), 0.5, dtype)
    product = _best_seconds(lambda _: jnp.dot(matrix, matrix), matrix, runs=load.runs)
    a, b = jnp.zeros(load.numbers, jnp.float32), jnp.ones(load.numbers, jnp.float32)
    # In place: fetching new pages from the system for every result would take longer than the arithmetic.
    triad = jax.jit(lambda a, b: 0.5 * a + b, donate_argnums=0)
    return Peaks(2 * load.edge**3 / product, 3 * b.nbytes / _best_seconds(lambda a: triad(a, b), a, runs=load.runs))


def _best_seconds(function: Callable[[jax.Array], jax.Array], argument: jax.Array, *, runs: int) -> float:
    """The shortest run after a first one; each is handed the result of the one before."""
    argument, best = jax.block_until_ready(function(argument)), math.inf
    for _ in range(runs):
        start = time.perf_counter()
        argument = jax.block_until_ready(function(argument))
        best = min(best, time.perf_counter() - start)
    return best
