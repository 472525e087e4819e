"""Maps of tissue indices: anatomies, generated on the host, and random shapes, generated on the device.

Letters: x y z voxels, c candidate tissues.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, UInt8
from numpy.random import default_rng

from f3r_jax.data.phantom import generate
from f3r_jax.data.phantom.anatomy import draw_anatomy
from f3r_jax.data.phantom.appearance import TISSUES
from f3r_jax.ops.random_fields import knots_for, spline_matrix

EDGE_MM = 1e-5  # width of edges; almost 0, because a blend of two tissue indices would be a third tissue
SHAPE_SIZES_MM = (75.0, 32.0)  # between the knots of the random fields of the shapes


def tissue_map(
    seed: int, index: int, *, shape: Sequence[int], spacing: Sequence[float] | np.ndarray
) -> UInt8[np.ndarray, "x y z"]:
    """The anatomy `index` of the set `seed` as indices of `TISSUES`; `spacing` in mm.

    Anatomies of different seeds are independent, and independent of the phantom's cases of the same seed.
    """
    # The phantom's cases use the streams 0 to 3 of (seed, index).
    anatomy = draw_anatomy(default_rng([seed, index, 4]))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    values = {name: float(number) for number, name in enumerate(TISSUES)}
    painted, _ = generate.image_of(anatomy, axes, None, values, EDGE_MM)
    return np.rint(painted).astype(np.uint8)


@partial(jax.jit, static_argnames=("shape", "spacing"))
def shape_map(key: Array, *, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> UInt8[Array, "x y z"]:
    """Random shapes with the indices of all tissues; a voxel has the index of the largest of as many random fields.

    The fields are smooth, as in SynthMorph (Hoffmann et al., 2022). Large and small shapes are mixed at random.
    """
    keys = jax.random.split(key, 1 + len(SHAPE_SIZES_MM))
    share = jax.random.uniform(keys[0])
    extent = max(n * s for n, s in zip(shape, spacing, strict=True))
    parts, matrices = [], []
    for k, size, weight in zip(keys[1:], SHAPE_SIZES_MM, (share, 1 - share), strict=True):
        nx, ny, nz = knots_for(shape, max(1, round(extent / size)))
        knots = weight * jax.random.normal(k, (nx, len(TISSUES), ny, nz))
        along_x, along_y, along_z = map(spline_matrix, shape, (nx, ny, nz))
        parts.append(jnp.einsum("acbd,yb,zd->acyz", knots, along_y, along_z))
        matrices.append(along_x)
    # A single product sums both scales, so that the many fields are written only once.
    fields = jnp.einsum("xa,acyz->xcyz", np.concatenate(matrices, axis=1), jnp.concatenate(parts))
    return _largest(fields)


def _largest(fields: Float[Array, "x c y z"]) -> UInt8[Array, "x y z"]:
    """The index of the largest field, by comparisons in a loop; `argmax` is several times slower on a CPU."""
    best, index = fields[:, 0], jnp.zeros(fields[:, 0].shape, jnp.uint8)
    for number in range(1, fields.shape[1]):
        better = fields[:, number] > best
        best, index = jnp.where(better, fields[:, number], best), jnp.where(better, jnp.uint8(number), index)
    return index
