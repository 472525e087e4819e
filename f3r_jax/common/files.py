"""Reading and atomic writing of files, and values that JSON can represent."""

import errno
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from f3r_jax.common.errors import UserError

WRITING = ".writing-"  # prefix of the names of temporary folders


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path with the same file name to write to; at the end this file replaces `path`.

    A killed process leaves either the old file or the new one. It may also leave a temporary folder next to it.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=WRITING) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)


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


def reason(error: BaseException) -> str:
    """The cause of an error in plain words, such as "permission denied"."""
    if isinstance(error, OSError) and error.errno is not None:
        return {errno.ENOSPC: "the disk is full", errno.EROFS: "the file system is read-only"}.get(
            error.errno, (os.strerror(error.errno)).lower()
        )
    return " ".join(str(error).split())[:120] or type(error).__name__


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
