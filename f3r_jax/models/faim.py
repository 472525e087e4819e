"""FAIM (Kuang and Schmah, 2018): an Inception head followed by a short U-Net with additive skip connections.

Implemented as published, with 233,683 parameters. The F3RNet paper reports 0.217 M, which no published FAIM has. The
original loss of FAIM also penalises negative Jacobian determinants; here all networks are trained with the same loss.
"""

import flax.linen as nn
import jax.numpy as jnp

from f3r_jax.models.layers import Conv, crop, glorot, normal, pad_to_multiple
from f3r_jax.ops.conv import conv_transpose3d
from f3r_jax.ops.shapes import Displacement, Features, Volume

HEAD = (2, 5, 7, 11)  # edges of the parallel kernels
FACTOR = 4


class PReLU(nn.Module):
    """PReLU: x, or slope x where x is negative. Each channel has a trained slope, initially zero as in Keras."""

    @nn.compact
    def __call__(self, x: Features) -> Features:
        slope = self.param("slope", nn.initializers.zeros_init(), (x.shape[-1],)).astype(x.dtype)
        return jnp.maximum(x, 0) + slope * jnp.minimum(x, 0)


class ConvTranspose(nn.Module):
    """A transposed 3x3x3 convolution of stride 2 with bias. Like `Conv`, it computes in the type of its input."""

    features: int

    @nn.compact
    def __call__(self, x: Features) -> Features:
        shape = (3, 3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", glorot, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:])
        return conv_transpose3d(x, kernel.astype(x.dtype), bias.astype(x.dtype))


class FAIM(nn.Module):
    """Predicts the displacement that aligns a moving volume with a fixed one. Volumes may have any size, as in F3RNet.

    Attributes:
      features: channels of every layer but the last. Each kernel of the head has a quarter of them.
      flow_init: standard deviation of the last kernel's initial values. If small, training starts near the identity.
      dtype: type of the features, "float32" or "bfloat16"; parameters and displacement are always float32.
    """

    features: int = 32
    flow_init: float = 1e-5
    dtype: str = "float32"

    @nn.compact
    def __call__(self, moving: Volume, fixed: Volume) -> Displacement:
        """(b x y z 1) twice -> (b x y z 3) in voxels of the fixed grid."""
        images = jnp.concatenate([moving, fixed], axis=-1).astype(self.dtype)
        x = pad_to_multiple(images, FACTOR)
        branches = [Conv(self.features // len(HEAD), (k, k, k), name=f"head_{k}")(x) for k in HEAD]
        full = PReLU(name="head_prelu")(jnp.concatenate(branches, axis=-1))
        half = PReLU(name="down_0_prelu")(Conv(self.features, stride=2, name="down_0")(full))
        half = Conv(self.features, name="half")(half)
        x = PReLU(name="down_1_prelu")(Conv(self.features, stride=2, name="down_1")(half))
        x = x + Conv(self.features, (2, 2, 2), name="bottom")(x)
        for n, skip in enumerate((half, full)):
            x = ConvTranspose(self.features, name=f"up_{n}")(x)
            x = PReLU(name=f"merge_{n}_prelu")(Conv(self.features, name=f"merge_{n}")(x)) + skip
        u = Conv(3, kernel_init=normal(self.flow_init), name="flow")(x.astype(jnp.float32))
        return crop(u, images)
