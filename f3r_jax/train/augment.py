"""Random changes of a batch on the device: the moving volume is deformed, and the network gets changed intensities.

The loss compares the unchanged intensities. With the changed ones, a network could lower the loss by a displacement of
a fraction of a voxel everywhere, because the interpolation of the warp then removes the added noise.
Every change is a pure function of a key, so a resumed run repeats the same changes. `config.augment` sets the
strengths; 0 turns a change off. Letters: b batch, x y z voxels.
"""

import math
from dataclasses import dataclass, fields
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.ops.losses import Batch
from f3r_jax.ops.random_fields import smooth_noise
from f3r_jax.ops.shapes import Volume, total
from f3r_jax.ops.warp import warp

DEFORMATION_INTERVALS = ((4, 1.0), (8, 0.5))  # intervals of knots along the longest axis, and weight of each field
BIAS_INTERVALS = 2


@dataclass(frozen=True)
class Augmentation:
    """Strength of each change: its maximum, or its standard deviation (SD) if it is normally distributed."""

    deformation: float  # mm, SD of the smooth displacement, uniform between 0 and this
    rotation: float  # degrees, SD about each axis
    scaling: float  # SD of the logarithm of the size along each axis
    shift: float  # mm, SD along each axis
    gamma: float  # SD of the logarithm of the exponent
    bias: float  # SD of the logarithm of a smooth factor, uniform between 0 and this
    noise: float  # SD of the noise, uniform between 0 and this; intensities are in [0, 1]
    blur: float  # weight of a mean over 3 x 3 x 3 voxels, uniform between 0 and this

    @property
    def moves(self) -> bool:
        """Whether the moving volume is deformed."""
        return max(self.deformation, self.rotation, self.scaling, self.shift) > 0

    @property
    def repaints(self) -> bool:
        """Whether intensities are changed."""
        return max(self.gamma, self.bias, self.noise, self.blur) > 0


def of_config(section: ConfigDict) -> Augmentation:
    """The settings of `config.augment`; UserError for a strength below 0 or not finite, or a blur above 1."""
    for key, value in section.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"augment.{key} is {value}, expected a number of 0 or more")
    if section.blur > 1:
        raise UserError(f"augment.blur is {section.blur}, expected a share from 0 to 1")
    return Augmentation(**{field.name: float(section[field.name]) for field in fields(Augmentation)})


def augment(
    keys: Array, batch: Batch, settings: Augmentation, *, spacing: tuple[float, float, float]
) -> tuple[Batch, Batch]:
    """The batch for the network and the batch for the loss. `keys` has one key per example; `spacing` is in mm."""
    batch = batch._replace(moving=moved(keys, batch.moving, settings, spacing=spacing))
    keys = jax.vmap(partial(jax.random.split, num=3))(keys)  # b 3
    if not settings.repaints:
        return batch, batch
    repaint = jax.vmap(partial(repainted, settings=settings))
    return Batch(repaint(keys[:, 1], batch.moving), repaint(keys[:, 2], batch.fixed)), batch


def moved(keys: Array, moving: Volume, settings: Augmentation, *, spacing: tuple[float, float, float]) -> Volume:
    """The moving volumes, or their one-hot labels, after the random deformations of `augment` with these keys."""
    if not settings.moves:
        return moving
    keys = jax.vmap(partial(jax.random.split, num=3))(keys)
    draw = partial(random_displacement, shape=moving.shape[1:4], settings=settings, spacing=spacing)
    return warp(moving, jax.vmap(draw)(keys[:, 0]))


def random_displacement(
    key: Array, *, shape: tuple[int, ...], settings: Augmentation, spacing: tuple[float, float, float]
) -> Float[Array, "x y z 3"]:
    """A random displacement in voxels: a smooth one plus an affine one about the centre of the grid."""
    keys = jax.random.split(key, 5)
    strength = settings.deformation * jax.random.uniform(keys[0]) / math.hypot(*(w for _, w in DEFORMATION_INTERVALS))
    smooth = total(
        weight * smooth_noise(jax.random.fold_in(keys[1], n), shape, intervals=intervals, channels=3)
        for n, (intervals, weight) in enumerate(DEFORMATION_INTERVALS)
    )
    turn = math.radians(settings.rotation) * jax.random.normal(keys[2], (3,))
    size = jnp.diag(settings.scaling * jax.random.normal(keys[3], (3,)))
    generator = size + jnp.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    linear = jax.scipy.linalg.expm(generator, max_squarings=4) - jnp.eye(3)
    axes = [(jnp.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
    shift = settings.shift * jax.random.normal(keys[4], (3,))
    return (strength * smooth + points @ linear.T + shift) / jnp.asarray(spacing)


def repainted(key: Array, volume: Float[Array, "x y z 1"], *, settings: Augmentation) -> Float[Array, "x y z 1"]:
    """Applies blur, a smooth factor, gamma and noise, then clips to [0, 1]."""
    keys = jax.random.split(key, 6)
    share = settings.blur * jax.random.uniform(keys[0])
    volume = volume + share * (_mean_of_neighbours(volume) - volume)
    strength = settings.bias * jax.random.uniform(keys[1])
    volume = volume * jnp.exp(strength * smooth_noise(keys[2], volume.shape[:3], intervals=BIAS_INTERVALS))
    volume = jnp.clip(volume, 0, 1) ** jnp.exp(settings.gamma * jax.random.normal(keys[3]))
    noise = settings.noise * jax.random.uniform(keys[4]) * jax.random.normal(keys[5], volume.shape)
    return jnp.clip(volume + noise, 0, 1)


def _mean_of_neighbours(volume: Float[Array, "x y z 1"]) -> Float[Array, "x y z 1"]:
    for axis in range(3):
        n = volume.shape[axis]
        padded = jnp.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        volume = total(jax.lax.slice_in_dim(padded, start, start + n, axis=axis) for start in range(3)) / 3
    return volume
