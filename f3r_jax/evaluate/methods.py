"""The methods that can be evaluated: a network from a checkpoint, or a method without training."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from f3r_jax import models
from f3r_jax.common.errors import UserError
from f3r_jax.config import INSTANCE, SYN, is_trained
from f3r_jax.data.cases import Case
from f3r_jax.evaluate import instance, syn
from f3r_jax.evaluate.inference import Registration, register_case
from f3r_jax.ops.instance_optimisation import Refinement
from f3r_jax.workdir.metadata import CONFIG_FILE, read_config
from f3r_jax.workdir.trained_network import load_network, make_predictor

UNTRAINED = {SYN: syn.LABEL, INSTANCE: instance.LABEL}


class Method(NamedTuple):
    """A way to register a case."""

    label: str
    config: ConfigDict
    register: Callable[[Case], Registration]
    parameters: int  # number of trained parameters
    step: int | None  # of the checkpoint; None for a method that is not trained
    compiles: bool

    @property
    def trained(self) -> bool:
        """Whether it is a network."""
        return self.step is not None


def open_method(workdir: Path, step: int | None = None, *, refine: bool = False) -> Method:
    """Opens the method of a run: a network from its checkpoint, or a method without training from the config.

    The checkpoint is that of `step`, or the newest. With `refine` an instance optimisation with the settings
    `config.instance` starts from the network's prediction.

    Raises:
      UserError: no such run or checkpoint, it doesn't fit its config, or a package is missing.
    """
    # A method without checkpoints is read from `config.json`; a network's checkpoint contains its config.
    if (workdir / CONFIG_FILE).is_file() and not is_trained(config := read_config(workdir)):
        label = UNTRAINED[config.model.name]
        if step is not None:
            raise UserError(f"{workdir}: {label} is not trained, expected no --step")
        if refine:
            raise UserError(f"{workdir}: {label} is not trained, expected no --refine")
        return _untrained(config)
    network, params, config, step = load_network(workdir, step)
    label, register = models.label(config.model), partial(register_case, make_predictor(network), params)
    if refine:
        label = f"{label} + {instance.LABEL}"
        weight = instance.network_weight_of(config.instance)
        register = partial(_predict_and_optimise, register, instance.settings_of(config.instance), weight)
    return Method(label, config, register, models.count_parameters(network), step, compiles=True)


def check_untrained(config: ConfigDict) -> None:
    """Raises a UserError if a method without training can't run: a package is missing or a setting is invalid."""
    _untrained(config)


def _untrained(config: ConfigDict) -> Method:
    name = config.model.name
    if name == SYN:
        syn.require_ants()
        register = partial(syn.register_case, settings=config.syn, seed=config.seed)
    else:
        register = partial(instance.optimise_case, settings=instance.settings_of(config.instance))
    return Method(UNTRAINED[name], config, register, parameters=0, step=None, compiles=name == INSTANCE)


def _predict_and_optimise(
    predict: Callable[[Case], Registration], settings: Refinement, network_weight: float, case: Case
) -> Registration:
    return instance.optimise_case(case, settings, start=predict(case).displacement, network_weight=network_weight)
