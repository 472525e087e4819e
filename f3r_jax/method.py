"""What is evaluated: a network from a checkpoint, or a classical method."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from f3r_jax import models, syn
from f3r_jax.data.datasets import Case
from f3r_jax.defaults import trains
from f3r_jax.errors import UserError
from f3r_jax.predict import Registration, load_network, make_predictor, register
from f3r_jax.workdir import CONFIG_FILE, read_config


class Method(NamedTuple):
    """A way to register a case."""

    label: str
    config: ConfigDict
    register: Callable[[Case], Registration]
    parameters: int  # that were trained
    step: int | None  # of the checkpoint; None for a method that is not trained
    compiles: bool

    @property
    def trained(self) -> bool:
        """Whether it is a network."""
        return self.step is not None


def open_method(workdir: Path, step: int | None = None) -> Method:
    """The method of a run: from its checkpoint of `step`, or the newest; SyN from its config.

    Raises:
      UserError: no such run or checkpoint, it doesn't fit its config, or a package is missing.
    """
    # The config of a run is read for a method without checkpoints; those of a network hold their own.
    if (workdir / CONFIG_FILE).is_file() and not trains(config := read_config(workdir)):
        if step is not None:
            raise UserError(f"{workdir}: SyN is not trained, expected no --step")
        syn.check()
        register_with_syn = partial(syn.register, settings=config.syn, seed=config.seed)
        return Method(syn.LABEL, config, register_with_syn, parameters=0, step=None, compiles=False)
    network, params, config, step = load_network(workdir, step)
    return Method(
        models.label(config.model),
        config,
        partial(register, make_predictor(network), params),
        parameters=models.count_parameters(network),
        step=step,
        compiles=True,
    )
