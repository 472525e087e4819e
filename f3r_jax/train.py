"""Unsupervised training: similarity + lambda x smoothness (Eq. 3), one jitted pure step, resumable to the bit.

Letters: u displacement in voxels of the fixed grid. A batch depends on (seed, step) alone, so that a run which was
killed and started again sees the batches it would have seen.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from f3r_jax.checkpoints import Checkpoints
from f3r_jax.data.datasets import Dataset, organs_of
from f3r_jax.errors import UserError
from f3r_jax.losses import gradient_l2, mind_l1
from f3r_jax.metrics import organ_scores
from f3r_jax.models import initialise
from f3r_jax.ops.fields import folding_percent
from f3r_jax.ops.mind import PRESETS
from f3r_jax.ops.warp import warp
from f3r_jax.predict import Predictor, make_predictor, register
from f3r_jax.progress import Progress
from f3r_jax.shapes import Scalar, Volume

DECAYS = ("cosine", "constant")
FOLDING_LIMIT = 0.5  # percent of voxels; a field that folds more is no deformation of a body
AGAINST_FOLDING = "raise loss.lam or lower optim.learning_rate"


class Batch(NamedTuple):
    """Volumes of one step, in [0, 1]."""

    moving: Volume
    fixed: Volume


class State(NamedTuple):
    """What a step changes. `step` counts the steps done."""

    step: jax.Array
    params: dict
    optimiser: optax.OptState


class TrainingError(Exception):
    """The run can't go on; the message names the step and the cases."""


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
    for name, value in {"loss.lam": config.loss.lam, "optim.warmup_steps": config.optim.warmup_steps}.items():
        if not value >= 0:
            raise UserError(f"{name} is {value}, expected 0 or more")
    for name, value, known in (("loss.mind", config.loss.mind, PRESETS), ("optim.decay", config.optim.decay, DECAYS)):
        if value not in known:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(known)}")


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


def make_train_step(network: nn.Module, optimiser: optax.GradientTransformation, *, mind: str):
    """A jitted function (state, batch, lam) -> (state, metrics). The given state is donated; lam is traced.

    Metrics are scalars: loss, similarity, smoothness, gradient_norm and folding (percent of voxels).
    """

    def loss_function(params: dict, batch: Batch, lam: Scalar) -> tuple[Scalar, dict[str, Scalar]]:
        u = network.apply({"params": params}, batch.moving, batch.fixed)
        similarity = mind_l1(batch.fixed, warp(batch.moving, u), preset=mind)
        smoothness = gradient_l2(u)
        loss = similarity + lam * smoothness
        folding = folding_percent(jax.lax.stop_gradient(u)).mean()
        return loss, {"loss": loss, "similarity": similarity, "smoothness": smoothness, "folding": folding}

    def step(state: State, batch: Batch, lam: Scalar) -> tuple[State, dict[str, Scalar]]:
        gradients, metrics = jax.grad(loss_function, has_aux=True)(state.params, batch, lam)
        updates, optimiser_state = optimiser.update(gradients, state.optimiser, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return State(state.step + 1, params, optimiser_state), metrics

    return jax.jit(step, donate_argnums=0)


def batch_names(names: tuple[str, ...], *, seed: int, step: int, size: int) -> list[str]:
    """The cases of one step: each epoch goes through a new permutation of all of them."""
    first = step * size
    return [names[_order(seed, n // len(names), len(names))[n % len(names)]] for n in range(first, first + size)]


def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def load_batch(dataset: Dataset, names: list[str]) -> Batch:
    """Stacks the volumes of the named cases and sends them to the device."""
    cases = [dataset.load(name) for name in names]
    moving, fixed = (np.stack([getattr(case, side) for case in cases])[..., None] for side in ("moving", "fixed"))
    return Batch(jnp.asarray(moving), jnp.asarray(fixed))


def batches(dataset: Dataset, config: ConfigDict, first: int) -> Iterator[tuple[list[str], Batch]]:
    """(names, batch) of the steps from `first` on; the next batch is loaded while the current one is used."""

    def load(step: int) -> tuple[list[str], Batch]:
        names = batch_names(dataset.split["train"], seed=config.seed, step=step, size=config.train.batch_size)
        return names, load_batch(dataset, names)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        ahead = pool.submit(load, first)
        for step in range(first, config.train.steps):
            batch = ahead.result()
            if step + 1 < config.train.steps:
                ahead = pool.submit(load, step + 1)
            yield batch


class Log:
    """`metrics.jsonl`, one row a step or validation, and the same curves for TensorBoard.

    Rows hold nothing that differs between two runs of the same config, so they can be compared to the bit. On resuming,
    rows after the checkpoint are dropped, without one all of them: their steps are done again.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self._path) if row["step"] <= step] if step else []
        beside = self._path.with_suffix(".tmp")
        beside.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(beside, self._path)
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


def validate(
    predict: Predictor, params: dict, dataset: Dataset, organs: dict[str, tuple[int, ...]]
) -> dict[str, float]:
    """Mean Dice over organs, each organ's Dice and folding, in percent, over the validation cases that have labels."""
    scores = {}
    for name in dataset.split["validation"]:
        case = dataset.load(name)
        result = register(predict, params, case)
        scores.setdefault("folding", []).append(float(folding_percent(jnp.asarray(result.displacement)[None])[0]))
        if case.fixed_labels is None or result.warped_labels is None:
            continue
        of_organs = organ_scores(case.fixed_labels, result.warped_labels, organs=organs, spacing=case.spacing)
        dices = {organ: score["dice"] for organ, score in of_organs.items() if np.isfinite(score["dice"])}
        if dices:  # an organ that neither volume holds has no Dice
            scores.setdefault("dice", []).append(float(np.mean(list(dices.values()))))
        for organ, dice in dices.items():
            scores.setdefault(f"dice_{organ}", []).append(dice)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def train(network: nn.Module, dataset: Dataset, config: ConfigDict, workdir: Path) -> State:
    """Trains to `config.train.steps` steps, from the newest checkpoint in `workdir` if there is one.

    Raises:
      TrainingError: the loss is not finite; the last good checkpoint stays.
    """
    optimiser = make_optimiser(config.optim, config.train.steps)
    state = create_state(network, optimiser, config.seed)
    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
    first = checkpoints.latest() or 0
    if first:
        params, optimiser_state = checkpoints.restore(first, state.params, state.optimiser)
        state = State(jnp.asarray(first, jnp.int32), params, optimiser_state)
    log = Log(workdir, first)
    try:
        with Progress("training", config.train.steps, done=first) as progress:
            if first:
                progress.note(f"resuming from the checkpoint of step {first}")
            return _loop(network, optimiser, state, dataset, config, checkpoints, log, progress)
    finally:
        log.close()
        checkpoints.close()


def _loop(network, optimiser, state, dataset, config, checkpoints, log, progress) -> State:
    step_function = make_train_step(network, optimiser, mind=config.loss.mind)
    predict = make_predictor(network)
    organs = organs_of(config.data)
    lam = jnp.asarray(config.loss.lam, jnp.float32)

    def look(step: int) -> None:
        values = validate(predict, state.params, dataset, organs)
        if values:
            log.write({"step": step, "kind": "validation", **values})
            progress.note(_validation_line(step, values))

    if int(state.step) == 0:
        look(0)
    for names, batch in batches(dataset, config, int(state.step)):
        state, metrics = step_function(state, batch, lam)
        step = int(state.step)
        row = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite(row["loss"]) or not np.isfinite(row["gradient_norm"]):
            raise TrainingError(
                f"the loss is not finite at step {step} (case {', '.join(names)}: loss {row['loss']}, gradient norm "
                f"{row['gradient_norm']}); the checkpoint of step {checkpoints.latest() or 0} is the last good one"
            )
        log.write({"step": step, "kind": "train", **row})
        progress.advance(loss=row["loss"])
        last = step == config.train.steps
        if last or step % config.train.validate_every == 0:
            look(step)
        if last or step % config.train.checkpoint_every == 0:
            checkpoints.save(step, state.params, state.optimiser, config)
    return state


def _validation_line(step: int, values: dict[str, float]) -> str:
    shown = ", ".join(f"{name} {values[name]:.2f} %" for name in ("dice", "folding") if name in values)
    line = f"step {step}: validation {shown}"
    if values["folding"] > FOLDING_LIMIT:
        line += f"  WARNING: over {FOLDING_LIMIT} % of voxels fold; {AGAINST_FOLDING}"
    return line
