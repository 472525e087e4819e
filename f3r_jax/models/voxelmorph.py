"""VoxelMorph-1 and -2 (Balakrishnan et al., CVPR 2018), a U-Net: baselines in the paper's Table 2.

The layers and their channels are those of the published weights.
"""

import flax.linen as nn
import jax.numpy as jnp

from f3r_jax.models.layers import Conv, crop, leaky_relu, normal, pad_to_multiple, repeat
from f3r_jax.ops.shapes import Displacement, Features, Volume

SLOPE = 0.2
ENCODER = (16, 32, 32, 32)
FACTOR = 2 ** len(ENCODER)


class VoxelMorph(nn.Module):
    """Predicts the displacement that aligns a moving volume with a fixed one. Volumes may have any size, as in F3RNet.

    Attributes:
      decoder: channels of the decoder: at 1/16, 1/8, 1/4, twice at 1/2, then at full resolution.
      flow_init: standard deviation of the last kernel's initial values. If small, training starts near the identity.
      dtype: type of the features, "float32" or "bfloat16"; parameters and displacement are always float32.
    """

    decoder: tuple[int, ...]
    flow_init: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, moving: Volume, fixed: Volume) -> Displacement:
        """(b x y z 1) twice -> (b x y z 3) in voxels of the fixed grid."""
        images = jnp.concatenate([moving, fixed], axis=-1).astype(self.dtype)
        scales = [pad_to_multiple(images, FACTOR)]
        for n, features in enumerate(ENCODER):
            scales.append(self._conv(f"encoder_{n}", scales[-1], features, stride=2))
        x = scales.pop()
        for n, features in enumerate(self.decoder):
            if n in (1, 2, 3, 5):
                x = jnp.concatenate([repeat(x, 2), scales.pop()], axis=-1)
            x = self._conv(f"decoder_{n}", x, features)
        u = Conv(3, kernel_init=normal(self.flow_init), name="flow")(x.astype(jnp.float32))
        return crop(u, images)

    def _conv(self, name: str, x: Features, features: int, *, stride: int = 1) -> Features:
        return leaky_relu(Conv(features, stride=stride, name=name)(x), SLOPE)


DECODERS = {"voxelmorph1": (32, 32, 32, 32, 8, 8), "voxelmorph2": (32, 32, 32, 32, 32, 16, 16)}
