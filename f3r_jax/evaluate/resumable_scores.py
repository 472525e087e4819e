"""The scores of the cases that an evaluation has done so far, on disk, so that a killed one resumes."""

import json
from pathlib import Path

from f3r_jax.common.files import write_text
from f3r_jax.workdir.log import read_rows


class ResumableScores:
    """Scores by case, of one checkpoint."""

    def __init__(self, path: Path, step: int | None) -> None:
        self._path, self._step = path, step
        rows = [row for row in read_rows(path) if row["step"] == step]
        # Rows that an earlier version left know no controls.
        self.rows = {row["name"]: row["scores"] for row in rows if "controls" in row["scores"]}
        write_text(path, "".join(self._line(name) for name in self.rows))

    def add(self, name: str, scores: dict) -> None:
        """Keeps the scores of a case."""
        self.rows[name] = scores
        with self._path.open("a") as file:
            file.write(self._line(name))

    def forget(self) -> None:
        """Deletes the file."""
        self._path.unlink()

    def _line(self, name: str) -> str:
        return json.dumps({"step": self._step, "name": name, "scores": self.rows[name]}) + "\n"
