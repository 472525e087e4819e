"""Smooth random fields on a voxel grid: cubic splines through normally distributed values at knots.

Letters: x y z voxels, c channels.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float
from scipy.interpolate import make_interp_spline

from f3r_jax.ops.shapes import Shape


def knots_for(shape: tuple[int, ...], intervals: int) -> Shape:
    """Number of knots along each axis: `intervals` + 1 along the longest axis, equally dense along the others."""
    x, y, z = (max(1, round(intervals * n / max(shape))) + 1 for n in shape)
    return x, y, z


def smooth_noise(
    key: Array, shape: tuple[int, ...], *, intervals: int, channels: int = 1
) -> Float[Array, "x y z {channels}"]:
    """A random field with zero mean and unit variance, smooth between knots.

    Args:
      key: a JAX random key.
      shape: three sizes of the grid.
      intervals: number of intervals between knots along the longest axis. The outermost knots are at the outermost
        voxels.
      channels: number of independent fields.
    """
    knots = knots_for(shape, intervals)
    field = jax.random.normal(key, (*knots, channels))
    for n, count in zip(shape, knots, strict=True):  # interpolates the first axis and puts it before the channels
        field = jnp.tensordot(field, jnp.asarray(spline_matrix(n, count)), axes=((0,), (1,)))
        field = jnp.moveaxis(field, -1, 2)
    return field


@lru_cache
def spline_matrix(n: int, knots: int) -> Float[np.ndarray, "{n} {knots}"]:
    """Matrix from values at evenly spaced knots to n voxels. Its rows have norm 1, which preserves unit variance."""
    weights = make_interp_spline(np.arange(knots), np.eye(knots), k=min(3, knots - 1))(np.linspace(0, knots - 1, n))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
