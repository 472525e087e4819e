"""The same F3RNet and train step in PyTorch: a baseline for the benchmark and an independent reference for tests.

It uses none of the JAX code of this package. Tensors are (b c x y z) in the channels-last memory format, which is
faster on a CPU. Displacements are in voxels, components in axis order, as everywhere in the package. Section numbers
are those of the paper.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

FULL, SCALED = 16, 32  # channels of the full-resolution and of the multi-scale stream, Section 2.1
SLOPE = 0.2
LEVELS = 4  # the lowest resolution is 1/2^4
CHANNELS_LAST = torch.channels_last_3d


class F3D(NamedTuple):
    """A row of Table 1: the parts of the network with factorised convolutions, and the number of extra MRBs."""

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
    """Maps (moving, fixed), each (b 1 x y z), to the displacement (b 3 x y z) in voxels."""

    def __init__(self, variant: str):
        super().__init__()
        f3d = VARIANTS[variant]
        self.stem = conv(2, FULL, factorised=f3d.full)
        self.early = nn.ModuleList(full_block(factorised=f3d.full) for _ in range(3))
        self.encoder = scales((1, 2, 3, 4), factorised=f3d.encoder)
        self.extra = nn.ModuleList(MultiScaleBlock(LEVELS, factorised=True) for _ in range(f3d.extra_mrbs))
        self.decoder = nn.ModuleDict(
            {str(level): MultiScaleBlock(level, factorised=f3d.decoder) for level in (3, 2, 1)}
        )
        self.late = nn.ModuleList(full_block(factorised=f3d.full) for _ in range(3))
        self.reduce = conv(FULL, FULL, factorised=f3d.full)
        self.flow = Conv(FULL, 3, (3, 3, 3))
        nn.init.normal_(self.flow.weight, std=1e-5)
        nn.init.constant_(self.flow.get_parameter("bias"), 0.0)
        self.to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]  # PyTorch's stubs lack it

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Pads the upper ends with edge values to a multiple of 2^4, and crops the field to the input size."""
        low = torch.cat([moving, fixed], dim=1)
        x, y, z = shape = low.shape[2:]
        if any(size % 2**LEVELS for size in shape):
            low = F.pad(low, [n for size in reversed(shape) for n in (0, -size % 2**LEVELS)], mode="replicate")
        low = act(self.stem(low.contiguous(memory_format=CHANNELS_LAST)))
        for block in self.early:
            low = block(low)
        low = self.multi_scale(low)
        for block in self.late:
            low = block(low)
        return self.flow(act(self.reduce(low)))[:, :, :x, :y, :z]

    def multi_scale(self, low: Tensor) -> Tensor:
        """The full-resolution features with the residuals of all MRBs added in turn, Section 2.3."""
        high: Tensor | None = None
        skips: dict[str, Tensor] = {}
        for level, block in self.encoder.items():
            low, high = block(low, high if high is None else pool(high, 2))
            skips[level] = high
        assert high is not None
        for block in self.extra:
            low, high = block(low, high)
        for level, block in self.decoder.items():
            low, high = block(low, upsample(high, 2) + skips[level])
        return low


class ResidualBlock(nn.Module):
    """z + R(z), where R is two convolutions, each followed by the activation, Section 2.2."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, z: Tensor) -> Tensor:
        """Maps (b c x y z) to the same shape."""
        return z + act(self.second(act(self.first(z))))


class MultiScaleBlock(nn.Module):
    """MRB at 1/2^level: takes and returns low (b 16 x y z) and high (b 32 x/2^level y/2^level z/2^level)."""

    def __init__(self, level: int, *, first: bool = False, factorised: bool):
        super().__init__()
        self.level = level
        self.conv = conv(FULL if first else FULL + SCALED, SCALED, factorised=factorised)
        kernels = ((3, 3, 1), (1, 1, 3)) if factorised else ((3, 3, 3), (3, 3, 3))
        self.block = ResidualBlock(*(Conv(SCALED, SCALED, kernel) for kernel in kernels))
        self.bottleneck = Conv(SCALED, FULL, (1, 1, 1))

    def forward(self, low: Tensor, high: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first MRB of the network has no `high`."""
        pooled = pool(low, 2**self.level)
        merged = pooled if high is None else torch.cat([pooled, high], dim=1)
        high = self.block(act(self.conv(merged)))
        return low + upsample(self.bottleneck(high), 2**self.level), high


class Conv(nn.Conv3d):
    """A convolution that preserves the size."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int]):
        x, y, z = kernel
        super().__init__(inputs, outputs, kernel, padding=(x // 2, y // 2, z // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b i x y z) to (b o x y z)."""
        # PyTorch returns small volumes in channels-first format, and later sums with them would keep that format.
        return super().forward(x).contiguous(memory_format=CHANNELS_LAST)


def conv(inputs: int, outputs: int, *, factorised: bool) -> nn.Module:
    """A 3x3x3 convolution, or its factors 3x3x1 and 1x1x3 without an activation between them, Section 2.4."""
    if not factorised:
        return Conv(inputs, outputs, (3, 3, 3))
    middle = min(inputs, outputs)
    factors = {"plane": Conv(inputs, middle, (3, 3, 1)), "line": Conv(middle, outputs, (1, 1, 3))}
    return nn.Sequential(OrderedDict(factors))


def full_block(*, factorised: bool) -> ResidualBlock:
    """A residual block of the full-resolution stream."""
    return ResidualBlock(*(conv(FULL, FULL, factorised=factorised) for _ in range(2)))


def scales(levels: tuple[int, ...], *, factorised: bool) -> nn.ModuleDict:
    """MRBs by level. If the first level is 1, its MRB is the first of the network."""
    return nn.ModuleDict({str(n): MultiScaleBlock(n, first=levels[0] == n == 1, factorised=factorised) for n in levels})


def act(x: Tensor) -> Tensor:
    """LeakyReLU in place, since its gradient only needs the output."""
    return F.leaky_relu_(x, SLOPE)


def pool(x: Tensor, factor: int) -> Tensor:
    """Average over cubes with an edge of `factor` voxels."""
    # avg_pool3d copies to channels first, which takes ten times as long.
    b, c, nx, ny, nz = x.shape
    slices = F.avg_pool2d(x.movedim(1, -1).reshape(b * nx, ny, nz, c).movedim(-1, 1), factor)
    slabs = slices.movedim(1, -1).reshape(b, nx // factor, factor, ny // factor, nz // factor, c)
    return slabs.mean(2).movedim(-1, 1)


def upsample(x: Tensor, factor: int) -> Tensor:
    """Trilinear upsampling with half-pixel centres."""
    return F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)


def state_from_flax(params: Mapping[str, Any]) -> dict[str, Tensor]:
    """Converts the parameters of the Flax network, or their gradients, to a state dict; the names are the same."""
    state: dict[str, Tensor] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            state |= {f"{name.replace('_', '.')}.{rest}": tensor for rest, tensor in state_from_flax(value).items()}
        elif name == "kernel":
            state["weight"] = torch.from_numpy(np.array(value).transpose(4, 3, 0, 1, 2).copy())
        else:
            state[name] = torch.from_numpy(np.array(value))
    return state


def load_flax(model: F3RNet, params: Mapping[str, Any]) -> None:
    """Copies the parameters of the Flax network of the same variant; raises if any is missing or unexpected."""
    model.load_state_dict(state_from_flax(params))


def warp(moving: Tensor, displacement: Tensor) -> Tensor:
    """Trilinear values of `moving` (b c x y z) at p + displacement(p); edge values outside the volume."""
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
    neighbours = []
    for offset in offsets:
        starts = [distance * (1 + o) for o in offset]
        x, y, z = (slice(start, start + size) for start, size in zip(starts, shape, strict=True))
        neighbours.append(padded[..., x, y, z])
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
    x, y, z = (torch.diff(displacement, dim=axis).square().mean() for axis in (2, 3, 4))
    return (x + y + z) / 3


def train_step(model: nn.Module, *, lam: float, learning_rate: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a function of (moving, fixed) that does one Adam step on the paper's loss and returns the loss."""
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
