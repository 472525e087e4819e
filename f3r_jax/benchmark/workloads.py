"""Workloads of the benchmark: jobs that are timed alternately. The first job of a workload is that of f3r_jax."""

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from f3r_jax.benchmark.job import Job
from f3r_jax.models.f3rnet import VARIANTS

KERNELS = ((3, 3, 3), (3, 3, 1), (1, 1, 3))
PASSES = ("forward", "train")
JAX = "jax"  # f3r_jax as a subject
BEST, FULL = "mrb", "wo_f3d"  # the paper's best variant, and the one without factorised convolutions
BASELINES = {"torch": "PyTorch", "voxelmorph": "VoxelMorph 0.3.4"}  # package: display name

Shape = tuple[int, ...]
Workload = tuple[Job, ...]


class Mode(NamedTuple):
    """Options of a network, as in its `Job`."""

    remat: bool = False
    dtype: str = "float32"


MODES = {  # by the column of the memory table
    "plain": Mode(),
    "remat": Mode(remat=True),
    "bf16": Mode(dtype="bfloat16"),
    "remat + bf16": Mode(remat=True, dtype="bfloat16"),
}


class Target(NamedTuple):
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


def left_out(wanted: Iterable[str], target: Target) -> list[str]:
    """One line for each wanted package that is not installed."""
    return [
        f"{BASELINES[name]} is not installed, so nothing is compared with it: "
        "make bench, or pip install 'f3r_jax[bench]'"
        for name in wanted
        if name not in target.baselines
    ]


def workload(job: Job, *others: str) -> Workload:
    """The same job for f3r_jax and for the others."""
    return (job, *(replace(job, who=who) for who in others))


def single(target: Target, *, what: list[str], variants: list[str], shape: Shape) -> list[Workload]:
    """The workloads for the flags `what`, `variant` and `shape`."""
    passes = [name for name in PASSES if name in what]
    if not passes and {"compile", "memory"} & set(what):
        passes = list(PASSES)
    jobs = [Job(JAX, name, variant=variant, shape=shape) for variant in variants for name in passes]
    found = [workload(job, *target.others("torch")) for job in jobs]
    if "sweep" in what:
        found += sweeps(target, variants=variants, shape=shape)
    if "conv" in what:
        found += convolutions(target, shape=shape)
    return found


def networks(target: Target, *, shape: Shape) -> list[Workload]:
    """f3r_jax against the same networks in PyTorch and against the package `voxelmorph`; on a GPU also in bfloat16."""
    modes = ("plain", "bf16") if target.gpu else ("plain",)
    passes = [(mode, what) for mode in modes for what in PASSES]

    def jobs(*variants: str) -> list[Job]:
        each = product(variants, passes)
        return [Job(JAX, what, variant=variant, shape=shape, **MODES[mode]._asdict()) for variant, (mode, what) in each]

    found = [workload(job, *target.others("torch")) for job in jobs(BEST, FULL)]
    return found + [workload(job, other) for job in jobs(BEST, "voxelmorph2") for other in target.others("voxelmorph")]


def scaling(target: Target, *, edges: Iterable[int]) -> list[Workload]:
    """The best variant on cubes. Each subject runs alone, because two might not fit into memory at once."""
    return [
        (Job(who, what, variant=BEST, shape=(edge,) * 3),)
        for edge in edges
        for what in PASSES
        for who in (JAX, *target.others("torch"))
    ]


def memory(target: Target, *, shapes: Iterable[Shape]) -> list[Workload]:
    """All variants and modes; on a CPU without bfloat16, and with remat only for two variants."""
    variants = (BEST, FULL, *(name for name in VARIANTS if name not in (BEST, FULL)))
    return [
        workload(Job(JAX, what, variant=variant, shape=shape, **MODES[mode]._asdict()))
        for variant, shape, what, mode in product(variants, sorted(shapes, key=math.prod), PASSES, MODES)
        if target.gpu or mode == "plain" or (mode == "remat" and variant in (BEST, FULL))
    ]


def sweeps(_: Target, *, shape: Shape, variants: Iterable[str] = (BEST, FULL)) -> list[Workload]:
    """Train steps of three lambdas together, against one after another."""
    return [workload(Job(JAX, "sweep", variant=variant, shape=shape), "alone") for variant in variants]


def convolutions(target: Target, *, shape: Shape) -> list[Workload]:
    """Convolutions of f3r_jax against those of XLA and PyTorch, at full and at half size."""
    half = tuple(max(1, size // 2) for size in shape)
    return [
        workload(Job(JAX, what, kernel=kernel, channels=channels, shape=size), "xla", *target.others("torch"))
        for channels, size in ((16, shape), (32, half))
        for kernel in KERNELS
        for what in ("conv", "conv_gradient")
    ]
