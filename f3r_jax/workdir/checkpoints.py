"""Checkpoints of a run: parameters, optimiser state and config. Only this module uses Orbax.

A checkpoint is a folder `<workdir>/checkpoints/<step>` with the items `params`, `optimiser` and `config`. An evaluation
only needs params and config. Orbax writes a temporary folder and renames it, so a killed run leaves only complete
checkpoints.
"""

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import reserve_space
from f3r_jax.config import upgraded
from f3r_jax.workdir.weights import check_architecture

FOLDER = "checkpoints"
OVERHEAD = 2**18  # bytes: the disk space of a checkpoint without its arrays, about 40 small files


class Checkpoints:
    """The checkpoints of one run, newest last."""

    def __init__(self, workdir: Path, *, keep: int = 3) -> None:
        # In a training across hosts only process 0 saves checkpoints, because all processes have the same state.
        alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
        (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            cleanup_tmp_directories=True,  # of a process that was killed or whose disk was full
            enable_async_checkpointing=False,
            multiprocessing_options=alone if jax.process_count() > 1 else ocp.options.MultiprocessingOptions(),
        )
        self._folder, items = (workdir / FOLDER).absolute(), ("params", "optimiser", "config")
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=items)
        except FileNotFoundError:  # a late write of a failed save removed its file while the folder was cleared
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=items)

    def latest(self) -> int | None:
        """The newest step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)

    def save(self, step: int, params: dict, optimiser: object, config: ConfigDict) -> None:
        """Saves the state after `step` steps, unless this checkpoint exists."""
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            optimiser=ocp.args.StandardSave(optimiser),
            config=ocp.args.JsonSave(json.loads(config.to_json())),
        )
        # A save that fails halfway leaves threads that print tracebacks, so a full disk should be found before it.
        arrays = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimiser)))
        reserve_space(self._folder, arrays + OVERHEAD)
        _ignore_late_writes()
        with _without_log():
            self._manager.save(step, args=items)

    def restore(self, step: int, params: dict, optimiser: object) -> tuple[dict, object]:
        """Parameters and optimiser state after `step` steps, with the structure and types of the arguments."""
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(params), optimiser=ocp.args.StandardRestore(optimiser)
            ),
        )
        return items["params"], items["optimiser"]

    def close(self) -> None:
        """Waits until everything is written and closes the folder."""
        self._manager.close()


def _is_late(kind: type[BaseException] | None, error: BaseException | None) -> bool:
    """Whether an error is that of a write that ended after its event loop was closed."""
    return kind is RuntimeError and str(error) == "Event loop is closed"


def _ignore_late_writes() -> None:
    """Keeps Python from printing the error of a write that ends after a failed save; other errors go to the old hooks.

    Orbax raises the error of the save, such as a full disk, and closes its event loop. A thread of TensorStore, which
    cannot raise, then prints a traceback because the loop is closed.
    """
    show, report = sys.excepthook, sys.unraisablehook

    def show_unless_late(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _is_late(kind, error):
            show(kind, error, trace)

    def report_unless_late(found: "sys.UnraisableHookArgs") -> None:
        if not _is_late(found.exc_type, found.exc_value):
            report(found)

    if getattr(show, "__qualname__", "") != show_unless_late.__qualname__:
        sys.excepthook = show_unless_late
    if getattr(report, "__qualname__", "") != report_unless_late.__qualname__:
        sys.unraisablehook = report_unless_late


@contextlib.contextmanager
def _without_log() -> Iterator[None]:
    """Keeps Orbax from logging an error that it also raises: a full disk would print hundreds of lines."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger = logging.getLogger("absl")
    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)


def steps(workdir: Path) -> list[int]:
    """The steps that have a complete checkpoint, in order. Writes nothing."""
    folder = workdir / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def find(workdir: Path, step: int | None = None) -> Path:
    """The folder of a run's checkpoint of `step`, or of the newest checkpoint.

    Raises:
      UserError: the folder does not exist, or has no checkpoint, or none of that step.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: no such folder, expected the --workdir of a training run")
    have = steps(workdir)
    if not have:
        raise UserError(f"{workdir}: no checkpoint found, expected {FOLDER}/<step> as a training run writes it")
    if step is not None and step not in have:
        raise UserError(f"{workdir}: no checkpoint of step {step}, found {', '.join(map(str, have))}")
    return workdir / FOLDER / str(have[-1] if step is None else step)


def load_config(checkpoint: Path) -> ConfigDict:
    """The config of the checkpoint's run, completed by the keys that were added later."""
    restored = _restore(checkpoint, "config", ocp.args.JsonRestore())
    return upgraded(ConfigDict(restored))


def load_params(checkpoint: Path, abstract: dict) -> dict:
    """The parameters of a checkpoint, float32.

    Args:
      checkpoint: the folder of the checkpoint.
      abstract: the expected parameters, arrays or `jax.ShapeDtypeStruct`.

    Raises:
      UserError: the checkpoint is of another network, or cannot be read.
    """
    check_architecture(checkpoint, _metadata(checkpoint), abstract)
    return _restore(checkpoint, "params", ocp.args.StandardRestore(abstract))


def _metadata(checkpoint: Path) -> dict:
    with _reader(checkpoint) as reader:
        return reader.metadata(checkpoint.absolute()).item_metadata.params.tree


def _restore(checkpoint: Path, item: str, args: ocp.args.CheckpointArgs) -> dict:
    with _reader(checkpoint) as reader:
        return reader.restore(checkpoint.absolute(), args=ocp.args.Composite(**{item: args}))[item]


@contextlib.contextmanager
def _reader(checkpoint: Path) -> Iterator[ocp.Checkpointer]:
    # Every item has a handler, even if it is not read, because Orbax warns of items without one.
    handler = ocp.CompositeCheckpointHandler(
        params=ocp.StandardCheckpointHandler(),
        optimiser=ocp.StandardCheckpointHandler(),
        config=ocp.JsonCheckpointHandler(),
    )
    try:
        with ocp.Checkpointer(handler) as reader:
            yield reader
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{checkpoint}: not a readable checkpoint of this package ({type(error).__name__})") from error
