"""The same F3RNet and training step in PyTorch: an opponent for the benchmark, and an independent reference for tests.

Nothing of this package's JAX code is used here. Tensors are (b c x y z) in the channels-last memory format, which is
the faster one on a CPU. Displacements are in voxels, components in axis order, as everywhere in the package.
Section numbers are those of the paper.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FULL, SCALED = 16, 32  # channels of the full-resolution and of the multi-scale stream, Section 2.1
SLOPE = 0.2
LEVELS = 4  # the lowest resolution is 1/2^4
CHANNELS_LAST = torch.channels_last_3d


class F3D(NamedTuple):
    """Which parts of the network factorise their convolutions, and the extra MRBs: a row of Table 1."""

    full: bool = False
    encoder: bool = False
    decoder: bool = False
    extra_mrbs: int = 0


VARIANTS = {
    "wo_f3d": F3D(),
    "w_f3d": F3D(full=True, encoder=True, decoder=True),
    "enc": F3D(encoder=True),
    "dec": F3D(decoder=True),
    "fr": F3D(full=True),
    "ms": F3D(encoder=True, decoder=True),
    "mrb": F3D(full=True, encoder=True, decoder=True, extra_mrbs=2),
}


class F3RNet(nn.Module):
    """(moving, fixed), each (b 1 x y z), to the displacement (b 3 x y z) in voxels."""

    def __init__(self, variant: str):
        super().__init__()
        f3d = VARIANTS[variant]
        self.stem = conv(2, FULL, factorised=f3d.full)
        self.before = nn.ModuleList(full_block(factorised=f3d.full) for _ in range(3))
        levels = [1, 2, 3, 4] + [LEVELS] * f3d.extra_mrbs
        self.encoder = nn.ModuleList(
            MultiScaleBlock(level, first=n == 0, factorised=f3d.encoder or n >= LEVELS)
            for n, level in enumerate(levels)
        )
        self.decoder = nn.ModuleList(MultiScaleBlock(level, factorised=f3d.decoder) for level in (3, 2, 1))
        self.after = nn.ModuleList(full_block(factorised=f3d.full) for _ in range(3))
        self.fuse = conv(FULL, FULL, factorised=f3d.full)
        self.flow = conv(FULL, 3, factorised=False)
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.zeros_(self.flow.bias)
        self.to(memory_format=CHANNELS_LAST)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Pads to a multiple of 2^4 at the far ends, and crops the field back."""
        low = torch.cat([moving, fixed], dim=1)
        x, y, z = shape = low.shape[2:]
        extra = [-size % 2**LEVELS for size in reversed(shape)]
        low = F.pad(low, [n for size in extra for n in (0, size)]).contiguous(memory_format=CHANNELS_LAST)
        low = act(self.stem(low))
        for block in self.before:
            low = block(low)
        low = self.multi_scale(low)
        for block in self.after:
            low = block(low)
        return self.flow(act(self.fuse(low)))[:, :, :x, :y, :z]

    def multi_scale(self, low: Tensor) -> Tensor:
        """The full-resolution features with the residuals of all MRBs added in turn, Section 2.3."""
        high, skips = None, {}
        for block in self.encoder:
            if high is not None and high.shape[2] != low.shape[2] >> block.level:
                high = F.avg_pool3d(high, 2)
            low, high = block(low, high)
            skips[block.level] = high
        for block in self.decoder:
            low, high = block(low, upsample(high, 2) + skips[block.level])
        return low


class ResidualBlock(nn.Module):
    """z + R(z), where R is two convolutions, each followed by the activation, Section 2.2."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, z: Tensor) -> Tensor:
        """(b c x y z) to the same."""
        return z + act(self.second(act(self.first(z))))


class MultiScaleBlock(nn.Module):
    """MRB at 1/2^level: takes and returns low (b 16 x y z) and high (b 32 x/2^level y/2^level z/2^level)."""

    def __init__(self, level: int, *, first: bool = False, factorised: bool):
        super().__init__()
        self.level = level
        self.merge = conv(FULL if first else FULL + SCALED, SCALED, factorised=factorised)
        kernels = ((3, 3, 1), (1, 1, 3)) if factorised else ((3, 3, 3), (3, 3, 3))
        self.block = ResidualBlock(*(plain_conv(SCALED, SCALED, kernel) for kernel in kernels))
        self.squeeze = plain_conv(SCALED, FULL, (1, 1, 1))

    def forward(self, low: Tensor, high: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first MRB of the network has no `high`."""
        pooled = F.avg_pool3d(low, 2**self.level)
        merged = pooled if high is None else torch.cat([pooled, high], dim=1)
        high = self.block(act(self.merge(merged)))
        return low + upsample(self.squeeze(high), 2**self.level), high


def plain_conv(inputs: int, outputs: int, kernel: tuple[int, int, int]) -> nn.Conv3d:
    """A convolution that keeps the size."""
    return nn.Conv3d(inputs, outputs, kernel, padding=tuple(size // 2 for size in kernel))


def conv(inputs: int, outputs: int, *, factorised: bool) -> nn.Module:
    """3x3x3, or its factors 3x3x1 and 1x1x3 with nothing between them, Section 2.4."""
    if not factorised:
        return plain_conv(inputs, outputs, (3, 3, 3))
    middle = min(inputs, outputs)
    return nn.Sequential(plain_conv(inputs, middle, (3, 3, 1)), plain_conv(middle, outputs, (1, 1, 3)))


def full_block(*, factorised: bool) -> ResidualBlock:
    """RB of the full-resolution stream."""
    return ResidualBlock(*(conv(FULL, FULL, factorised=factorised) for _ in range(2)))


def act(x: Tensor) -> Tensor:
    """LeakyReLU, in place: its gradient needs the output only."""
    return F.leaky_relu_(x, SLOPE)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Trilinear, with half-pixel centres."""
    # PyTorch's convolution of small volumes leaves channels first, and every later sum with the other format is slow.
    x = x.contiguous(memory_format=CHANNELS_LAST)
    return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)


def warp(moving: Tensor, displacement: Tensor) -> Tensor:
    """`moving` (b c x y z) at p + displacement(p), trilinearly; outside, the edge value."""
    shape = displacement.shape[2:]
    axes = [torch.arange(size, dtype=displacement.dtype, device=displacement.device) for size in shape]
    position = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    scale = 2 / (torch.tensor(shape, dtype=position.dtype, device=position.device) - 1)
    grid = (position.movedim(1, -1) * scale - 1).flip(-1)
    return F.grid_sample(moving, grid, mode="bilinear", padding_mode="border", align_corners=True)


def mind_ssc(image: Tensor, *, distance: int = 2, radius: int = 2) -> Tensor:
    """MIND-SSC of (b 1 x y z) as (b 12 x y z), Heinrich et al., MICCAI 2013."""
    shape = image.shape[2:]
    padded = F.pad(image, [distance] * 6, mode="replicate")
    offsets = [[sign if axis == n else 0 for n in range(3)] for axis in range(3) for sign in (-1, 1)]
    neighbours = [
        padded[
            (
                ...,
                *(slice(distance * (1 + o), distance * (1 + o) + size) for o, size in zip(offset, shape, strict=True)),
            )
        ]
        for offset in offsets
    ]
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6) if i // 2 != j // 2]
    squares = torch.cat([(neighbours[i] - neighbours[j]).square() for i, j in pairs], dim=1)
    patches = F.pad(squares, [radius] * 6, mode="replicate")
    for axis in range(3):
        patches = F.avg_pool3d(patches, [2 * radius + 1 if n == axis else 1 for n in range(3)], stride=1)
    patches = patches - patches.amin(dim=1, keepdim=True)
    variance = patches.mean(dim=1, keepdim=True)
    mean = variance.mean().detach()
    return torch.exp(-patches / variance.clamp(1e-3 * mean, 1e3 * mean))


def gradient_l2(displacement: Tensor) -> Tensor:
    """Mean square of the forward differences, averaged over the three axes, Eq. 3."""
    return sum(torch.diff(displacement, dim=axis).square().mean() for axis in (2, 3, 4)) / 3


def train_step(model: F3RNet, *, lam: float, learning_rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of (moving, fixed) that takes one step of Adam on the paper's loss and returns the loss."""
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)

    def step(moving: Tensor, fixed: Tensor) -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            target = mind_ssc(fixed)
        displacement = model(moving, fixed)
        loss = (mind_ssc(warp(moving, displacement)) - target).abs().mean() + lam * gradient_l2(displacement)
        loss.backward()
        optimiser.step()
        return loss.detach()

    return step
