"""The training loop: applies the jitted step to batches and keeps one record per run.

A resumed training is bit-identical to an uninterrupted one.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, TypeVar

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

T = TypeVar("T")


class Trained(NamedTuple):
    """The final state of each run and its error, if any."""

    states: list[State]
    errors: list[TrainingError | None]  # None: the run was completed


def train(
    network: nn.Module,
    dataset: Dataset,
    configs: Sequence[ConfigDict],
    workdirs: Sequence[Path],
    *,
    init: dict | None = None,
    step_future: Future[TrainStep] | None = None,
) -> Trained:
    """Trains one run, or several runs that differ in lambda only, as one function that is vmapped over lambda.

    Training starts at the newest step for which all runs have a checkpoint, and ends after `config.train.steps` steps.
    Each run writes the same files as if it were trained alone. A run ends early when its loss is not finite; its last
    good checkpoint is kept and the other runs continue. With 0 steps, `init` is validated and saved.

    `init` has the parameters before the first step, random ones by default. It is not used by a resumed training.

    `step_future` is the result of `compile_train_step` in another thread. Without it the step is compiled here.
    """
    config, count = configs[0], len(configs)
    mesh, optimiser = devices.mesh_for(config.train.batch_size), make_optimiser(config.optim, config.train.steps)
    runs = [f"lambda {config.loss.lam:g}" for config in configs] if count > 1 else [""]
    lams = _together([jnp.asarray(config.loss.lam, jnp.float32) for config in configs])
    predict = make_predictor(network)
    records = [open_record(*of_run, dataset, predict) for of_run in zip(configs, workdirs, strict=True)]
    errors: list[TrainingError | None] = [None] * count
    try:
        common = set.intersection(*(set(record.steps()) for record in records))
        first = int(devices.broadcast_from_main(max(common, default=0)))
        start = create_state(network, optimiser, config.seed, init)
        states = [devices.broadcast_from_main(_state_of(record, start, first)) for record in records]
        with _progress(config, first, mesh) as progress:
            for record, state, run in zip(records, states, runs, strict=True):
                record.begin(first, state, progress, label=run and f"{run}: ")
            state = devices.replicate(mesh, State(states[0].step, *_together([tuple(state[1:]) for state in states])))
            lams = devices.replicate(mesh, lams)
            step_function = _step_function(network, configs, first, step_future)
            for names, batch in batches(dataset, source_of(config), config, first, mesh):
                assert step_function is not None  # a batch is only loaded for a step that is not done
                state, metrics = step_function(state, batch, lams)
                metrics = jax.device_get(metrics)  # once per step: slices of it cost nothing
                of_runs = [{name: float(v) for name, v in _of_run(metrics, n, count).items()} for n in range(count)]
                for n, record in enumerate(records):
                    if errors[n] is None:
                        errors[n] = _add(record, names, of_runs[n], state, n, count)
                if None not in errors:
                    break
                losses = zip(runs, of_runs, strict=True)
                progress.advance(**{f"loss of {run}" if run else "loss": of_run["loss"] for run, of_run in losses})
        return Trained([State(state.step, *_of_run(tuple(state[1:]), n, count)) for n in range(count)], errors)
    finally:
        for record in records:
            record.close()


def _together(trees: Sequence[T]) -> T:
    """Stacks the arrays of several runs along a new first axis; those of a single run are unchanged."""
    return trees[0] if len(trees) == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _of_run(tree: T, n: int, count: int) -> T:
    """The arrays of the n-th of `count` runs, from the result of `_together`."""
    return tree if count == 1 else jax.tree.map(lambda leaf: leaf[n], tree)


def _step_function(
    network: nn.Module, configs: Sequence[ConfigDict], first: int, step_future: Future[TrainStep] | None
) -> TrainStep | None:
    """The compiled step; None if all runs are done."""
    if first == configs[0].train.steps:
        return None
    return compile_train_step(network, configs) if step_future is None else step_future.result()


def _add(
    record: Record | NullRecord, names: Sequence[str], metrics: dict, state: State, n: int, count: int
) -> TrainingError | None:
    """Adds a step to the record of the n-th run; returns the error that ends the run."""
    try:
        record.add(int(state.step), names, metrics, lambda: _of_run(_saved_part(state), n, count))
    except TrainingError as error:
        return error
    return None


def _state_of(record: Record | NullRecord, start: State, step: int) -> State:
    """The state after `step` steps: `start`, or the state in the run's checkpoint."""
    if step == 0:
        return start
    return State(jnp.asarray(step, jnp.int32), *record.restore(step, start.params, start.optimiser))


def _saved_part(state: State) -> tuple[dict, optax.OptState]:
    """The part of the state that a checkpoint contains: parameters and optimiser state."""
    return devices.local_copy((state.params, state.optimiser))


def _progress(config: ConfigDict, first: int, mesh: Mesh) -> Progress:
    progress = Progress("training", config.train.steps, done=first)
    if line := devices.describe(mesh, config.train.batch_size):
        progress.note(line)
    if first:
        progress.note(f"resuming from the checkpoint of step {first}")
    return progress
