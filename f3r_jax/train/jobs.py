"""Trains and evaluates the runs of a config. A method without training is only evaluated."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from f3r_jax import models
from f3r_jax.common import events, result_folder
from f3r_jax.common.progress import Progress
from f3r_jax.config import is_trained
from f3r_jax.data.datasets import Dataset, open_dataset
from f3r_jax.evaluate import instance
from f3r_jax.evaluate.evaluation import evaluate, folder_of, print_report
from f3r_jax.evaluate.methods import check_untrained
from f3r_jax.train import devices
from f3r_jax.train.batches import check_batches, check_labels
from f3r_jax.train.loop import train
from f3r_jax.train.record import TrainingError
from f3r_jax.train.step import TrainStep, check_settings, compile_train_step
from f3r_jax.workdir.checkpoints import steps
from f3r_jax.workdir.metadata import check_same_run, write_config, write_origin
from f3r_jax.workdir.trained_network import params_from


def train_and_evaluate(runs: dict[Path, ConfigDict], *, argv: Sequence[str], note: str | None, evaluates: bool) -> int:
    """Trains and evaluates runs that may differ in lambda only; returns the exit status.

    Args:
      runs: the config of each run, by its folder.
      argv: the command, for `origin.json`.
      note: printed once all checks have passed.
      evaluates: whether to evaluate the runs after training.

    Raises:
      UserError: a setting or the data is invalid, a folder holds another run or cannot be written, or another process
        writes there. Nothing has been written then.
    """
    with contextlib.ExitStack() as stack:
        if devices.is_main():  # the other processes of a training share its folders
            for workdir in runs:
                stack.enter_context(result_folder.reserved(workdir))
        return _train_and_evaluate(runs, argv=argv, note=note, evaluates=evaluates)


def _train_and_evaluate(runs: dict[Path, ConfigDict], *, argv: Sequence[str], note: str | None, evaluates: bool) -> int:
    """The same in reserved folders."""
    workdirs, configs = list(runs), list(runs.values())
    config = configs[0]
    trained = is_trained(config)
    network = None
    if trained:
        network = _checked_network(configs)
    else:
        check_untrained(config)
    dataset = open_dataset(config.data, seed=config.seed)
    models.check_shape(config.data.shape, "data.shape")
    if trained:
        check_batches(config)
    for workdir, each in runs.items():
        check_same_run(each, workdir)
    init = None if network is None else _initial_params(network, runs)
    for line in (*([note] if note else []), *(f"note: {line}" for line in dataset.notes)):
        events.line(line)
    step_future = None if network is None else compile_in_background(network, configs, workdirs)
    devices.main_first(partial(load_all_cases, dataset))  # so that only one process creates the phantom
    if trained:
        check_labels(dataset, config)
    if devices.is_main():
        for workdir, each in runs.items():
            workdir.mkdir(parents=True, exist_ok=True)
            write_config(each, workdir)
            write_origin(workdir, argv=argv)
    errors: list[TrainingError | None] = [None]
    if network is not None:
        errors = train(network, dataset, configs, workdirs, init=init, step_future=step_future).errors
    for error in filter(None, errors):
        events.error(str(error), status=1)
    for workdir, failed in zip(workdirs, errors, strict=True):
        if failed is None and evaluates:
            print_report(evaluate(workdir, dataset=dataset), folder_of(workdir, refine=False))
    return 1 if any(errors) else 0


def _checked_network(configs: Sequence[ConfigDict]) -> nn.Module:
    """The network of the runs. Raises a UserError for an invalid setting."""
    config = configs[0]
    for each in configs:
        check_settings(each)
    devices.mesh_for(config.train.batch_size)
    network = models.build(config.model, dtype=config.train.dtype)
    instance.settings_of(config.instance)
    instance.network_weight_of(config.instance)
    return network


def _initial_params(network: nn.Module, runs: dict[Path, ConfigDict]) -> dict | None:
    """The parameters that `config.init` names; None if it names none or no run starts from the first step.

    Raises:
      UserError: there is no checkpoint, or it is of another architecture.
    """
    config = next(iter(runs.values()))
    if not config.init or all(steps(workdir) for workdir in runs):
        return None
    params, step = params_from(Path(config.init), network)
    leaves = jax.tree.leaves(params)
    count = sum(leaf.size for leaf in leaves)
    events.line(f"init: {config.init}, step {step}: all {len(leaves)} arrays, {count} parameters")
    return params


def compile_in_background(
    network: nn.Module, configs: Sequence[ConfigDict], workdirs: Sequence[Path]
) -> Future[TrainStep] | None:
    """Starts to compile the training step in another thread; None if all runs are done."""
    if all(max(steps(workdir), default=0) == configs[0].train.steps for workdir in workdirs):
        return None
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile").submit(compile_train_step, network, configs)


def load_all_cases(dataset: Dataset) -> None:
    """Loads every case once, so that invalid data is reported before anything is written."""
    with Progress("reading cases", len(dataset.makers) + len(dataset.painters)) as progress:
        dataset.check(progress.advance)
