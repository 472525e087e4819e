"""What else holds for a displacement in instance optimisation: landmarks, rigid parts, and parts of constant volume.

All three are quadratic near a displacement, like the sources (`ops/sources.py`):

    landmarks   weight * mean over landmarks of w |phi(x) - y|^2, in mm; w is low where one disagrees with the others
    rigid       RIGID * mean over voxels of f |T(p) - R p|^2, in mm; R is the best rigid motion of the voxel's part
    volume      VOLUME * mean over voxels of f (log det DT)^2

T is the whole map from the fixed frame to the moving frame in mm, with the affine matrix; f is the fraction of a voxel
that belongs to a part. R is computed again at each linearisation. Letters: b batch (of one), x y z voxels, n landmarks,
k parts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer

from f3r_jax.ops.fields import divergence, identity_grid, jacobian_determinant
from f3r_jax.ops.pyramid import pool
from f3r_jax.ops.quadratic import Quadratic
from f3r_jax.ops.shapes import Displacement, Features, Scalar

# Per mm^2 and per unit. Rigid spines of two phantom pairs (mean Dice of the organs without: 89.2): 88.9 at 0.02, 88.4
# at 0.1 and 87.3 at 1, with residuals of 0.5, 0.3 and 0.3 mm, which `register/parts.py` removes.
RIGID, VOLUME = 0.02, 100.0
# A landmark whose error is SPREAD times the median error, and at least LEAST mm, has a quarter of its weight.
SPREAD, LEAST = 3.0, 5.0
SMALLEST = 0.05  # Jacobian determinant, lower limit of its logarithm


Jacobian = Float[Array, "1 x y z 3 3"]


class Landmarks(NamedTuple):
    """Corresponding points. `used` is 0 for landmarks that do not pull, 1 for those that pull fully."""

    fixed: Float[Array, "n 3"]  # voxels of the grid
    moving: Float[Array, "n 3"]  # the same, of the moving volume on its grid
    used: Float[Array, " n"]
    weight: Scalar  # per mm^2
    edge: Scalar  # of a voxel, mm


class Parts(NamedTuple):
    """Rigid parts on a grid, and the grid's maps to mm in both frames, relative to any origin."""

    label: Integer[Array, "1 x y z 1"]  # from 1; 0 is no part
    fraction: Float[Array, "1 x y z 1"]
    ids: Integer[Array, " k"]  # 1 to k
    to_fixed: Float[Array, "3 4"]
    to_moving: Float[Array, "3 4"]


class Volumes(NamedTuple):
    """Where the volume is constant: the fraction of each voxel, and log det of the affine matrix."""

    fraction: Float[Array, "1 x y z 1"]
    log_scale: Scalar


class Restraints(NamedTuple):
    """All restraints of a displacement on one grid; None where there is none."""

    landmarks: Landmarks | None = None
    rigid: Parts | None = None
    volumes: Volumes | None = None


class Near(NamedTuple):
    """The landmarks near a displacement: where they are, their residual, its change with a step, and their weights."""

    at: Float[Array, "n 3"]
    residual: Float[Array, "n 3"]
    jacobian: Float[Array, "n 3 3"]
    weight: Float[Array, " n"]


class NearVolumes(NamedTuple):
    """The fraction of each voxel whose volume is constant, and log det DT."""

    fraction: Float[Array, "1 x y z"]
    log_volume: Float[Array, "1 x y z"]


def coarser(restraints: Restraints, ratio: int) -> Restraints:
    """The restraints on a grid whose voxels have `ratio` times the edge."""
    landmarks, rigid, volumes = restraints
    if landmarks is not None:
        fixed, moving = ((points + 0.5) / ratio - 0.5 for points in landmarks[:2])
        landmarks = Landmarks(fixed, moving, landmarks.used, landmarks.weight, landmarks.edge * ratio)
    if rigid is not None:
        maps = (_coarser_map(each, ratio) for each in (rigid.to_fixed, rigid.to_moving))
        rigid = Parts(_largest(rigid.label, ratio), pool(rigid.fraction, ratio), rigid.ids, *maps)
    if volumes is not None:
        volumes = Volumes(pool(volumes.fraction, ratio), volumes.log_scale)
    return Restraints(landmarks, rigid, volumes)


def _coarser_map(matrix: Float[Array, "3 4"], ratio: int) -> Float[Array, "3 4"]:
    """The map of coarse voxels: voxel i is at ratio * i + (ratio - 1) / 2 on the finer grid."""
    linear, shift = matrix[:, :3], matrix[:, 3:]
    return jnp.concatenate([ratio * linear, shift + (ratio - 1) / 2 * linear.sum(axis=1, keepdims=True)], axis=1)


def _largest(index: Array, ratio: int) -> Array:
    """The largest value in each cube with an edge of `ratio` voxels."""
    missing = [-n % ratio for n in index.shape[1:4]]
    index = jnp.pad(index, ((0, 0), *((0, n) for n in missing), (0, 0)))
    x, y, z = (n // ratio for n in index.shape[1:4])
    return index.reshape(1, x, ratio, y, ratio, z, ratio, 1).max((2, 4, 6))


def near_landmarks(landmarks: Landmarks, displacement: Displacement, jacobian: Jacobian | None) -> Near:
    """The landmarks near a displacement.

    `jacobian` is the change of phi with a step; None: the identity.
    """
    at = landmarks.fixed
    residual = at + sample(displacement, at) - landmarks.moving
    away = landmarks.edge * jnp.linalg.norm(residual, axis=-1)
    limit = jnp.maximum(SPREAD * jnp.nanmedian(jnp.where(landmarks.used > 0, away, jnp.nan)), LEAST)
    weight = landmarks.used / (1 + (away / limit) ** 2) ** 2
    weight *= landmarks.weight * landmarks.edge**2 / jnp.maximum(jnp.sum(landmarks.used), 1)
    turn = jnp.eye(3)[None].repeat(len(at), 0)
    if jacobian is not None:
        turn = sample(jacobian.reshape(*jacobian.shape[:4], 9), at).reshape(-1, 3, 3)
    return Near(at, residual, turn, weight)


def landmark_cost(near: Near, step: Displacement) -> Scalar:
    """The cost of the landmarks after a further step (of the velocity, with a Jacobian)."""
    moved = near.residual + jnp.einsum("nij,nj->ni", near.jacobian, sample(step, near.at))
    return jnp.sum(near.weight * jnp.sum(moved**2, axis=-1))


def sample(field: Features, points: Float[Array, "n 3"]) -> Float[Array, "n c"]:
    """A field (1 x y z c) at points in voxels, trilinear; outside its grid, the edge value."""
    last = jnp.asarray(field.shape[1:4]) - 1
    points = jnp.clip(points, 0, last)
    lower = jnp.clip(jnp.floor(points).astype(jnp.int32), 0, jnp.maximum(last - 1, 0))
    fraction, value = points - lower, jnp.zeros((len(points), field.shape[-1]), field.dtype)
    for corner in ((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)):
        share = jnp.prod(jnp.where(jnp.asarray(corner) == 1, fraction, 1 - fraction), axis=-1, keepdims=True)
        x, y, z = jnp.minimum(lower + jnp.asarray(corner), last).T
        value += share * field[0, x, y, z]
    return value


def rigid_cost(parts: Parts, displacement: Displacement) -> Quadratic:
    """The quadratic of a step: the squared distance, in mm^2, of the parts from their best rigid motions."""
    position = identity_grid(displacement.shape[1:4]) + displacement[0]
    linear = parts.to_moving[:, :3]
    x = _apply(parts.to_fixed, identity_grid(displacement.shape[1:4])).reshape(-1, 3)
    y = _apply(parts.to_moving, position).reshape(-1, 3)
    index, weight = parts.label.reshape(-1), parts.fraction.reshape(-1)
    rotation, shift = rigid_motions(x, y, weight, index, len(parts.ids) + 1)
    goal = jnp.einsum("nij,nj->ni", rotation[index], x) + shift[index]
    away = (y - goal).reshape(position.shape) @ jnp.linalg.inv(linear).T  # voxels
    share = RIGID * parts.fraction[0, ..., 0] * jnp.abs(jnp.linalg.det(linear)) ** (2 / 3) / weight.size
    slope = -jnp.moveaxis(away, -1, 0) * share
    curvature = jnp.asarray([1.0, 1, 1, 0, 0, 0])[:, None, None, None] * share
    return Quadratic(share * jnp.sum(away**2, axis=-1), slope, curvature)


def rigid_motions(
    x: Float[Array, "m 3"], y: Float[Array, "m 3"], weight: Float[Array, " m"], index: Integer[Array, " m"], count: int
) -> tuple[Float[Array, "k 3 3"], Float[Array, "k 3"]]:
    """For each index below `count`, the rotation and shift of the least squares y = R x + t (Kabsch)."""

    def sums(values: Array) -> Array:
        return jax.ops.segment_sum(weight.reshape(-1, *(1,) * (values.ndim - 1)) * values, index, count)

    size = jnp.maximum(sums(jnp.ones_like(weight)), 1e-6)[:, None]
    centre_x, centre_y = sums(x) / size, sums(y) / size
    x, y = x - centre_x[index], y - centre_y[index]
    u, _, v = jnp.linalg.svd(sums(y[:, :, None] * x[:, None, :]) + 1e-6 * jnp.eye(3))
    handed = jnp.linalg.det(u @ v)
    u = u.at[:, :, 2].multiply(jnp.where(handed < 0, -1.0, 1.0)[:, None])
    rotation = u @ v
    return rotation, centre_y - jnp.einsum("kij,kj->ki", rotation, centre_x)


def near_volumes(volumes: Volumes, displacement: Displacement) -> NearVolumes:
    """The volumes near a displacement; the Jacobian determinant is limited to at least SMALLEST."""
    log_volume = jnp.log(jnp.maximum(jacobian_determinant(displacement), SMALLEST)) + volumes.log_scale
    return NearVolumes(volumes.fraction[..., 0], log_volume)


def volume_cost(near: NearVolumes, step: Displacement) -> Scalar:
    """The cost of the volumes after a further step, whose divergence is the change of log det DT."""
    return VOLUME * jnp.mean(near.fraction * (near.log_volume + divergence(step)) ** 2)


def _apply(matrix: Float[Array, "3 4"], points: Float[Array, "... 3"]) -> Float[Array, "... 3"]:
    return points @ matrix[:, :3].T + matrix[:, 3]
