"""A folder for results: tested before the work starts, locked, and switched at once from the old result to the new one.

Files that are not complete are in hidden folders inside the result's folder. There they are on its file system, so that
moving them works and is quick, also if the folder is a mount point or a link.

  .writing-XXXXXXXX   a result that is being written; if its process was killed, the next run clears it
  .complete           a whole new result: from now on the old one is replaced
  .moving             the same, after files that only the old result had are removed

A process that is killed in between leaves a whole result, old or new. `finish`, which the next run calls, completes the
move. Only a folder without `.complete`, `.moving` and with the last of its files holds a whole result in place.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_writable, clear_leftovers, errors_of, writing_folder
from f3r_jax.common.locks import held

COMPLETE, MOVING = ".complete", ".moving"


@contextlib.contextmanager
def reserved(folder: Path, names: Sequence[str] = (), *, size: int = 0, shared: bool = False) -> Iterator[bool]:
    """Reserves a folder for this process: creates it, tests that it can be written, and locks it.

    Leftovers of killed processes are cleared, and the move of a whole result is completed. At the end the folder and
    its parents are removed if they were created here and are empty.

    Args:
      folder: the folder.
      names: the files that an older result can have, for `finish`.
      size: the bytes that a result takes at least.
      shared: whether other processes may reserve it in the same way meanwhile.

    Yields:
      Whether a result of a killed process was moved into place.

    Raises:
      UserError: the folder cannot be created or written, or another process has reserved it.
    """
    made = _make(folder)
    taken = f"{folder}: another process is writing here; wait until it ends, or give another folder"
    try:
        with contextlib.ExitStack() as stack:
            with errors_of(folder, "open the folder"):
                stack.enter_context(held(folder, taken, shared=shared))
            check_writable(folder, size=size)
            clear_leftovers(folder)
            yield finish(folder, names)
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


@contextlib.contextmanager
def staged(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """Yields a temporary folder in a reserved folder; at the end its files replace the older ones.

    `names` are the files that the older result can have. The last of them is the last file of each result.

    Raises:
      UserError: a file could not be written. The old result is still in place.
    """
    with errors_of(folder, "write the result"), writing_folder(folder) as temporary:
        new = temporary / "new"
        new.mkdir()
        yield new
        _sync(new)
        os.replace(new, folder / COMPLETE)
    finish(folder, names)


def finish(folder: Path, names: Sequence[str]) -> bool:
    """Moves a whole result into place, the last of the names last; returns False if there is none to move.

    Files of these names that the result does not have are removed.
    """
    complete, moving = folder / COMPLETE, folder / MOVING
    with errors_of(folder, "move the result into place"):
        if complete.is_dir():
            # From here until the new one is moved, no whole result is in place.
            (folder / names[-1]).unlink(missing_ok=True)
            for name in names:
                if not (complete / name).exists():
                    (folder / name).unlink(missing_ok=True)
            os.replace(complete, moving)
        if not moving.is_dir():
            return False
        last = names[-1]
        for path in sorted(moving.iterdir(), key=lambda path: (path.name == last, path.name)):
            os.replace(path, folder / path.name)
        moving.rmdir()
    return True


def _make(folder: Path) -> list[Path]:
    """Creates the folder; returns what was created, innermost first."""
    with errors_of(folder, "create the folder"):
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file, expected a folder for the result")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
    return missing


def _sync(folder: Path) -> None:
    """Waits until all files of a folder are on the disk, so that a full disk or quota is found before the move."""
    if os.name == "nt":  # Windows can neither open folders nor synchronise files that are open for reading
        return
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
