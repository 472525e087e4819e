"""What a training leaves in its run's folder as it goes: a log, checkpoints and validations.

Rows of the log hold nothing that differs between two runs of the same config, so they can be compared to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from f3r_jax.common.progress import Progress
from f3r_jax.data.datasets import Dataset, organs_of
from f3r_jax.evaluate.scoring import FOLDING_ADVICE, FOLDING_LIMIT
from f3r_jax.train.devices import is_main
from f3r_jax.train.validation import validate
from f3r_jax.workdir.checkpoints import Checkpoints
from f3r_jax.workdir.log import Log
from f3r_jax.workdir.trained_network import Predictor


class TrainingError(Exception):
    """The run can't go on; the message names the step and the cases."""


class Record:
    """The record of one run."""

    def __init__(self, config: ConfigDict, workdir: Path, dataset: Dataset, predict: Predictor) -> None:
        self._config, self._label = config, ""
        self._dataset, self._predict, self._organs = dataset, predict, organs_of(config.data)
        self._workdir = workdir
        self._checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
        self._log: Log | None = None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint."""
        return self._checkpoints.steps()

    def restore(self, step: int, params: dict, optimiser: object) -> tuple[dict, object]:
        """Parameters and optimiser state of a checkpoint, in the structure and types of the given ones."""
        return self._checkpoints.restore(step, params, optimiser)

    def begin(self, step: int, params: dict, progress: Progress, *, label: str = "") -> None:
        """Begins the log after `step`: what a later step left is dropped, as it is done again.

        `label` stands before the run's lines where several are trained together.
        """
        self._label = label
        self._checkpoints.drop_after(step)
        self._log, self._progress = Log(self._workdir, step), progress
        if step == 0:
            self._look(0, params)

    def add(self, step: int, names: Sequence[str], metrics: Mapping[str, float], state: Callable[[], tuple]) -> None:
        """Logs a step; validates and saves when it is time, for which `state` gives parameters and optimiser state.

        Raises:
          TrainingError: the loss is not finite; the last good checkpoint stays.
        """
        if trouble := _trouble(step, names, metrics):
            good = self._checkpoints.latest() or 0
            raise TrainingError(f"{self._label}{trouble}; the checkpoint of step {good} is the last good one")
        self._log.write({"step": step, "kind": "train", **metrics})
        settings = self._config.train
        last = step == settings.steps
        look, save = (last or step % every == 0 for every in (settings.validate_every, settings.checkpoint_every))
        if not (look or save):
            return
        params, optimiser = state()
        if look:
            self._look(step, params)
        if save:
            self._checkpoints.save(step, params, optimiser, self._config)

    def close(self) -> None:
        """Writes out what is held."""
        if self._log is not None:
            self._log.close()
        self._checkpoints.close()

    def _look(self, step: int, params: dict) -> None:
        scratch = self._workdir / ".validation"
        values = validate(self._predict, params, self._dataset, self._organs, scratch=scratch)
        if values:
            self._log.write({"step": step, "kind": "validation", **values})
            self._progress.note(self._label + _validation_line(step, values))


class NullRecord:
    """What the other processes of a training do in place of process 0's record: nothing, and end when it ends."""

    def steps(self) -> list[int]:
        """None: process 0 tells."""
        return []

    def restore(self, step: int, params: dict, optimiser: object) -> tuple[dict, object]:
        """The given ones, to be replaced by process 0's."""
        return params, optimiser

    def begin(self, step: int, params: dict, progress: Progress, *, label: str = "") -> None:
        """Does nothing."""

    def add(self, step: int, names: Sequence[str], metrics: Mapping[str, float], state: Callable[[], tuple]) -> None:
        """Raises a TrainingError where process 0 does."""
        if trouble := _trouble(step, names, metrics):
            raise TrainingError(trouble)

    def close(self) -> None:
        """Does nothing."""


def open_record(config: ConfigDict, workdir: Path, dataset: Dataset, predict: Predictor) -> Record | NullRecord:
    """The record of a run in process 0; in the others of a training across hosts what goes along with it."""
    return Record(config, workdir, dataset, predict) if is_main() else NullRecord()


def _trouble(step: int, names: Sequence[str], metrics: Mapping[str, float]) -> str | None:
    """Why the run can't go on after this step."""
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
