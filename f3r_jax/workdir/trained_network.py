"""A trained network for registration, loaded once for all pairs and devices of a process."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from f3r_jax import models
from f3r_jax.common.errors import UserError
from f3r_jax.config import SYNTHETIC
from f3r_jax.ops.shapes import Displacement, Volume
from f3r_jax.ops.warp import warp
from f3r_jax.workdir import checkpoints, weights

Predictor = Callable[[dict, Volume, Volume], tuple[Displacement, Volume]]
Loaded = tuple[nn.Module, dict, ConfigDict, int]  # network, parameters, config, step


class Network(NamedTuple):
    """A trained network. `predict` is compiled once per size of the volumes."""

    predict: Predictor
    params: dict
    config: ConfigDict
    step: int
    source: Path

    @property
    def any_modality(self) -> bool:
        """Whether either scan may be of any modality: the training was on synthetic pairs of all kinds of contrasts."""
        return self.config.data.source == SYNTHETIC

    def on(self, device: jax.Device) -> "Network":
        """The same network with its parameters on `device`."""
        return self._replace(params=jax.device_put(self.params, device))


def load(source: Path, step: int | None = None) -> Network:
    """The network of a run's checkpoint of `step`, or of the newest checkpoint, or of a file of weights.

    Raises:
      UserError: the checkpoint or file does not exist or does not match its config.
    """
    network, params, config, found = load_network(source, step)
    return Network(make_predictor(network), params, config, found, source)


def load_network(source: Path, step: int | None = None) -> Loaded:
    """(network, parameters, config, step) of a run's checkpoint of `step`, or of the newest checkpoint.

    `source` may also be a file of `workdir/weights.py`, which holds one step, or `weights.BUILTIN`.

    Raises:
      UserError: the checkpoint or file does not exist or does not match its config.
    """
    file = weights.BUILTIN_FILE if str(source) == weights.BUILTIN else source
    if file.suffix == weights.SUFFIX:
        params, config, found = weights.read(file)
        if step not in (None, found):
            raise UserError(f"{source}: holds step {found}, expected step {step}")
        network = _built(config)
        if file != weights.BUILTIN_FILE:  # the shapes take 0.5 s, and a test compares those of this file
            weights.check_architecture(source, params, _shapes_of(network))
        return network, params, config, found
    checkpoint = checkpoints.find(source, step)
    config = checkpoints.load_config(checkpoint)
    network = _built(config)
    return network, checkpoints.load_params(checkpoint, _shapes_of(network)), config, int(checkpoint.name)


def params_from(source: Path, network: nn.Module) -> tuple[dict, int]:
    """(parameters, step) of a run's newest checkpoint or of a file of weights, for `network`.

    Raises:
      UserError: the checkpoint or file does not exist, or is of another architecture.
    """
    _, params, _, step = load_network(source)
    weights.check_architecture(source, params, _shapes_of(network))
    return params, step


def _built(config: ConfigDict) -> nn.Module:
    return models.build(config.model, dtype=config.train.dtype)


def _shapes_of(network: nn.Module) -> dict:
    """The shapes of the network's parameters."""
    return jax.eval_shape(lambda key: models.initialise(network, key), jax.random.key(0))


def make_predictor(network: nn.Module) -> Predictor:
    """A jitted function (params, moving, fixed) -> (displacement, warped moving)."""

    @jax.jit
    def predict(params: dict, moving: Volume, fixed: Volume) -> tuple[Displacement, Volume]:
        displacement = cast(Displacement, network.apply({"params": params}, moving, fixed))
        return displacement, warp(moving, displacement)

    return predict
