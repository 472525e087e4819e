"""The training step: similarity + lambda x smoothness (Eq. 3) as one jitted pure function."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.config import SYNTHETIC
from f3r_jax.models import initialise
from f3r_jax.ops.fields import folding_percent
from f3r_jax.ops.losses import SIMILARITIES, Batch, Objective, Prepared, terms
from f3r_jax.ops.mind import PRESETS
from f3r_jax.ops.shapes import Displacement, Scalar
from f3r_jax.train import augment, devices
from f3r_jax.train.batches import Prepare, source_of

DECAYS = ("cosine", "constant")


class State(NamedTuple):
    """The state of a training. `step` is the number of completed steps."""

    step: jax.Array
    params: dict
    optimiser: optax.OptState


TrainStep = Callable[[State, Batch, Scalar], tuple[State, dict[str, Scalar]]]


def check_settings(config: ConfigDict) -> None:
    """Raises a UserError for an invalid value of `loss`, `optim`, `train` or `augment`."""
    positive = {
        "optim.learning_rate": config.optim.learning_rate,
        "optim.clip_norm": config.optim.clip_norm,
        "train.batch_size": config.train.batch_size,
        "train.validate_every": config.train.validate_every,
        "train.checkpoint_every": config.train.checkpoint_every,
        "train.keep_checkpoints": config.train.keep_checkpoints,
    }
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise UserError(f"{name} is {value}, expected a number above 0")
    if not (0 if config.init else 1) <= config.train.steps < math.inf:
        raise UserError(f"train.steps is {config.train.steps}, expected a number above 0, or 0 to evaluate config.init")
    for name, value in {
        "loss.lam": config.loss.lam,
        "loss.epe": config.loss.epe,
        "loss.labels_weight": config.loss.labels_weight,
        "loss.second_after": config.loss.second_after,
        "optim.warmup_steps": config.optim.warmup_steps,
    }.items():
        if not 0 <= value < math.inf:
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
        raise UserError(f"loss.second_after is {config.loss.second_after}, expected a fraction of the steps, 0 to 1")
    augment.of_config(config.augment)
    if config.loss.labels_weight > 0 and config.data.source == SYNTHETIC:
        raise UserError('loss.labels_weight needs label maps of pairs, expected data.source "phantom" or "nifti"')
    if objective_of(config.loss, config.train.steps).needs_truth and config.data.source != SYNTHETIC:
        raise UserError('loss.similarity "clean" and loss.epe need the ground truth, expected data.source "synthetic"')


def make_optimiser(optim: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Adam (Sec. 3.1), with linear warm-up, optional cosine decay to zero, and clipping by the global norm."""
    warm, peak = optim.warmup_steps, optim.learning_rate
    if optim.decay == "cosine":
        schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warm, max(steps, warm + 1))
    else:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warm), optax.constant_schedule(peak)], [warm])
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), optax.adam(schedule))


def create_state(
    network: nn.Module, optimiser: optax.GradientTransformation, seed: int, params: dict | None = None
) -> State:
    """The state before the first step. Without `params` the parameters are random."""
    if params is None:
        params = initialise(network, jax.random.key(seed))
    return State(jnp.zeros((), jnp.int32), params, optimiser.init(params))


def unchanged(batch: Batch, step: jax.Array, first: jax.Array | int) -> Prepared:
    """Prepares nothing: the loaded batch is the input of the step."""
    return Prepared(batch, batch, None)


def make_train_step(
    network: nn.Module,
    optimiser: optax.GradientTransformation,
    objective: Objective,
    *,
    prepare: Prepare = unchanged,
    together: bool = False,
    mesh: Mesh | None = None,
) -> jax.stages.Wrapped:
    """A jitted function (state, batch, lam) -> (state, metrics). The given state is donated; lam is traced.

    Metrics are scalars: those of `losses.terms`, gradient_norm and folding (percent of voxels). `prepare` converts a
    loaded batch to the input of the step (`batches`); without it, the loaded batch is the input.

    With `together`, parameters, optimiser states, lambdas and metrics have a first axis with one entry per run. All
    runs are at the same step and use the same batch. With a mesh of several devices, the batch is divided among them
    (`devices.divided_sharding`) and each of them has the whole state (`devices.on_each_sharding`).
    """

    def loss_function(
        params: dict, prepared: Prepared, lam: Scalar, step: jax.Array
    ) -> tuple[Scalar, dict[str, Scalar]]:
        u = cast(Displacement, network.apply({"params": params}, *prepared.given))
        values = terms(objective, prepared, u, lam, step)
        return values["loss"], values | {"folding": folding_percent(jax.lax.stop_gradient(u)).mean()}

    def differentiate(params: dict, batch: Batch | jax.Array, rest: tuple[Scalar, jax.Array]) -> tuple:
        lam, step = rest
        first = devices.first_example(mesh, len(jax.tree.leaves(batch)[0]))
        prepared = prepare(batch, step, first)
        return jax.grad(loss_function, has_aux=True)(params, prepared, lam, step)

    # Each device prepares its own share. Otherwise JAX's partitioner would gather the whole batch on every device.
    differentiate_all = differentiate if mesh is None else devices.data_parallel(mesh, differentiate)

    def step(state: State, batch: Batch | jax.Array, lam: Scalar) -> tuple[State, dict[str, Scalar]]:
        gradients, metrics = differentiate_all(state.params, batch, (lam, state.step))
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return State(state.step + 1, params, optimiser_state), metrics

    if together:
        # `step` has no axis for the runs, so that only the selected similarity is computed.
        states = State._make([None, 0, 0])
        step = jax.vmap(step, in_axes=(states, None, 0), out_axes=(states, 0))
    return jax.jit(step, donate_argnums=0)


def objective_of(loss: ConfigDict, steps: int) -> Objective:
    """The objective that `config.loss` describes, for a training of `steps` steps."""
    return Objective(
        mind=loss.mind,
        similarity=loss.similarity,
        epe=loss.epe,
        labels_weight=loss.labels_weight,
        second_similarity=loss.second_similarity,
        second_from=round(loss.second_after * steps),
    )


def compile_train_step(network: nn.Module, configs: Sequence[ConfigDict]) -> TrainStep:
    """Compiles the training step of one run, or of several runs that differ in lambda only.

    It needs no data, so it can run while the cases are loaded.
    """
    config, together = configs[0], len(configs) > 1
    mesh, optimiser = devices.mesh_for(config.train.batch_size), make_optimiser(config.optim, config.train.steps)
    source = source_of(config)
    step = make_train_step(
        network,
        optimiser,
        objective_of(config.loss, config.train.steps),
        prepare=source.prepare,
        together=together,
        mesh=mesh,
    )
    runs = (len(configs),) if together else ()
    everywhere, shared = devices.on_each_sharding(mesh), devices.divided_sharding(mesh)
    start = jax.eval_shape(lambda: create_state(network, optimiser, config.seed))
    of_runs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(runs + leaf.shape, leaf.dtype, sharding=everywhere), tuple(start[1:])
    )
    state = State._make([jax.ShapeDtypeStruct((), start.step.dtype, sharding=everywhere), *of_runs])
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((config.train.batch_size, *leaf.shape), leaf.dtype, sharding=shared),
        source.example,
    )
    lam = jax.ShapeDtypeStruct(runs, jnp.float32, sharding=everywhere)
    return step.lower(state, batch, lam).compile()
