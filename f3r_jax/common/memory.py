"""The memory of the machine, and the check whether volumes fit into it."""

import os
from pathlib import Path

from f3r_jax.common.errors import UserError

BYTES_PER_VOXEL = 100  # of a working grid, at least: measured were 350
USED_PER_VOXEL = 350  # bytes; the same, as measured
PROGRAM = 0.7e9  # bytes, of the libraries and compiled functions
MOST = 4e9  # bytes that a registration takes by default
LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container


def total() -> int | None:
    """The memory of the machine or of its container in bytes; None if the system does not report it."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    for name in LIMITS:
        try:
            found = min(found, int((Path("/") / name).read_text()))
        except (OSError, ValueError):
            continue
    return found


def free() -> int | None:
    """The memory in bytes that is not in use; None if the system does not report it."""
    limit = total()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError):
        return limit
    return available if limit is None else min(available, limit)


def budget(gigabytes: float | None) -> float:
    """The bytes that a registration may take: those given, or half of what is free, but at most 4 GB."""
    if gigabytes is not None:
        return gigabytes * 1e9
    found = free()
    return MOST if found is None else min(MOST, found / 2)


def check_voxels(count: float, setting: str) -> None:
    """Raises a UserError if a working grid of so many voxels cannot fit; `setting` names what asks for it."""
    limit = total()
    if limit is not None and count * BYTES_PER_VOXEL > limit:
        raise UserError(
            f"{setting} asks for a working grid of {count:.2g} voxels, {count * BYTES_PER_VOXEL / 1e9:.3g} GB or more, "
            f"but there are {limit / 1e9:.3g} GB; expected larger voxels"
        )
