"""Locks of folders, which end with the process that holds them, however it ends."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from f3r_jax.common.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"  # only on network file systems, where a folder itself cannot be locked


def lock(folder: Path, *, shared: bool = False) -> int | None:
    """Locks a folder and returns what `release` needs; None if its file system, or Windows, has no such locks.

    Several processes can hold a shared lock, if none holds another one.

    Raises:
      BlockingIOError: another process holds the lock.
      OSError: the folder cannot be opened.
    """
    if fcntl is None:
        return None
    for path, mode in ((folder, os.O_RDONLY), (folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)):
        descriptor = os.open(path, mode)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            os.close(descriptor)
    with contextlib.suppress(OSError):
        (folder / LOCK_FILE).unlink()
    return None


@contextlib.contextmanager
def held(folder: Path, refusal: str, *, shared: bool = False) -> Iterator[None]:
    """Locks a folder inside the block; raises a UserError with the text `refusal` if another process holds the lock."""
    try:
        descriptor = lock(folder, shared=shared)
    except BlockingIOError:
        raise UserError(refusal) from None
    try:
        yield
    finally:
        release(descriptor)


def release(descriptor: int | None) -> None:
    """Ends a lock."""
    if descriptor is not None:
        os.close(descriptor)
