"""Unsupervised training: similarity + lambda x smoothness (Eq. 3), one jitted pure step, resumable to the bit.

Letters: u displacement in voxels of the fixed grid.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from f3r_jax.common.progress import Progress
from f3r_jax.data.datasets import Dataset
from f3r_jax.train import devices
from f3r_jax.train.batches import batches, source_of
from f3r_jax.train.record import NullRecord, Record, TrainingError, open_record
from f3r_jax.train.step import State, TrainStep, compile_train_step, create_state, make_optimiser
from f3r_jax.workdir.trained_network import make_predictor


def train(
    network: nn.Module,
    dataset: Dataset,
    config: ConfigDict,
    workdir: Path,
    *,
    ahead: Future[TrainStep] | None = None,
) -> State:
    """Trains to `config.train.steps` steps, from the newest checkpoint in `workdir` if there is one.

    `ahead` is what `compiled_step` makes in another thread; without it the step is compiled here.

    Raises:
      TrainingError: the loss is not finite; the last good checkpoint stays.
    """
    mesh, optimiser = devices.mesh_for(config.train.batch_size), make_optimiser(config.optim, config.train.steps)
    lam = devices.replicate(mesh, jnp.asarray(config.loss.lam, jnp.float32))
    record = open_record(config, workdir, dataset, make_predictor(network))
    try:
        first = int(devices.broadcast_from_main(max(record.steps(), default=0)))
        state = devices.broadcast_from_main(_state_of(record, create_state(network, optimiser, config.seed), first))
        with _progress(config, first, mesh) as progress:
            record.begin(first, state.params, progress)
            state = devices.replicate(mesh, state)
            step_function = _step_function(network, [config], first, ahead)
            for names, batch in batches(dataset, source_of(config), config, first, mesh):
                state, metrics = step_function(state, batch, lam)
                metrics = {name: float(value) for name, value in metrics.items()}
                record.add(int(state.step), names, metrics, lambda: _kept(state))  # noqa: B023
                progress.advance(loss=metrics["loss"])
        return state
    finally:
        record.close()


def train_together(
    network: nn.Module,
    dataset: Dataset,
    configs: Sequence[ConfigDict],
    workdirs: Sequence[Path],
    *,
    ahead: Future[TrainStep] | None = None,
) -> list[TrainingError | None]:
    """Trains runs that differ in lambda alone as one program, the state vmapped over lambda.

    Each run leaves in its folder what `train` leaves. They go on from the newest step of which all have a checkpoint.
    `ahead` as for `train`.

    Returns:
      For each run the error that ended it, or None; the others are trained on.
    """
    config, count = configs[0], len(configs)
    mesh, optimiser = devices.mesh_for(config.train.batch_size), make_optimiser(config.optim, config.train.steps)
    lams = devices.replicate(mesh, jnp.asarray([config.loss.lam for config in configs], jnp.float32))
    predict = make_predictor(network)
    runs = [f"lambda {config.loss.lam:g}" for config in configs]
    records = [open_record(*of_run, dataset, predict) for of_run in zip(configs, workdirs, strict=True)]
    errors: list[TrainingError | None] = [None] * count
    try:
        first = int(
            devices.broadcast_from_main(max(set.intersection(*(set(record.steps()) for record in records)), default=0))
        )
        start = create_state(network, optimiser, config.seed)
        states = [devices.broadcast_from_main(_state_of(record, start, first)) for record in records]
        with _progress(config, first, mesh) as progress:
            for record, state, run in zip(records, states, runs, strict=True):
                record.begin(first, state.params, progress, label=f"{run}: ")
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tuple(state[1:]) for state in states))
            together = devices.replicate(mesh, State(states[0].step, *stacked))
            step_function = _step_function(network, configs, first, ahead)
            for names, batch in batches(dataset, source_of(config), config, first, mesh):
                together, metrics = step_function(together, batch, lams)
                metrics = {name: values.tolist() for name, values in metrics.items()}
                for n in (n for n in range(count) if errors[n] is None):
                    of_run = {name: values[n] for name, values in metrics.items()}
                    errors[n] = _add(records[n], names, of_run, together, n)
                if None not in errors:
                    break
                progress.advance(**{f"loss of {run}": loss for run, loss in zip(runs, metrics["loss"], strict=True)})
    finally:
        for record in records:
            record.close()
    return errors


def _step_function(
    network: nn.Module, configs: Sequence[ConfigDict], first: int, ahead: Future[TrainStep] | None
) -> TrainStep | None:
    """The compiled step; None for a run that is done."""
    if first == configs[0].train.steps:
        return None
    return compile_train_step(network, configs) if ahead is None else ahead.result()


def _add(
    record: Record | NullRecord, names: Sequence[str], metrics: dict, together: State, n: int
) -> TrainingError | None:
    """Adds a step to the record of the n-th of the runs that are trained together; returns the error that ends it."""

    def state() -> tuple[dict, optax.OptState]:
        return jax.tree.map(lambda leaf: leaf[n], _kept(together))

    try:
        record.add(int(together.step), names, metrics, state)
    except TrainingError as error:
        return error
    return None


def _state_of(record: Record | NullRecord, start: State, step: int) -> State:
    """The state after `step` steps: `start`, or what the run's checkpoint holds."""
    if step == 0:
        return start
    return State(jnp.asarray(step, jnp.int32), *record.restore(step, start.params, start.optimiser))


def _kept(state: State) -> tuple[dict, optax.OptState]:
    """What a checkpoint holds."""
    return devices.local_copy((state.params, state.optimiser))


def _progress(config: ConfigDict, first: int, mesh: Mesh) -> Progress:
    progress = Progress("training", config.train.steps, done=first)
    if line := devices.describe(mesh, config.train.batch_size):
        progress.note(line)
    if first:
        progress.note(f"resuming from the checkpoint of step {first}")
    return progress
