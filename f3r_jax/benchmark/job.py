"""A benchmark job, and the time and memory that it takes in this process. Needs neither JAX nor PyTorch."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

MIB, GIB = 2**20, 2**30
LEARNING_RATE, LAM = 1e-5, 1.5  # Section 3.1; speed depends on neither
NO_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "allocate memory")  # messages of XLA, CUDA and PyTorch's allocator

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What one subject runs (`worker`). A field that a kind of job doesn't use has its default."""

    who: str
    what: str
    variant: str = ""  # of a network
    kernel: tuple[int, ...] = ()  # of a convolution, as `channels`
    channels: int = 0
    shape: tuple[int, ...] = ()  # x y z, voxels
    remat: bool = False
    dtype: str = "float32"

    def to_json(self) -> dict[str, Any]:
        """The fields without those at their defaults."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in values if value != field.default}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Job":
        """Reads what `to_json` returns; other entries are ignored."""
        known: dict[str, Any] = {field.name: found[field.name] for field in fields(cls) if field.name in found}
        return cls(**known | {name: tuple(known[name]) for name in ("kernel", "shape") if name in known})


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds and CPU seconds, of all threads."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class SetUp:
    """What is known of a job when it is ready. A fact that this kind of job lacks is None."""

    imported_mib: float  # peak memory of the process after its imports
    device: str
    compile: Seconds | None = None
    parameters: int | None = None
    note: str | None = None  # on settings other than planned
    peaks: Mapping[str, float] | None = None  # the fields of `roofline.Peaks`

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict, without facts that are None."""
        facts = ("parameters", "note", "peaks")
        return {name: value for name, value in asdict(self).items() if value is not None or name not in facts}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "SetUp":
        """Reads what `to_json` returns; other entries are ignored."""
        known = {field.name: found[field.name] for field in fields(cls) if field.name in found}
        return cls(**known | {"compile": known["compile"] and Seconds(**known["compile"])})


class ReadyJob(NamedTuple):
    """A job ready to run."""

    run: Callable[[], Any]  # returns when the device has finished
    set_up: SetUp
    device_peak_mib: Callable[[], float | None]  # of an accelerator's own memory


def timed(function: Callable[[], T]) -> tuple[T, Seconds]:
    """Result of the function, and the time that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def peak_mib() -> float:
    """Peak resident memory of this process in MiB."""
    # On Linux a child inherits its parent's ru_maxrss; VmHWM in /proc is the process's own.
    if (status := Path("/proc/self/status")).exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024 / MIB
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def available_bytes() -> float:
    """Free memory of this machine in bytes; infinite if unknown."""
    if not (info := Path("/proc/meminfo")).exists():
        return float("inf")
    return float(info.read_text().split("MemAvailable:")[1].split()[0]) * 1024


def no_memory(error: Exception) -> bool:
    """Whether an exception means that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def random_arrays(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Float32 arrays, uniform on [0, 1), the same at every call."""
    generator = np.random.default_rng(0)
    return [generator.random(shape, dtype=np.float32) for shape in shapes]
