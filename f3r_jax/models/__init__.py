"""The registration networks, by their names in configs."""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.models.diffeomorphic import Diffeomorphic
from f3r_jax.models.f3rnet import COARSEST, VARIANTS, F3RNet
from f3r_jax.models.faim import FAIM
from f3r_jax.models.voxelmorph import DECODERS, VoxelMorph

SMALLEST = 2**COARSEST  # voxels along each axis: one voxel of the coarsest scale

NETWORKS: dict[str, Callable[[ConfigDict], Callable[..., nn.Module]]] = {
    "f3rnet": lambda model: partial(F3RNet, factorisation=VARIANTS[model.variant], remat=model.remat),
    "faim": lambda model: FAIM,
    **dict.fromkeys(DECODERS, lambda model: partial(VoxelMorph, DECODERS[model.name])),
}
LABELS = {"faim": "FAIM", "voxelmorph1": "VoxelMorph-1", "voxelmorph2": "VoxelMorph-2"}


DTYPES = ("float32", "bfloat16")


def build(model: ConfigDict, *, dtype: str = "float32") -> nn.Module:
    """The network that `config.model` describes; its `apply` takes params, moving, fixed and returns the displacement.

    Args:
      model: `config.model`.
      dtype: type of the features; parameters and displacement are always float32.

    Raises:
      UserError: the network, variant or type is unknown.
    """
    if model.name not in NETWORKS:
        raise UserError(f"model.name is {model.name!r}, expected one of {', '.join(NETWORKS)}")
    if model.name == "f3rnet" and model.variant not in VARIANTS:
        raise UserError(f"model.variant is {model.variant!r}, expected one of {', '.join(VARIANTS)}")
    if dtype not in DTYPES:
        raise UserError(f"train.dtype is {dtype!r}, expected one of {', '.join(DTYPES)}")
    network = NETWORKS[model.name](model)(flow_init=model.flow_init, dtype=dtype)
    return Diffeomorphic(network) if model.diffeomorphic else network


def label(model: ConfigDict) -> str:
    """The name of the network in tables and figures."""
    name = VARIANTS[model.variant].label if model.name == "f3rnet" else LABELS[model.name]
    return f"{name}, diffeomorphic" if model.diffeomorphic else name


def initialise(network: nn.Module, key: jax.Array) -> dict:
    """Initial parameters. Their shapes do not depend on the size of the volume."""
    volume = jax.ShapeDtypeStruct((1, *(SMALLEST,) * 3, 1), jnp.float32)
    return network.lazy_init(key, volume, volume, mutable=["params"])["params"]  # without computing a displacement


def count_parameters(network: nn.Module) -> int:
    """The number of trained parameters, without computing their values."""
    shapes = jax.eval_shape(lambda key: initialise(network, key), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def check_shape(shape: tuple[int, ...], origin: str) -> None:
    """Raises a UserError if a volume is too small for the coarsest scale."""
    if min(shape) < SMALLEST:
        size = " x ".join(map(str, shape))
        raise UserError(
            f"{origin}: {size} voxels are too small for the network, expected at least {SMALLEST} along each axis"
        )
