"""F3RNet, the full-resolution residual registration network (Xu et al., Sec. 2 and Fig. 1).

Letters: l features of the full-resolution stream (16 channels), h features of the multi-scale residual stream (32
channels), k scale: 1/2^k of the input's resolution. The paper does not specify all layer and channel counts. With the
counts chosen here, the numbers of parameters agree with Table 2 within 0.8 %.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from f3r_jax.models.layers import (
    Conv,
    ResidualBlock,
    convolution,
    crop,
    leaky_relu,
    normal,
    pad_to_multiple,
    pool,
    resample,
    upsample,
    upsample_sum,
)
from f3r_jax.ops.shapes import Displacement, Features, Volume

COARSEST = 4  # the lowest resolution is 1/16, the paper's N = 4


class Factorisation(NamedTuple):
    """A row of Table 1: the parts that use F3D, and the number of MRBs added at the lowest resolution."""

    label: str
    full: bool = False
    encoder: bool = False
    decoder: bool = False
    extra_mrbs: int = 0


VARIANTS = {
    "wo_f3d": Factorisation("F3RNet-w/o F3D"),
    "w_f3d": Factorisation("F3RNet-w/ F3D", full=True, encoder=True, decoder=True),
    "enc": Factorisation("F3RNet-Enc", encoder=True),
    "dec": Factorisation("F3RNet-Dec", decoder=True),
    "fr": Factorisation("F3RNet-FR", full=True),
    "ms": Factorisation("F3RNet-MS", encoder=True, decoder=True),
    "mrb": Factorisation("F3RNet-MRB", full=True, encoder=True, decoder=True, extra_mrbs=2),
}


class MultiScaleResidualBlock(nn.Module):
    """MRB (Eq. 2, Fig. 1c) on its own grid: (pooled l, h) -> (residual to upsample and add to l, new h)."""

    factorised: bool
    slope: float
    features: int = 32

    @nn.compact
    def __call__(self, low: Features, h: Features | None) -> tuple[Features, Features]:
        joined = low if h is None else jnp.concatenate([low, h], axis=-1)
        h = leaky_relu(convolution(self.features, factorised=self.factorised, name="conv")(joined), self.slope)
        h = ResidualBlock("cascade" if self.factorised else "full", self.slope, name="block")(h)
        return Conv(low.shape[-1], (1, 1, 1), name="bottleneck")(h), h


class FullResolutionStream:
    """The full-resolution features l, accumulated lazily.

    The MRBs only read average-pooled l. Upsampling and pooling are linear, so pooled l is the sum of the pooled initial
    l and the pooled residuals, all computed on coarse grids. At full resolution, l is read once and written once
    instead of three times per MRB.
    """

    def __init__(self, l: Features) -> None:
        self._pooled = [l]  # the initial l, pooled, by scale
        for _ in range(COARSEST):
            self._pooled.append(pool(self._pooled[-1], 2))
        self._residuals: dict[int, Features] = {}

    def pooled(self, scale: int) -> Features:
        """The means of l over cubes with an edge of 2^scale voxels."""
        resampled = (resample(part, 2**k, 2**scale) for k, part in self._residuals.items())
        return sum(resampled, start=self._pooled[scale])

    def add(self, residual: Features, scale: int) -> None:
        """Adds a residual at 1/2^scale of the full resolution."""
        self._residuals[scale] = self._residuals[scale] + residual if scale in self._residuals else residual

    def whole(self) -> Features:
        """l at full resolution, with all residuals."""
        return self._pooled[0] + upsample_sum({2**k: part for k, part in self._residuals.items()})


class F3RNet(nn.Module):
    """Predicts the displacement that aligns a moving volume with a fixed one.

    Volumes may have any size: they are padded with their edge values to a multiple of 16, and the displacement is
    cropped. `apply(..., mutable="features")` also returns the features l and h after every block, as in Fig. 6. Without
    it they cost nothing.

    Attributes:
      factorisation: the row of Table 1.
      features: channels of the full-resolution stream.
      slope: slope of LeakyReLU for negative values. The paper gives no value; 0.2 is that of VoxelMorph.
      flow_init: standard deviation of the last kernel's initial values. If small, training starts near the identity.
      dtype: type of the features, "float32" or "bfloat16"; parameters and displacement are always float32.
      remat: whether the gradient recomputes the features within each block instead of storing them.
    """

    factorisation: Factorisation
    features: int = 16
    slope: float = 0.2
    flow_init: float = 1e-5
    dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(self, moving: Volume, fixed: Volume) -> Displacement:
        """(b x y z 1) twice -> (b x y z 3) in voxels of the fixed grid."""
        images = jnp.concatenate([moving, fixed], axis=-1).astype(self.dtype)
        l = self._conv("stem", pad_to_multiple(images, 2**COARSEST))
        l = self._blocks("early", l)
        l = self._multi_scale_stream(l)
        l = self._blocks("late", l)
        l = self._conv("reduce", l)
        u = Conv(3, kernel_init=normal(self.flow_init), name="flow")(l.astype(jnp.float32))
        return crop(u, images)

    def _module(self, module: type[nn.Module]) -> type[nn.Module]:
        return nn.remat(module) if self.remat else module

    def _conv(self, name: str, x: Features) -> Features:
        return leaky_relu(convolution(self.features, factorised=self.factorisation.full, name=name)(x), self.slope)

    def _blocks(self, name: str, x: Features, count: int = 3) -> Features:
        form = "factorised" if self.factorisation.full else "full"
        for n in range(count):
            x = self._module(ResidualBlock)(form, self.slope, name=f"{name}_{n}")(x)
        return x

    def _multi_scale_stream(self, l: Features) -> Features:
        part, full = self.factorisation, FullResolutionStream(l)

        def block(name: str, scale: int, factorised: bool, h: Features | None) -> Features:
            mrb = self._module(MultiScaleResidualBlock)(factorised, self.slope, name=name)
            residual, h = mrb(full.pooled(scale), h)
            full.add(residual, scale)
            if self.is_mutable_collection("features"):
                self.sow("features", f"l_{name}", full.whole())
                self.sow("features", f"h_{name}", h)
            return h

        h = block("encoder_1", 1, part.encoder, None)
        skips = {1: h}
        for k in range(2, COARSEST + 1):
            h = skips[k] = block(f"encoder_{k}", k, part.encoder, pool(h, 2))
        for n in range(part.extra_mrbs):
            h = block(f"extra_{n}", COARSEST, True, h)
        for k in range(COARSEST - 1, 0, -1):
            h = block(f"decoder_{k}", k, part.decoder, upsample(h, 2) + skips[k])
        return full.whole()
