"""SyN as one of the systems of a study: the paper's classical rival, evaluated without training."""

import importlib.util

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from f3r_jax.data.datasets import Case
from f3r_jax.errors import UserError
from f3r_jax.ops.warp import warp, warp_nearest
from f3r_jax.peers import Pair, syn
from f3r_jax.predict import Registration, volume

LABEL = "SyN"


def check() -> None:
    """Raises a UserError if ANTsPy is not installed."""
    if importlib.util.find_spec("ants") is None:
        raise UserError("SyN needs ANTsPy, which is not installed: make EXTRAS=baselines, or pip install antspyx")


def register(case: Case, settings: ConfigDict, *, seed: int) -> Registration:
    """Registers one case with the settings of `config.syn`."""
    displacement = syn(Pair(case.fixed, case.moving, case.spacing), settings=settings, seed=seed)
    field, labels = jnp.asarray(displacement)[None], case.moving_labels
    if labels is not None:
        labels = np.asarray(warp_nearest(jnp.asarray(labels)[None, ..., None], field))[0, ..., 0]
    return Registration(displacement, np.asarray(warp(volume(case.moving), field))[0, ..., 0], labels)
