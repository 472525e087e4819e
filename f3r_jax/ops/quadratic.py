"""Quadratic approximation, at each voxel, of the squared difference of two feature volumes (Gauss-Newton).

For a displacement u and a further step d, the sum over channels of (F(p) - M(p + u + d))^2 becomes
r - 2 b . d + d . A d, with M linearised in d. At d = 0 the value and the gradient are exact.
Letters: b batch (of one), x y z voxels, c channels, n all voxels.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from f3r_jax.ops.shapes import Displacement, Volume, total

# Row and column of the entries of A that are stored. A is symmetric.
_ENTRIES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


class Quadratic(NamedTuple):
    """r, b and A at every voxel."""

    constant: Float[Array, "x y z"]
    slope: Float[Array, "3 x y z"]
    curvature: Float[Array, "6 x y z"]  # entries of A in the order xx, yy, zz, xy, xz, yz


def linearise(fixed: Volume, moving: Volume, displacement: Displacement) -> Quadratic:
    """The quadratic at a displacement in voxels. Outside its grid, `moving` has its edge value."""
    shape = fixed.shape[1:4]
    index, fractions, steps = _cells(displacement[0], shape)
    # Without this barrier, XLA computes the cells again for each channel and corner.
    index, fractions = lax.optimization_barrier((index, fractions))

    def add(terms: list[Array], channel: tuple[Array, Array]) -> tuple[list[Array], None]:
        wanted, volume = channel
        value, slopes = _sample(volume, index, fractions, steps)
        r = wanted - value
        new = [r * r, *(r * s for s in slopes), *(slopes[i] * slopes[j] for i, j in _ENTRIES)]
        return [t + n for t, n in zip(terms, new, strict=True)], None

    fixed_channels, moving_channels = (volume.reshape(-1, volume.shape[-1]).T for volume in (fixed, moving))
    terms, _ = lax.scan(add, [jnp.zeros_like(fractions[0])] * 10, (fixed_channels, moving_channels))
    constant, *rest = (term.reshape(shape) for term in terms)
    return Quadratic(constant, jnp.stack(rest[:3]), jnp.stack(rest[3:]))


def evaluate(quadratic: Quadratic, step: Displacement) -> Float[Array, "x y z"]:
    """r - 2 b . d + d . A d for a step d in voxels."""
    d = [step[0, ..., axis] for axis in range(3)]
    linear = sum(quadratic.slope[axis] * d[axis] for axis in range(3))
    squares = sum(
        (1 if i == j else 2) * entry * d[i] * d[j] for entry, (i, j) in zip(quadratic.curvature, _ENTRIES, strict=True)
    )
    return quadratic.constant - 2 * linear + squares


def chain(quadratic: Quadratic, jacobian: Float[Array, "x y z 3 3"]) -> Quadratic:
    """The quadratic as a function of e, where the step is d = J e."""
    # The products are written out, because XLA on a CPU calls a routine for each of a million small matrix products.
    a = {pair: entry for entry, (i, j) in zip(quadratic.curvature, _ENTRIES, strict=True) for pair in {(i, j), (j, i)}}
    d = [[jacobian[..., row, column] for column in range(3)] for row in range(3)]
    slope = [sum(d[i][k] * quadratic.slope[i] for i in range(3)) for k in range(3)]
    turned = [[sum(a[i, j] * d[j][k] for j in range(3)) for k in range(3)] for i in range(3)]
    curvature = [sum(d[i][row] * turned[i][column] for i in range(3)) for row, column in _ENTRIES]
    return Quadratic(quadratic.constant, jnp.stack(slope), jnp.stack(curvature))


def _cells(displacement: Array, shape: tuple[int, ...]) -> tuple[Array, list[Array], list[int]]:
    """For each position: index of its cell's lowest corner in the flat volume, fractions, steps to the next corners."""
    offsets, fractions, steps = [], [], []
    for axis, size in enumerate(shape):
        grid = jnp.arange(size, dtype=displacement.dtype).reshape([-1 if a == axis else 1 for a in range(3)])
        position = jnp.clip(grid + displacement[..., axis], 0, size - 1)
        lower = jnp.clip(jnp.floor(position).astype(jnp.int32), 0, max(size - 2, 0))
        step = math.prod(shape[axis + 1 :])
        offsets.append(lower * step)
        fractions.append((position - lower).reshape(-1))
        steps.append(step if size > 1 else 0)
    return total(offsets).reshape(-1), fractions, steps


def _sample(
    volume: Float[Array, " n"], index: Array, fractions: list[Array], steps: list[int]
) -> tuple[Array, list[Array]]:
    """Trilinear samples and their derivatives along x, y and z."""
    fx, fy, fz = fractions
    corners = [
        volume.at[index + (i * steps[0] + j * steps[1] + k * steps[2])].get(mode="promise_in_bounds")
        for i in (0, 1)
        for j in (0, 1)
        for k in (0, 1)
    ]
    # Without this barrier, XLA on a CPU reads the corners again for the value and for each slope.
    corners = lax.optimization_barrier(corners)
    pairs = [corners[i : i + 2] for i in (0, 2, 4, 6)]
    along_z, slopes_z = [a + (b - a) * fz for a, b in pairs], [b - a for a, b in pairs]
    low, high = (along_z[i] + (along_z[i + 1] - along_z[i]) * fy for i in (0, 2))
    slope_y = _mix(along_z[1] - along_z[0], along_z[3] - along_z[2], fx)
    slope_z = _mix(_mix(slopes_z[0], slopes_z[1], fy), _mix(slopes_z[2], slopes_z[3], fy), fx)
    return _mix(low, high, fx), [high - low, slope_y, slope_z]


def _mix(start: Array, end: Array, fraction: Array) -> Array:
    return start + (end - start) * fraction
