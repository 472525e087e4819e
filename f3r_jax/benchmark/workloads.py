"""Groups of benchmark jobs (`worker`) that are timed alternately. The first job of a group is that of f3r_jax."""

import importlib.util
import math
from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

from f3r_jax.models.f3rnet import VARIANTS

KERNELS = ((3, 3, 3), (3, 3, 1), (1, 1, 3))
PASSES = ("forward", "train")
BEST, FULL = "mrb", "wo_f3d"  # the paper's best variant, and the one without factorised convolutions
BASELINES = {"torch": "PyTorch", "voxelmorph": "VoxelMorph 0.3.4"}  # package: display name
MODES = {  # column of the memory table: options of the network
    "plain": {},
    "remat": {"remat": True},
    "bf16": {"dtype": "bfloat16"},
    "remat + bf16": {"remat": True, "dtype": "bfloat16"},
}

Shape = tuple[int, ...]
Group = list[dict]


class Machine(NamedTuple):
    """The device, and the installed packages to compare with."""

    device: str
    baselines: tuple[str, ...]  # installed packages of `BASELINES`

    @property
    def gpu(self) -> bool:
        """Whether the device has bfloat16 in hardware and torch.compile is worth its time."""
        return self.device != "cpu"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes to measure."""
        return ("float32", "bfloat16") if self.gpu else ("float32",)

    def others(self, *wanted: str) -> tuple[str, ...]:
        """The wanted packages that are installed."""
        return tuple(name for name in wanted if name in self.baselines)


def installed() -> tuple[str, ...]:
    """The installed packages of `BASELINES`."""
    return tuple(name for name in BASELINES if importlib.util.find_spec(name))


def left_out(wanted: Iterable[str], machine: Machine) -> list[str]:
    """One line for each wanted package that is not installed."""
    return [
        f"{BASELINES[name]} is not installed, so nothing is compared with it: "
        "make bench, or pip install 'f3r_jax[bench]'"
        for name in wanted
        if name not in machine.baselines
    ]


def group(task: dict, *others: str) -> Group:
    """The same task for f3r_jax and for the others."""
    return [{"who": who, **task} for who in ("jax", *others)]


def single(machine: Machine, *, what: list[str], variants: list[str], shape: Shape) -> list[Group]:
    """The groups for the flags `what`, `variant` and `shape`."""
    passes = [name for name in PASSES if name in what]
    if not passes and {"compile", "memory"} & set(what):
        passes = PASSES
    tasks = [{"what": name, "variant": variant, "shape": shape} for variant in variants for name in passes]
    groups = [group(task, *machine.others("torch")) for task in tasks]
    if "sweep" in what:
        groups += sweeps(machine, variants=variants, shape=shape)
    if "conv" in what:
        groups = groups + convolutions(machine, shape=shape)
    return groups


def networks(machine: Machine, *, shape: Shape) -> list[Group]:
    """f3r_jax against the same networks in PyTorch and against the package `voxelmorph`; on a GPU also in bfloat16."""
    modes = ("plain", "bf16") if machine.gpu else ("plain",)
    tasks = [
        {"what": what, "variant": variant, "shape": shape, **MODES[mode]}
        for variant, mode, what in product((BEST, FULL), modes, PASSES)
    ]
    groups = [group(task, *machine.others("torch")) for task in tasks]
    tasks = [
        {"what": what, "variant": variant, "shape": shape, **MODES[mode]}
        for variant, mode, what in product((BEST, "voxelmorph2"), modes, PASSES)
    ]
    return groups + [group(task, other) for task in tasks for other in machine.others("voxelmorph")]


def scaling(machine: Machine, *, edges: Iterable[int]) -> list[Group]:
    """The best variant on cubes. Each subject runs alone, because two might not fit into memory at once."""
    return [
        [{"who": who, "what": what, "variant": BEST, "shape": (edge,) * 3}]
        for edge in edges
        for what in PASSES
        for who in ("jax", *machine.others("torch"))
    ]


def memory(machine: Machine, *, shapes: Iterable[Shape]) -> list[Group]:
    """All variants and modes; on a CPU without bfloat16, and with remat only for two variants."""
    variants = (BEST, FULL, *(name for name in VARIANTS if name not in (BEST, FULL)))
    return [
        group({"what": what, "variant": variant, "shape": shape, **MODES[mode]})
        for variant, shape, what, mode in product(variants, sorted(shapes, key=math.prod), PASSES, MODES)
        if machine.gpu or mode == "plain" or (mode == "remat" and variant in (BEST, FULL))
    ]


def sweeps(_: Machine, *, shape: Shape, variants: Iterable[str] = (BEST, FULL)) -> list[Group]:
    """Train steps of three lambdas together, against one after another."""
    return [group({"what": "sweep", "variant": variant, "shape": shape}, "alone") for variant in variants]


def convolutions(machine: Machine, *, shape: Shape) -> list[Group]:
    """Convolutions of f3r_jax against those of XLA and PyTorch, at full and at half size."""
    half = tuple(max(1, size // 2) for size in shape)
    return [
        group({"what": what, "kernel": kernel, "channels": channels, "shape": size}, "xla", *machine.others("torch"))
        for channels, size in ((16, shape), (32, half))
        for kernel in KERNELS
        for what in ("conv", "conv_gradient")
    ]
