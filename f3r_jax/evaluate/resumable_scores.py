"""Stores the scores of each finished case on disk, so that a killed evaluation resumes."""

import json
from pathlib import Path

from f3r_jax.common.files import write_text
from f3r_jax.evaluate.scores import CaseScores
from f3r_jax.workdir.log import read_rows


class ResumableScores:
    """The scores of one checkpoint by case."""

    def __init__(self, path: Path, step: int | None) -> None:
        self._path, self._step = path, step
        rows = [row for row in read_rows(path, ("step", "name", "scores")) if row["step"] == step]
        # Rows of an earlier version have no controls.
        self.cases = {row["name"]: CaseScores.from_json(row["scores"]) for row in rows if "controls" in row["scores"]}
        write_text(path, "".join(self._line(name) for name in self.cases))

    def add(self, name: str, scores: CaseScores) -> None:
        """Stores the scores of a case."""
        self.cases[name] = scores
        with self._path.open("a") as file:
            file.write(self._line(name))

    def forget(self) -> None:
        """Deletes the file."""
        self._path.unlink()

    def _line(self, name: str) -> str:
        return json.dumps({"step": self._step, "name": name, "scores": self.cases[name].to_json()}) + "\n"
