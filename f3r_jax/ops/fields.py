"""Calculus of fields on a voxel grid: differences, Jacobian determinant, composition.

Letters: b batch, x y z voxels, c channels. A displacement u is in voxels; phi(p) = p + u(p). `spacing` is in mm.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float

from f3r_jax.ops.warp import warp
from f3r_jax.shapes import Displacement, Volume

Spacing = Sequence | np.ndarray | Array


def identity_grid(shape: Sequence[int]) -> Float[Array, "x y z 3"]:
    """The position of every voxel, in voxels."""
    return jnp.stack(jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in shape), indexing="ij"), axis=-1)


@jax.jit
def gradient(field: Volume, spacing: Spacing = (1, 1, 1)) -> Float[Array, "b x y z c 3"]:
    """Derivatives by x, y, z per mm: central differences, one-sided on the border, zero along an axis of one voxel."""
    return jnp.stack([_central(field, axis) for axis in (1, 2, 3)], axis=-1) / jnp.asarray(spacing, field.dtype)


def forward_differences(field: Volume, spacing: Spacing = (1, 1, 1)) -> tuple[Array, Array, Array]:
    """field(p + e) - field(p) per mm along x, y and z: three arrays, each one voxel shorter along its own axis."""
    spacing = jnp.asarray(spacing, field.dtype)
    return tuple(jnp.diff(field, axis=axis + 1) / spacing[axis] for axis in range(3))


@jax.jit
def jacobian_determinant(displacement: Displacement, spacing: Spacing = (1, 1, 1)) -> Float[Array, "b x y z"]:
    """Determinant of d phi / dp; at most 0 where phi folds.

    Both u and p are taken in mm. The scaling cancels, as det(S J S^-1) = det(J): whatever the spacing, the result is
    that of the voxel frame.
    """
    spacing = jnp.asarray(spacing, displacement.dtype)
    j = gradient(displacement * spacing, spacing) + jnp.eye(3, dtype=displacement.dtype)
    return (
        j[..., 0, 0] * (j[..., 1, 1] * j[..., 2, 2] - j[..., 1, 2] * j[..., 2, 1])
        - j[..., 0, 1] * (j[..., 1, 0] * j[..., 2, 2] - j[..., 1, 2] * j[..., 2, 0])
        + j[..., 0, 2] * (j[..., 1, 0] * j[..., 2, 1] - j[..., 1, 1] * j[..., 2, 0])
    )


def compose(first: Displacement, second: Displacement) -> Displacement:
    """The field that warps like warp(warp(moving, first), second): second(p) + first(p + second(p))."""
    return second + warp(first, second)


def folding_percent(displacement: Displacement) -> Float[Array, " b"]:
    """Percent of voxels whose Jacobian determinant is at most zero."""
    return 100 * jnp.mean(jacobian_determinant(displacement) <= 0, axis=(1, 2, 3), dtype=displacement.dtype)


def _central(field, axis):
    n = field.shape[axis]
    if n == 1:
        return jnp.zeros_like(field)

    def part(start, stop):
        return lax.slice_in_dim(field, start, stop, axis=axis)

    interior = (part(2, n) - part(0, n - 2)) / 2
    return jnp.concatenate([part(1, 2) - part(0, 1), interior, part(n - 1, n) - part(n - 2, n - 1)], axis)
