"""The memory of the machine, and the check whether volumes fit into it."""

import os
from pathlib import Path

from f3r_jax.common.errors import UserError

BYTES_PER_VOXEL = 100  # of a working grid, at least: measured were 350
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


def check_voxels(count: float, setting: str) -> None:
    """Raises a UserError if a working grid of so many voxels cannot fit; `setting` names what asks for it."""
    limit = total()
    if limit is not None and count * BYTES_PER_VOXEL > limit:
        raise UserError(
            f"{setting} asks for a working grid of {count:.2g} voxels, {count * BYTES_PER_VOXEL / 1e9:.3g} GB or more, "
            f"but there are {limit / 1e9:.3g} GB; expected larger voxels"
        )
