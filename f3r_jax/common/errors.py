"""Errors that a user can fix, reported in one line, and the exit statuses of all commands."""

import errno
import os
import sys
from collections.abc import Callable, Iterator

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


def exit_on_user_error(main: Callable[..., int | None]) -> Callable[..., int | None]:
    """Wraps an entry point: a `UserError` becomes one line on standard error and exit status 2.

    So does an error of the machine (`explained`). If the reader of standard output has gone, as with `| head`, the
    command ends with status 1 and prints nothing.
    """

    def wrapped(*args: object) -> int | None:
        try:
            status = main(*args)
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_BROKEN_PIPE)
        except UserError as error:
            line = str(error)
        except Exception as error:
            line = explained(error) or ""
            if not line:
                raise
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)

    return wrapped


def explained(error: BaseException) -> str | None:
    """One line about an error of the machine: disk, memory or device. None for any other error."""
    for each in _causes(error):
        text = " ".join(str(each).split())
        if cause := disk_reason(each):
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
    for each in _causes(error):
        if isinstance(each, OSError) and each.errno in OF_THE_DISK:
            return OF_THE_DISK[each.errno]
        for text, number in FULL.items():
            if text in str(each):
                return OF_THE_DISK[number]
    return None


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
