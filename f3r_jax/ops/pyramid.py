"""Coarser grids: weighted pooling, smoothing, resizing of displacements, and extrapolation of images beyond a mask.

A grid of spacing s has one voxel per cube of s x s x s voxels of the full grid, at the cube's centre. Its voxel i is at
(i + 0.5) s - 0.5 on the full grid. Letters: b batch, x y z voxels, c channels.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from f3r_jax.ops.shapes import Displacement, Features, Shape, Volume

Weight = Float[Array, "b x y z 1"]  # known fraction of each voxel, 0 to 1


def pool(volume: Volume, factor: int) -> Features:
    """Means over cubes with an edge of `factor` voxels; incomplete cubes are filled by repeating the edge."""
    batch, *shape, channels = volume.shape
    missing = [-n % factor for n in shape]
    if any(missing):
        volume = jnp.pad(volume, ((0, 0), *((0, n) for n in missing), (0, 0)), mode="edge")
    x, y, z = ((n + m) // factor for n, m in zip(shape, missing, strict=True))
    return volume.reshape(batch, x, factor, y, factor, z, factor, channels).mean((2, 4, 6))


def pool_known(volume: Volume, weight: Weight, factor: int) -> tuple[Features, Features]:
    """Means over the known part of cubes with an edge of `factor` voxels, and that part; zero if nothing is known."""
    known = pool(weight, factor)
    return jnp.where(known > 0, pool(volume * weight, factor) / jnp.maximum(known, 1e-6), 0), known


def resize(displacement: Displacement, shape: Shape, ratio: float | int) -> Features:
    """The same displacement on a grid of `shape`, in its voxels, whose edges are 1 / `ratio` of the old ones."""
    for axis, size in enumerate(shape, start=1):
        displacement = _stretch(displacement, size, ratio, axis)
    return displacement * ratio


def _stretch(field: Array, size: int, ratio: float | int, axis: int) -> Array:
    last = field.shape[axis] - 1
    position = jnp.clip((jnp.arange(size) + 0.5) / ratio - 0.5, 0, last)
    lower = jnp.floor(position).astype(jnp.int32)
    upper = jnp.minimum(lower + 1, last)
    fraction = (position - lower).astype(field.dtype).reshape(*(size if a == axis else 1 for a in range(field.ndim)))
    return (1 - fraction) * jnp.take(field, lower, axis=axis) + fraction * jnp.take(field, upper, axis=axis)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def smooth(volume: Volume, times: int = 1) -> Volume:
    """Mean over the 3 x 3 x 3 voxels around each voxel, with the edge repeated; applied `times` times."""
    # This loop compiles three times as fast as unrolled code.
    return lax.fori_loop(0, times, lambda _, v: _mean_of_three(_mean_of_three(_mean_of_three(v, 1), 2), 3), volume)


# With the edge repeated, a mean of three is symmetric and so its own adjoint. XLA's gradient of padding is slow.
smooth.defvjp(lambda volume, times: (smooth(volume, times), None), lambda times, _, bar: (smooth(bar, times),))


def _mean_of_three(volume: Array, axis: int) -> Array:
    size = volume.shape[axis]
    if size == 1:
        return volume

    def part(start: int, stop: int) -> Array:
        return lax.slice_in_dim(volume, start, stop, axis=axis)

    first = 2 * part(0, 1) + part(1, 2)
    last = part(size - 2, size - 1) + 2 * part(size - 1, size)
    interior = part(0, size - 2) + part(1, size - 1) + part(2, size)
    return lax.concatenate([first, interior, last], axis) / 3


def extend(image: Volume, weight: Weight, *, voxels: int) -> Volume:
    """Extrapolates the image by `voxels` voxels beyond its known part (weight above 0), from means of known neighbours.

    Further out the image is zero. Unknown intensities never remain.
    """
    known = (weight > 0).astype(image.dtype)

    def grow(_: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        image, known = carry
        around = smooth(known)
        spread = jnp.where(around > 0, smooth(image) / jnp.maximum(around, 1e-6), 0)
        return jnp.where(known > 0, image, spread), (around > 0).astype(image.dtype)

    return lax.fori_loop(0, voxels, grow, (jnp.where(known > 0, image, 0), known))[0]
