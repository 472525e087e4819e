"""The log of a training: one row per step or validation."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import write_text


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
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict) -> None:
        """Appends a row, and its numbers to the TensorBoard curves."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("step", "kind"):
                self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Closes both files; TensorBoard writes its remaining values."""
        self._file.close()
        self._board.close()


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
