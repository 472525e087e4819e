"""The log of a training: one row per step or validation."""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import write_text

SECONDS_BETWEEN_FLUSHES = 30.0


class Log:
    """`metrics.jsonl`, one row per step or validation, and the same curves for TensorBoard.

    Two runs of the same config have bit-identical rows. A resumed run drops the rows after the checkpoint, or all rows
    if there is no checkpoint, because it repeats these steps.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self._path) if row["step"] <= step] if step else []
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a")
        self._curves = Curves(workdir / "tensorboard", step + 1)

    def write(self, row: dict) -> None:
        """Appends a row, and its numbers to the TensorBoard curves.

        Raises:
          OSError: the files cannot be written. They are closed then.
        """
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            values = {name: value for name, value in row.items() if name not in ("step", "kind")}
            self._curves.write(row["step"], {f"{row['kind']}/{name}": value for name, value in values.items()})
        except OSError:
            for file in (self._file, self._curves):  # otherwise Python would try to write the rest again and again
                with contextlib.suppress(OSError):
                    file.close()
            raise

    def flush(self) -> None:
        """Writes the remaining values of the curves to the disk."""
        self._curves.flush()

    def close(self) -> None:
        """Closes both files; TensorBoard's gets its remaining values."""
        self._file.close()
        self._curves.close()


class Curves:
    """An event file of TensorBoard.

    It is written in the calling thread, so that an error of the disk is raised there. With a `SummaryWriter` it ended a
    thread of that writer, and the training waited for this thread.
    """

    def __init__(self, folder: Path, first: int) -> None:
        """Opens a new file; TensorBoard hides the values of earlier files from step `first` on."""
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._records, self._next_flush = RecordWriter(str((folder / name).absolute())), 0.0
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Adds a point to each of the named curves."""
        for name, value in values.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Writes all points to the disk."""
        self._records.flush()
        self._next_flush = time.monotonic() + SECONDS_BETWEEN_FLUSHES

    def close(self) -> None:
        """Writes the remaining points and closes the file."""
        self._records.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())


def read_rows(path: Path, keys: tuple[str, ...] = ("step", "kind")) -> list[dict]:
    """The rows of a `metrics.jsonl`, or of a file like it. An incomplete last line of a killed run is left out.

    Raises:
      UserError: a line that is not JSON, or that lacks one of `keys`.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            continue
        try:
            row = json.loads(line)
            _ = [row[key] for key in keys]
            float(row["step"] or 0)  # None where nothing was trained
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is damaged ({line.strip()[:60]!r}), expected JSON with "
                f"{', '.join(keys)}: remove the line, or the whole file"
            ) from error
        rows.append(row)
    return rows
