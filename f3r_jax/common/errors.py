"""Errors that a user can fix, reported in one line, and the exit statuses of all commands."""

import errno
import os
from collections.abc import Iterator

EXIT_BROKEN_PIPE = 1
EXIT_USER_ERROR = 2
EXIT_FAILED_VERDICT = 4  # `register --strict`
EXIT_INTERRUPTED = 130  # the status that a shell reports after Ctrl-C

OF_THE_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than is allowed",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an error",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EMFILE: "too many open files",
    errno.ESTALE: "the network file system has lost the file",
}
FULL = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)}  # as libraries quote them
MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory", "bad_alloc", "Unable to allocate")
DEVICE = ("Unable to initialize backend", "Unknown backend", "no supported devices found", "No visible GPU")
SHORT = 160  # characters of a quoted message


class UserError(Exception):
    """An error that the user can fix. The message names the file, what was found and what was expected."""


def explained(error: BaseException) -> str | None:
    """One line about an error of the machine: disk, memory or device. None for any other error."""
    for each in _causes(error):
        text = " ".join(str(each).split())
        if cause := _refusal(each):
            return f"{getattr(each, 'filename', None) or 'a file cannot be written'}: {cause}"
        if isinstance(each, MemoryError) or (isinstance(each, RuntimeError) and any(word in text for word in MEMORY)):
            return f"not enough memory ({text[:SHORT] or 'MemoryError'}); expected larger voxels, or a smaller volume"
        if isinstance(each, RuntimeError) and any(word in text for word in DEVICE):
            return f"JAX cannot use the device ({text[:SHORT]}); expected another JAX_PLATFORMS, such as cpu"
    return None


def disk_reason(error: BaseException) -> str | None:
    """Why the disk refused something, in plain words; None for an error of another kind.

    Libraries may raise an error of their own with the text of the system's error.
    """
    return next(filter(None, map(_refusal, _causes(error))), None)


def _refusal(error: BaseException) -> str | None:
    """The same of the error itself, without those that it was raised from."""
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        return OF_THE_DISK[error.errno]
    return next((OF_THE_DISK[number] for text, number in FULL.items() if text in str(error)), None)


def reason(error: BaseException) -> str:
    """The cause of an error in plain words, such as "permission denied"."""
    if isinstance(error, OSError) and error.errno is not None:
        return OF_THE_DISK.get(error.errno, os.strerror(error.errno).lower())
    return " ".join(str(error).split())[:SHORT] or type(error).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, those that it was raised from, and those of a group."""
    found: list[BaseException] = [error]
    for each in found:
        yield each
        more = [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
        found += [other for other in more if isinstance(other, BaseException) and other not in found]
