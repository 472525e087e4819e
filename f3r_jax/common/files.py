"""Reading and atomic writing of files, and values that JSON can represent."""

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from f3r_jax.common.errors import FULL, UserError, reason
from f3r_jax.common.locks import lock, release

WRITING = ".writing-"  # prefix of the names of temporary folders


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same file name to write to; at the end this file replaces `path`.

    A killed process leaves either the old file or the new one. It may also leave a temporary folder next to it, which
    the next call for a file of the same folder clears. A link is followed, so that its target is replaced.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    clear_leftovers(path.parent)
    with _named(path), writing_folder(path.parent) as folder:
        temporary = folder / path.name
        yield temporary
        os.replace(temporary, path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Makes an error of the file system name the path, not a temporary file or nothing."""
    try:
        yield
    except OSError as error:
        if error.filename is None or WRITING in str(error.filename):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def writing_folder(parent: Path) -> Iterator[Path]:
    """Yields a hidden folder in `parent` for files that are not complete yet, and removes it at the end.

    It is locked as long as the process lives, so that `clear_leftovers` clears it only if the process was killed.
    """
    descriptor = None
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=WRITING))
        with contextlib.suppress(FileNotFoundError, BlockingIOError):  # another process is clearing it
            descriptor = lock(folder)
            if folder.is_dir():
                break
            release(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        release(descriptor)


def clear_leftovers(folder: Path) -> None:
    """Removes the temporary folders that killed processes left in `folder`."""
    with contextlib.suppress(OSError):
        for leftover in folder.glob(f"{WRITING}*"):
            with contextlib.suppress(OSError):  # also if its process is alive
                descriptor = lock(leftover)
                if descriptor is not None:
                    shutil.rmtree(leftover, ignore_errors=True)
                release(descriptor)


@contextmanager
def errors_of(path: Path, doing: str) -> Iterator[None]:
    """Turns errors of the file system into a UserError: the path, what could not be done, and why."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{shortened(path)}: cannot {doing}: {reason(error)}") from error


def reserve_space(folder: Path, size: int) -> None:
    """Raises an OSError unless a file of `size` bytes fits into the folder, with one page written; removes the file."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
        if size > 0 and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:  # other errors mean that the file system cannot reserve space
                if error.errno in FULL.values():
                    raise


def check_writable(folder: Path, *, size: int = 0) -> None:
    """Raises a UserError unless files can be written to the folder, with `size` bytes in total."""
    try:
        reserve_space(folder, size)
    except OSError as error:
        size = size if error.errno in FULL.values() else 0
        what = f"write here, the result takes about {size / 1e6:.3g} MB" if size else "write here"
        raise UserError(f"{shortened(folder)}: cannot {what}: {reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 through `replacing`; characters that UTF-8 lacks are escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def check_readable(path: Path, expected: str) -> None:
    """Raises a UserError, with what was `expected`, unless the path is a file that can be opened for reading."""
    try:
        with path.open("rb"):
            return
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {expected}") from None
    except IsADirectoryError:
        inside = "a folder"
        with os.scandir(path) as entries:
            if any(entry.name.lower().endswith((".dcm", ".ima")) or entry.name == "DICOMDIR" for entry in entries):
                inside = "a folder of DICOM files: convert it first, for example with dcm2niix"
        raise UserError(f"{path}: is {inside}; expected {expected}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{shortened(path)}: {reason(error)}; expected {expected}") from None


def shortened(path: Path) -> str:
    """The path as text, cut in the middle if it is very long."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"


def json_safe(value: object) -> object:
    """Replaces NaN and infinity, which JSON lacks, by None. A mean over no values, for example, is NaN."""
    if isinstance(value, dict):
        return {key: json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [json_safe(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
