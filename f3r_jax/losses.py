"""The two terms of the training loss: mind_l1 + lambda * gradient_l2 (paper Eqs. 3 and 4)."""

from functools import partial

import jax
import jax.numpy as jnp

from f3r_jax.ops.fields import forward_differences
from f3r_jax.ops.mind import mind
from f3r_jax.shapes import Displacement, Scalar, Volume


@partial(jax.jit, static_argnames="preset")
def mind_l1(fixed: Volume, warped: Volume, *, preset: str) -> Scalar:
    """Mean absolute difference of the MIND descriptors over voxels and channels (Eq. 4)."""
    return jnp.mean(jnp.abs(mind(fixed, preset=preset) - mind(warped, preset=preset)))


def gradient_l2(displacement: Displacement) -> Scalar:
    """Mean square of the forward differences of the field in voxels, averaged over the three axes, as VoxelMorph does.

    An axis of one voxel has no differences and counts as zero.
    """
    return sum(jnp.sum(d**2) / max(d.size, 1) for d in forward_differences(displacement)) / 3
