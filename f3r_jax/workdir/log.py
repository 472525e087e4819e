"""The log of a training: one row per step or validation."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter

from f3r_jax.common.files import write_text


class Log:
    """`metrics.jsonl`, one row a step or validation, and the same curves for TensorBoard.

    Rows hold nothing that differs between two runs of the same config, so they can be compared to the bit. On resuming,
    rows after the checkpoint are dropped, without one all of them: their steps are done again.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self._path) if row["step"] <= step] if step else []
        write_text(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict) -> None:
        """Appends a row and plots its numbers."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in row.items():
            if name not in ("step", "kind"):
                self._board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Writes out what TensorBoard still holds."""
        self._file.close()
        self._board.close()


def read_rows(path: Path) -> list[dict]:
    """The whole rows of a `metrics.jsonl`; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
