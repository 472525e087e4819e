"""A network whose output is a stationary velocity field; the displacement is its exponential, which does not fold.

Dalca et al., MICCAI 2018. The penalty of the loss still applies to the displacement.
"""

import flax.linen as nn

from f3r_jax.ops.fields import exponential
from f3r_jax.ops.shapes import Displacement, Volume


class Diffeomorphic(nn.Module):
    """Uses the output of `network` as a velocity in voxels. The parameters are those of `network`."""

    network: nn.Module

    def setup(self) -> None:
        """Keeps the parameter names of `network`."""
        nn.share_scope(self, self.network)

    def __call__(self, moving: Volume, fixed: Volume) -> Displacement:
        """The displacement on the fixed grid, in voxels."""
        return exponential(self.network(moving, fixed))
