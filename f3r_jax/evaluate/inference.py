"""From parameters and a case to a displacement, a warped volume and warped labels."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from f3r_jax.workdir import checkpoints
from f3r_jax import models
from f3r_jax.data.datasets import Case
from f3r_jax.ops.warp import warp, warp_nearest
from f3r_jax.ops.shapes import Displacement, Volume

Predictor = Callable[[dict, Volume, Volume], tuple[Displacement, Volume]]
Loaded = tuple[nn.Module, dict, ConfigDict, int]  # network, parameters, config, step


class Registration(NamedTuple):
    """The result for one case, on the fixed grid."""

    displacement: Float[np.ndarray, "x y z 3"]  # voxels
    warped: Float[np.ndarray, "x y z"]
    warped_labels: np.ndarray | None  # (x y z), the dtype of the moving labels


def load_network(workdir: Path, step: int | None = None) -> Loaded:
    """(network, parameters, config, step) of a run's checkpoint of `step`, or of the newest.

    Raises:
      UserError: no such checkpoint, or it doesn't fit its config.
    """
    checkpoint = checkpoints.find(workdir, step)
    config = checkpoints.load_config(checkpoint)
    network = models.build(config.model, dtype=config.train.dtype)
    shapes = jax.eval_shape(lambda key: models.initialise(network, key), jax.random.key(0))
    return network, checkpoints.load_params(checkpoint, shapes), config, int(checkpoint.name)


def make_predictor(network: nn.Module) -> Predictor:
    """A jitted function (params, moving, fixed) -> (displacement, warped moving)."""

    @jax.jit
    def predict(params: dict, moving: Volume, fixed: Volume) -> tuple[Displacement, Volume]:
        displacement = network.apply({"params": params}, moving, fixed)
        return displacement, warp(moving, displacement)

    return predict


_warp = jax.jit(warp)
_warp_nearest = jax.jit(warp_nearest)


def volume(array: Float[np.ndarray, "x y z"]) -> Volume:
    """(x y z) -> (1 x y z 1) on the device."""
    return jnp.asarray(array)[None, ..., None]


def register(predict: Predictor, params: dict, case: Case) -> Registration:
    """Registers one case."""
    displacement, warped = predict(params, volume(case.moving), volume(case.fixed))
    labels = _warp_labels(case.moving_labels, displacement)
    return Registration(np.asarray(displacement)[0], np.asarray(warped)[0, ..., 0], labels)


def apply_displacement(case: Case, displacement: Float[np.ndarray, "x y z 3"]) -> Registration:
    """What a known displacement makes of a case."""
    warped = _warp(volume(case.moving), jnp.asarray(displacement)[None])
    return Registration(displacement, np.asarray(warped)[0, ..., 0], warp_labels(case.moving_labels, displacement))


def warp_labels(labels: np.ndarray | None, displacement: Float[np.ndarray, "x y z 3"]) -> np.ndarray | None:
    """Labels (x y z) moved by a displacement; None stays None."""
    return _warp_labels(labels, jnp.asarray(displacement)[None])


def _warp_labels(labels: np.ndarray | None, displacement: Displacement) -> np.ndarray | None:
    if labels is None:
        return None
    return np.asarray(_warp_nearest(jnp.asarray(labels)[None, ..., None], displacement))[0, ..., 0]
