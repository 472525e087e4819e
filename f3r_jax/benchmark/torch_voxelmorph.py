"""VoxelMorph as its authors ship it for PyTorch, the package `voxelmorph` 0.3: an opponent for the benchmark.

It isn't the VoxelMorph-2 of the 2018 paper (`models/voxelmorph.py`, 300,547 parameters, strided convolutions): the
package's `VxmPairwise` is a U-Net with max-pools, trilinear upsampling and 16 channels at each of six scales, 105,017
parameters. All is left at the package's defaults, channels-first tensors included, but that no velocity is integrated:
the other networks of the benchmark predict displacements too. Training is `torch_f3rnet.train_step`, so that the
network alone differs. Tensors are (b c x y z), displacements in voxels, pull, components in axis order.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from f3r_jax.benchmark.torch_f3rnet import train_step

__all__ = ["network", "train_step"]

FACTOR = 2**5  # the lowest resolution is 1/32; the package takes no other sizes than multiples


def network(shape: Sequence[int]) -> nn.Module:
    """(moving, fixed), each (b 1 x y z) of this shape, to the displacement (b 3 x y z) in voxels."""
    from voxelmorph.nn.models import VxmPairwise  # takes seconds

    return Padded(VxmPairwise(ndim=3, source_channels=1, target_channels=1, integration_steps=0), shape)


class Padded(nn.Module):
    """Pads the volumes to multiples of 2^5 with edge values at the far ends, and crops the field back."""

    def __init__(self, pairwise: nn.Module, shape: Sequence[int]):
        super().__init__()
        self.pairwise = pairwise
        self.shape = tuple(shape)
        self.ends = [n for size in reversed(self.shape) for n in (0, -size % FACTOR)]

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """(b 1 x y z) twice to (b 3 x y z)."""
        if any(self.ends):
            moving, fixed = (F.pad(volume, self.ends, mode="replicate") for volume in (moving, fixed))
        x, y, z = self.shape
        return self.pairwise(moving, fixed)[:, :, :x, :y, :z]
