"""Unsupervised training: similarity + lambda x smoothness (Eq. 3), one jitted pure step, resumable to the bit.

Letters: u displacement in voxels of the fixed grid.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from f3r_jax import augment, devices
from f3r_jax.batches import Prepare, batches, source_of
from f3r_jax.data.datasets import Dataset
from f3r_jax.errors import UserError
from f3r_jax.losses import SIMILARITIES, Batch, Objective, Prepared, terms
from f3r_jax.models import initialise
from f3r_jax.ops.fields import folding_percent
from f3r_jax.ops.mind import PRESETS
from f3r_jax.predict import make_predictor
from f3r_jax.progress import Progress
from f3r_jax.record import Follower, Record, TrainingError, open_record
from f3r_jax.shapes import Scalar

DECAYS = ("cosine", "constant")


class State(NamedTuple):
    """What a step changes. `step` counts the steps done."""

    step: jax.Array
    params: dict
    optimiser: optax.OptState


TrainStep = Callable[[State, Batch, Scalar], tuple[State, dict[str, Scalar]]]


def check_settings(config: ConfigDict) -> None:
    """Raises a UserError for a value of `loss`, `optim` or `train` that can't be trained with."""
    positive = {
        "optim.learning_rate": config.optim.learning_rate,
        "optim.clip_norm": config.optim.clip_norm,
        "train.steps": config.train.steps,
        "train.batch_size": config.train.batch_size,
        "train.validate_every": config.train.validate_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.keep_checkpoints": config.train.keep_checkpoints,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"{name} is {value}, expected a number above 0")
    for name, value in {
        "loss.lam": config.loss.lam,
        "loss.epe": config.loss.epe,
        "loss.second_after": config.loss.second_after,
        "optim.warmup_steps": config.optim.warmup_steps,
    }.items():
        if not value >= 0:
            raise UserError(f"{name} is {value}, expected 0 or more")
    for name, value, known in (
        ("loss.mind", config.loss.mind, PRESETS),
        ("loss.similarity", config.loss.similarity, SIMILARITIES),
        ("loss.second_similarity", config.loss.second_similarity, ("", *SIMILARITIES)),
        ("optim.decay", config.optim.decay, DECAYS),
    ):
        if value not in known:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(known)}")
    if not config.loss.second_after <= 1:
        raise UserError(f"loss.second_after is {config.loss.second_after}, expected a part of the steps, 0 to 1")
    augment.of_config(config.augment)
    if objective_of(config.loss, config.train.steps).needs_truth and config.data.source != "synthetic":
        raise UserError('loss.similarity "clean" and loss.epe need the ground truth, expected data.source "synthetic"')


def make_optimiser(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Adam (Sec. 3.1), with linear warm-up, optional cosine decay to zero, and clipping by the global norm."""
    warm, peak = optim.warmup_steps, optim.learning_rate
    if optim.decay == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(steps, warm + 1))
    else:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warm), optax.constant_schedule(peak)], [warm])
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), optax.adam(schedule))


def create_state(network: nn.Module, optimiser: optax.GradientTransformation, seed: int) -> State:
    """The state before the first step."""
    params = initialise(network, jax.random.key(seed))
    return State(jnp.zeros((), jnp.int32), params, optimiser.init(params))


def make_train_step(
    network: nn.Module,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    *,
    prepare: Prepare | None = None,
    together: bool = False,
    mesh: Mesh | None = None,
) -> TrainStep:
    """A jitted function (state, batch, lam) -> (state, metrics). The given state is donated; lam is traced.

    Metrics are scalars: those of `losses.terms`, gradient_norm and folding (percent of voxels). `prepare` makes from a
    loaded batch and the number of the step what it works on (`batches`); without it that is the loaded batch.
    With `together`, parameters, optimiser states, lambdas and metrics have a leading axis, a run each; all have done the
    same number of steps and see the same batch. With a mesh of
    several devices the batch is divided among them (`devices.divided`) and the state is on each (`devices.on_each`).
    """

    def loss_function(
        params: dict, prepared: Prepared, lam: Scalar, step: jax.Array
    ) -> tuple[Scalar, dict[str, Scalar]]:
        u = network.apply({"params": params}, *prepared.given)
        values = terms(objective, prepared, u, lam, step)
        return values["loss"], values | {"folding": folding_percent(jax.lax.stop_gradient(u)).mean()}

    def differentiate(params: dict, batch: Batch | jax.Array, rest: tuple[Scalar, jax.Array]) -> tuple:
        lam, step = rest
        first = devices.first_example(mesh, len(jax.tree.leaves(batch)[0]))
        prepared = Prepared(batch, batch, None) if prepare is None else prepare(batch, step, first)
        return jax.grad(loss_function, has_aux=True)(params, prepared, lam, step)

    # Each device prepares its own share: the partitioner would gather the batch on all of them.
    differentiate_all = differentiate if mesh is None else devices.mean_over(mesh, differentiate)

    def step(state: State, batch: Batch | jax.Array, lam: Scalar) -> tuple[State, dict[str, Scalar]]:
        gradients, metrics = differentiate_all(state.params, batch, (lam, state.step))
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return State(state.step + 1, params, optimiser_state), metrics

    if together:
        # The number of the step has no axis: the choice between two similarities stays a choice.
        states = State(None, 0, 0)
        step = jax.vmap(step, in_axes=(states, None, 0), out_axes=(states, 0))
    return jax.jit(step, donate_argnums=0)


def objective_of(loss: ConfigDict, steps: int) -> Objective:
    """The objective of a training of `steps` steps that `config.loss` describes."""
    return Objective(
        mind=loss.mind,
        similarity=loss.similarity,
        epe=loss.epe,
        second_similarity=loss.second_similarity,
        second_from=round(loss.second_after * steps),
    )


def compiled_step(network: nn.Module, configs: Sequence[ConfigDict]) -> TrainStep:
    """`make_train_step` of one run, or of several that differ in lambda alone, compiled for their volumes.

    Needs no data, so that it can be made while the cases are read.
    """
    config, together = configs[0], len(configs) > 1
    mesh, optimiser = devices.mesh_for(config.train.batch_size), make_optimiser(config.optim, config.train.steps)
    source = source_of(config)
    step = make_train_step(
        network, optimiser, objective_of(config.loss, config.train.steps), prepare=source.prepare, together=together, mesh=mesh
    )
    runs = (len(configs),) if together else ()
    everywhere, shared = devices.on_each_sharding(mesh), devices.divided_sharding(mesh)
    start = jax.eval_shape(lambda: create_state(network, optimiser, config.seed))
    state = State(
        jax.ShapeDtypeStruct((), start.step.dtype, sharding=everywhere),
        *jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(runs + leaf.shape, leaf.dtype, sharding=everywhere), tuple(start[1:])
        ),
    )
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((config.train.batch_size, *leaf.shape), leaf.dtype, sharding=shared),
        source.example,
    )
    lam = jax.ShapeDtypeStruct(runs, jnp.float32, sharding=everywhere)
    return step.lower(state, batch, lam).compile()


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
    lam = devices.on_each(mesh, jnp.asarray(config.loss.lam, jnp.float32))
    record = open_record(config, workdir, dataset, make_predictor(network))
    try:
        first = int(devices.from_main(max(record.steps(), default=0)))
        state = devices.from_main(_state_of(record, create_state(network, optimiser, config.seed), first))
        with _progress(config, first, mesh) as progress:
            record.begin(first, state.params, progress)
            state = devices.on_each(mesh, state)
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
    lams = devices.on_each(mesh, jnp.asarray([config.loss.lam for config in configs], jnp.float32))
    predict = make_predictor(network)
    runs = [f"lambda {config.loss.lam:g}" for config in configs]
    records = [open_record(*of_run, dataset, predict) for of_run in zip(configs, workdirs, strict=True)]
    errors: list[TrainingError | None] = [None] * count
    try:
        first = int(devices.from_main(max(set.intersection(*(set(record.steps()) for record in records)), default=0)))
        start = create_state(network, optimiser, config.seed)
        states = [devices.from_main(_state_of(record, start, first)) for record in records]
        with _progress(config, first, mesh) as progress:
            for record, state, run in zip(records, states, runs, strict=True):
                record.begin(first, state.params, progress, label=f"{run}: ")
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(tuple(state[1:]) for state in states))
            together = devices.on_each(mesh, State(states[0].step, *stacked))
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
    return compiled_step(network, configs) if ahead is None else ahead.result()


def _add(
    record: Record | Follower, names: Sequence[str], metrics: dict, together: State, n: int
) -> TrainingError | None:
    """Adds a step to the record of the n-th of the runs that are trained together; returns the error that ends it."""

    def state() -> tuple[dict, optax.OptState]:
        return jax.tree.map(lambda leaf: leaf[n], _kept(together))

    try:
        record.add(int(together.step), names, metrics, state)
    except TrainingError as error:
        return error
    return None


def _state_of(record: Record | Follower, start: State, step: int) -> State:
    """The state after `step` steps: `start`, or what the run's checkpoint holds."""
    if step == 0:
        return start
    return State(jnp.asarray(step, jnp.int32), *record.restore(step, start.params, start.optimiser))


def _kept(state: State) -> tuple[dict, optax.OptState]:
    """What a checkpoint holds."""
    return devices.here((state.params, state.optimiser))


def _progress(config: ConfigDict, first: int, mesh: Mesh) -> Progress:
    progress = Progress("training", config.train.steps, done=first)
    if line := devices.describe(mesh, config.train.batch_size):
        progress.note(line)
    if first:
        progress.note(f"resuming from the checkpoint of step {first}")
    return progress
