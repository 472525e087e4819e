"""Registers a case with a network: displacement, warped volume and warped labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from f3r_jax.data.cases import Case
from f3r_jax.ops.shapes import Displacement, as_volume
from f3r_jax.ops.warp import warp, warp_nearest
from f3r_jax.workdir.trained_network import Predictor


class Registration(NamedTuple):
    """The result for one case, on the fixed grid."""

    displacement: Float[np.ndarray, "x y z 3"]  # voxels
    warped: Float[np.ndarray, "x y z"]
    warped_labels: np.ndarray | None  # (x y z), the dtype of the moving labels


_warp = jax.jit(warp)
_warp_nearest = jax.jit(warp_nearest)


def register_case(predict: Predictor, params: dict, case: Case) -> Registration:
    """Registers one case with a network."""
    displacement, warped = predict(params, as_volume(case.moving), as_volume(case.fixed))
    labels = _warp_labels(case.moving_labels, displacement)
    return Registration(np.asarray(displacement)[0], np.asarray(warped)[0, ..., 0], labels)


def apply_displacement(case: Case, displacement: Float[np.ndarray, "x y z 3"]) -> Registration:
    """Warps the volume and the labels of a case by a known displacement."""
    warped = _warp(as_volume(case.moving), jnp.asarray(displacement)[None])
    return Registration(displacement, np.asarray(warped)[0, ..., 0], warp_labels(case.moving_labels, displacement))


def warp_labels(labels: np.ndarray | None, displacement: Float[np.ndarray, "x y z 3"]) -> np.ndarray | None:
    """Warps labels (x y z) by a displacement, nearest voxel; None stays None."""
    return _warp_labels(labels, jnp.asarray(displacement)[None])


def _warp_labels(labels: np.ndarray | None, displacement: Displacement) -> np.ndarray | None:
    if labels is None:
        return None
    return np.asarray(_warp_nearest(jnp.asarray(labels)[None, ..., None], displacement))[0, ..., 0]
