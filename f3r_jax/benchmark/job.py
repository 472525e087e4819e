"""A benchmark job that is ready to run, and the time and memory that it takes in this process."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

MIB, GIB = 2**20, 2**30
LEARNING_RATE, LAM = 1e-5, 1.5  # Section 3.1; speed depends on neither
NO_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "allocate memory")  # messages of XLA, CUDA and PyTorch's allocator


class ReadyJob(NamedTuple):
    """A job ready to run."""

    run: Callable[[], Any]  # returns when the device has finished
    imported_mib: float  # peak memory of the process after its imports
    device: str
    device_peak_mib: Callable[[], float | None]  # of an accelerator's own memory
    compile: dict[str, float] | None = None
    facts: Mapping[str, Any] = MappingProxyType({})  # further results: "parameters", "note", "peaks"


def timed(function: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Result of the function, and its wall-clock seconds and CPU seconds (all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


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
