"""VoxelMorph of its authors for PyTorch, the package `voxelmorph` 0.3: a baseline for the benchmark.

This is not the VoxelMorph-2 of the 2018 paper (`models/voxelmorph.py`, 300,547 parameters, strided convolutions). The
package's `VxmPairwise` is a U-Net with max-pools, trilinear upsampling and 16 channels at each of six scales, with
105,017 parameters.

All settings are the package's defaults, including channels-first tensors, with one exception: no velocity is
integrated, because the other networks of the benchmark also predict displacements. Training uses
`torch_f3rnet.train_step`, so only the network differs. Tensors are (b c x y z). Displacements are in voxels and
sample the moving volume at p + u(p), components in axis order.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

FACTOR = 2**5  # the lowest resolution is 1/32; the package only takes multiples of this


def network(shape: Sequence[int]) -> nn.Module:
    """A network from (moving, fixed), each (b 1 x y z) of this shape, to the displacement (b 3 x y z) in voxels."""
    from voxelmorph.nn.models import VxmPairwise  # the import takes seconds

    return Padded(VxmPairwise(ndim=3, source_channels=1, target_channels=1, integration_steps=0), shape)


class Padded(nn.Module):
    """Pads the upper ends with edge values to multiples of 2^5, and crops the field to the input size."""

    def __init__(self, pairwise: nn.Module, shape: Sequence[int]):
        super().__init__()
        self.pairwise = pairwise
        self.shape = tuple(shape)
        self.ends = [n for size in reversed(self.shape) for n in (0, -size % FACTOR)]

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Maps two volumes (b 1 x y z) to the displacement (b 3 x y z)."""
        if any(self.ends):
            moving, fixed = (F.pad(volume, self.ends, mode="replicate") for volume in (moving, fixed))
        x, y, z = self.shape
        return self.pairwise(moving, fixed)[:, :, :x, :y, :z]
