"""Settings of glibc's malloc: whether freed memory is kept or returned to the system."""

import ctypes
import platform

# Parameters of mallopt, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Makes glibc reuse large blocks instead of returning them to the system after each use.

    XLA on a CPU allocates the work space of a compiled function at each call. By default glibc maps such blocks from
    the system and the kernel clears them page by page. This costs as much as the arithmetic of a small convolution.
    Only entry points call this, so importing the package has no side effects. Without glibc it does nothing.
    """
    libc = _glibc()
    if libc is None:
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)


def give_back_freed_memory() -> None:
    """Returns the memory that `keep_freed_memory` kept to the system, between two stages of work on large volumes.

    The next stage cannot reuse memory that the previous one left fragmented, so without this their peaks add up.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
