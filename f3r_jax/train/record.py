"""Files that a training writes while it runs: the log, checkpoints and validation scores.

Two runs of the same config have bit-identical logs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError, disk_reason
from f3r_jax.common.progress import Progress
from f3r_jax.data.datasets import Dataset, organs_of
from f3r_jax.evaluate.scoring import FOLDING_ADVICE, FOLDING_LIMIT
from f3r_jax.train.devices import is_main
from f3r_jax.train.step import State
from f3r_jax.train.validation import validate
from f3r_jax.workdir import checkpoints
from f3r_jax.workdir.checkpoints import Checkpoints
from f3r_jax.workdir.log import Log
from f3r_jax.workdir.trained_network import Predictor


class TrainingError(Exception):
    """The run cannot continue. The message names the step and the cases."""


class Record:
    """The record of one run."""

    def __init__(self, config: ConfigDict, workdir: Path, dataset: Dataset, predict: Predictor) -> None:
        self._config, self._label = config, ""
        self._dataset, self._predict, self._organs = dataset, predict, organs_of(config.data)
        self._workdir = workdir
        self._checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
        self._log: Log | None = None

    def steps(self) -> list[int]:
        """The steps for which a checkpoint exists."""
        return self._checkpoints.steps()

    def restore(self, step: int, params: dict, optimiser: object) -> tuple[dict, object]:
        """Parameters and optimiser state of a checkpoint, with the structure and types of the arguments."""
        return self._checkpoints.restore(step, params, optimiser)

    def begin(self, step: int, state: State, progress: Progress, *, label: str = "") -> None:
        """Begins the log after `step`. Rows and checkpoints of later steps are deleted, because they are repeated.

        The state before the first step is validated. It is saved only if no step follows.

        `label` is printed before the lines of the run if several runs are trained together.
        """
        self._label = label
        with self._disk_errors():
            self._checkpoints.drop_after(step)
            self._log, self._progress = Log(self._workdir, step), progress
            if step == 0:
                self._validate(0, state.params)
            if self._config.train.steps == 0:
                self._checkpoints.save(0, state.params, state.optimiser, self._config)

    def add(self, step: int, names: Sequence[str], metrics: Mapping[str, float], state: Callable[[], tuple]) -> None:
        """Logs a step, and at the configured intervals validates or saves a checkpoint.

        `state` returns parameters and optimiser state; it is only called when they are needed.

        Raises:
          TrainingError: the loss is not finite. The last good checkpoint is kept.
        """
        if problem := _problem(step, names, metrics):
            good = self._checkpoints.latest() or 0
            raise TrainingError(f"{self._label}{problem}; the checkpoint of step {good} is the last good one")
        settings = self._config.train
        last = step == settings.steps
        validates, saves = (last or step % every == 0 for every in (settings.validate_every, settings.checkpoint_every))
        with self._disk_errors():
            self._write({"step": step, "kind": "train", **metrics})
            if not (validates or saves):
                return
            params, optimiser = state()
            if validates:
                self._validate(step, params)
            if saves and self._log is not None:
                self._log.flush()  # before the checkpoint: a resumed run continues the curves from here
                self._checkpoints.save(step, params, optimiser, self._config)

    def close(self) -> None:
        """Closes the log and the checkpoints."""
        with self._disk_errors():
            if self._log is not None:
                self._log.close()
            self._checkpoints.close()

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Turns an error of the disk into a UserError that names the last good checkpoint."""
        try:
            yield
        except Exception as error:
            if isinstance(error, UserError) or not (cause := disk_reason(error)):
                raise
            good = max(checkpoints.steps(self._workdir), default=0)
            kept = f"the checkpoint of step {good} is the last good one" if good else "there is no checkpoint yet"
            raise UserError(
                f"{self._workdir}: the training cannot be written: {cause}; {kept}: make space and run the same "
                "command again"
            ) from error

    def _validate(self, step: int, params: dict) -> None:
        scratch = self._workdir / ".validation"
        values = validate(self._predict, params, self._dataset, self._organs, scratch=scratch)
        if values:
            self._write({"step": step, "kind": "validation", **values})
            self._progress.note(self._label + _validation_line(step, values))

    def _write(self, row: dict[str, Any]) -> None:
        assert self._log is not None  # since `begin`
        self._log.write(row)


class NullRecord:
    """Stand-in for `Record` in all processes but 0: writes nothing and raises the same errors."""

    def steps(self) -> list[int]:
        """No steps; only those of process 0 are used."""
        return []

    def restore(self, step: int, params: dict, optimiser: object) -> tuple[dict, object]:
        """Returns the arguments, which are replaced by the values of process 0 later."""
        return params, optimiser

    def begin(self, step: int, state: State, progress: Progress, *, label: str = "") -> None:
        """Does nothing."""

    def add(self, step: int, names: Sequence[str], metrics: Mapping[str, float], state: Callable[[], tuple]) -> None:
        """Raises a TrainingError when process 0 does."""
        if problem := _problem(step, names, metrics):
            raise TrainingError(problem)

    def close(self) -> None:
        """Does nothing."""


def open_record(config: ConfigDict, workdir: Path, dataset: Dataset, predict: Predictor) -> Record | NullRecord:
    """The record of a run in process 0, and its stand-in in the other processes."""
    return Record(config, workdir, dataset, predict) if is_main() else NullRecord()


def _problem(step: int, names: Sequence[str], metrics: Mapping[str, float]) -> str | None:
    """The reason why the run cannot continue after this step, if any."""
    loss, norm = metrics["loss"], metrics["gradient_norm"]
    if np.isfinite(loss) and np.isfinite(norm):
        return None
    return f"the loss is not finite at step {step} (case {', '.join(names)}: loss {loss}, gradient norm {norm})"


def _validation_line(step: int, values: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {values[name]:.2f} %" for name in ("dice", "folding") if name in values)
    if "dice_gain" in values:
        shown += f", Dice gain over the mean field {values['dice_gain']:+.2f} points"
    if "correlation" in values:
        shown += f", correlation {values['correlation']:.2f}"
    line = f"step {step}: validation {shown}"
    if values["folding"] > FOLDING_LIMIT:
        line += f"  WARNING: over {FOLDING_LIMIT} % of voxels fold; {FOLDING_ADVICE}"
    return line
