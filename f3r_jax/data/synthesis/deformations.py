"""Random diffeomorphisms with known ground truth: two images of one anatomy, each moved independently.

An image moved by phi1 and one moved by phi2 correspond through u = phi1^-1 o phi2 - id: `warp(moving, u)` is `fixed`.
The inverse of phi1 = exp(v1) is exp(-v1), so no equation has to be solved. A velocity is the sum of smooth noise at
three scales, a shift, a rotation, a scaling and breathing.

Velocities are integrated on a coarse grid of every other voxel, which extends beyond the volume, and then interpolated.
Letters: x y z voxels.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from f3r_jax.data.phantom.motion import breathing
from f3r_jax.data.synthesis.settings import Settings
from f3r_jax.ops.fields import compose, exponential
from f3r_jax.ops.random_fields import smooth_noise
from f3r_jax.ops.shapes import Displacement, Scalar

STEP = 2  # voxels between the points of the coarse grid; `_to_voxels` requires 2
MARGIN = 2  # points of the coarse grid beyond the volume; further out the edge value is used
SCALES = ((77.0, 1.0), (45.0, 0.5), (26.0, 0.2))  # mm between knots, and weight of the noise
SQUARINGS = 6


class Motion(NamedTuple):
    """Displacements of one example, in voxels: of the moving image, of the fixed image, and between both."""

    moving: Displacement
    fixed: Displacement
    between: Displacement


def draw_motion(
    key: Array,
    shape: tuple[int, int, int],
    *,
    settings: Settings,
    strength: Scalar | float,
    breathes: Bool[Array, ""] | bool,
) -> Motion:
    """Draws random motions of both images.

    Args:
      key: a JAX random key.
      shape: the three sizes of the grid.
      settings: the sizes of the motions.
      strength: a factor for all motions.
      breathes: whether the image is an abdomen, whose liver moves with the diaphragm.
    """
    draw = jax.vmap(lambda k: _velocity(k, shape, settings=settings, breathes=breathes))
    first, second = strength / STEP * draw(jax.random.split(key))
    first, back, second = jnp.split(exponential(jnp.stack([first, -first, second]), squarings=SQUARINGS), 3)
    coarse = jnp.concatenate([first, second, compose(back, second)], axis=-1)[0]
    return Motion(*jnp.split(STEP * _to_voxels(coarse, shape)[None], 3, axis=-1))


def _velocity(
    key: Array, shape: tuple[int, int, int], *, settings: Settings, breathes: Bool[Array, ""] | bool
) -> Float[Array, "_x _y _z 3"]:
    """Draws a random stationary velocity on the coarse grid, in voxels."""
    keys = jax.random.split(key, 1 + len(SCALES))
    amplitude, shift, turn, size, breath = jnp.split(jax.random.uniform(keys[0], (11,)), [1, 4, 7, 10])
    shift, turn, size, breath = (2 * part - 1 for part in (shift, turn, size, breath))  # either sign
    points = _coarse_points(shape, settings.spacing)
    extent = max(np.ptp(points, axis=(0, 1, 2)))
    smooth = sum(
        weight * smooth_noise(k, points.shape[:3], intervals=max(1, round(extent / size)), channels=3)
        for k, (size, weight) in zip(keys[1:], SCALES, strict=True)
    )
    smooth /= np.sqrt(sum(weight**2 for _, weight in SCALES))
    linear = settings.scaling * jnp.diag(size) + math.radians(settings.rotation) * jnp.cross(jnp.eye(3), turn)
    affine = jnp.asarray(points) @ linear / jnp.asarray(settings.spacing)
    along_z = jnp.asarray(breathing(*np.moveaxis(points, -1, 0)))[..., None] * jnp.array([0.0, 0.0, 1.0])
    breath = jnp.where(breathes, settings.breathing * breath, 0)
    return settings.amplitude * amplitude * smooth + settings.shift * shift + affine + breath * along_z


def _coarse_points(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> np.ndarray:
    """Points of the coarse grid, in mm from the centre of the volume (x y z 3)."""
    axes = [
        (STEP * (np.arange((n - 1) // STEP + 2 + 2 * MARGIN) - MARGIN) - (n - 1) / 2) * s
        for n, s in zip(shape, spacing, strict=True)
    ]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def _to_voxels(coarse: Float[Array, "_x _y _z c"], shape: tuple[int, int, int]) -> Float[Array, "x y z c"]:
    """Interpolates from the coarse grid to voxels, with the cubic polynomial through the four nearest points."""
    for n in shape:  # interpolates the first axis and moves it before the channels
        points = coarse.shape[0]
        matrix = np.zeros((n, points), np.float32)
        voxel = np.arange(n)
        even, odd = voxel[voxel % 2 == 0], voxel[voxel % 2 == 1]
        matrix[even, even // 2 + MARGIN] = 1
        for neighbour, weight in zip((-1, 0, 1, 2), (-1, 9, 9, -1), strict=True):
            matrix[odd, odd // 2 + MARGIN + neighbour] = weight / 16
        coarse = jnp.moveaxis(jnp.tensordot(coarse, jnp.asarray(matrix), axes=((0,), (1,))), -1, 2)
    return coarse
