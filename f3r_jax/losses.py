"""The two terms of the training loss: mind_l1 + lambda * gradient_l2 (paper Eqs. 3 and 4)."""

from functools import partial

import jax
import jax.numpy as jnp

from f3r_jax.ops.fields import forward_differences
from f3r_jax.ops.mind import TINY, mind
from f3r_jax.shapes import Displacement, Scalar, Volume


@partial(jax.jit, static_argnames="preset")
def mind_l1(fixed: Volume, warped: Volume, *, preset: str, mask: Volume | None = None) -> Scalar:
    """Mean absolute difference of the MIND descriptors over voxels and channels (Eq. 4).

    With a mask, (b x y z 1) weights in [0, 1], it is the weighted mean over voxels, and 0 where no voxel has weight. A
    descriptor sees a few voxels beyond its own: those that close to unknown ones need a weight of 0 as well.
    """
    difference = jnp.abs(mind(fixed, preset=preset) - mind(warped, preset=preset))
    if mask is None:
        return jnp.mean(difference)
    return jnp.sum(mask * difference) / (jnp.maximum(jnp.sum(mask), TINY) * difference.shape[-1])


def gradient_l2(displacement: Displacement) -> Scalar:
    """Mean square of the forward differences of the field in voxels, averaged over the three axes, as VoxelMorph does.

    An axis of one voxel has no differences and counts as zero.
    """
    return sum(jnp.sum(d**2) / max(d.size, 1) for d in forward_differences(displacement)) / 3
