"""Atomic writing of files, and values that JSON can represent."""

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
    """Writes a text file through `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text)


def json_safe(value: object) -> object:
    """Replaces NaN and infinity, which JSON lacks, by None. A mean over no values, for example, is NaN."""
    if isinstance(value, dict):
        return {key: json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [json_safe(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
