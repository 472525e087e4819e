"""How this process keeps the memory it was given."""

import ctypes
import platform

# mallopt's parameters, from glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Tells glibc to reuse large blocks instead of giving them back to the system after each use.

    XLA on a CPU asks for the work space of a program anew at each run. By default glibc maps such blocks from the
    system and the kernel clears them page by page, which costs as much as the arithmetic of a small convolution.
    Called by the entry points, so that importing the package changes nothing. No effect without glibc.
    """
    libc = _glibc()
    if libc is None:
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 2**26)


def give_back_freed_memory() -> None:
    """Returns to the system what `keep_freed_memory` kept; between stages of large volumes, which need other blocks.

    What one stage left in pieces the next can't use, so that their peaks would add up.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
