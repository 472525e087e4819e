"""Similarity of two volumes under an affine map, its gradient, and scores of all shifts.

The similarity of a map A, with squares averaged over the channels of MIND, is

    s(A) = sum_p w(p) v'(Ap) (u - |f(p) - m_A(p)|^2) - stiffness * sum of squared strains

over the voxels p of the fixed grid. f are the descriptors of the fixed volume and m_A those of the moving volume
sampled through A. v' in [0, 1] is the mask of the moving volume, and u is the mean of |f - m|^2 for unrelated
descriptors. Descriptors of the moving volume are computed again for each A. Descriptors computed once on the moving
grid would not rotate with A, and the smoothing by interpolation would count as a match. This happened for a rotation of
15 degrees on a slab of 60 mm.

A map has twelve parameters: three shifts, three rotations (Cayley's form, a rotation at any value), three logarithms of
scales and three shears, R S x + t. All are in mm at a distance of `radius` from the centre, so that they move the
volume about equally. Letters: x y z voxels, k channels, c channels and mask, s places.
"""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Float, Integer

from f3r_jax.ops.mind import mind
from f3r_jax.ops.shapes import Displacement, Scalar
from f3r_jax.ops.warp import warp, warp_slopes

Parameters = Float[Array, "12"]

CORNERS = np.array(list(itertools.product((0, 1), repeat=3)))


class Views(NamedTuple):
    """The two volumes to compare. Local coordinates are mm from the centre of the fixed volume."""

    fixed: Float[Array, "x y z k"]  # descriptors f
    weights: Float[Array, "x y z"]  # w, normalisation included
    moving: Float[Array, "_x _y _z 2"]  # intensities, and v', which is 0 in the outermost voxels
    to_local: Float[Array, "4 4"]  # voxels of the fixed grid to local coordinates
    to_moving: Float[Array, "4 4"]  # mapped local coordinates to voxels of the moving volume
    unrelated: Scalar  # u
    radius: Scalar  # mm


def affine_map(theta: Parameters, radius: Scalar | float) -> Float[Array, "4 4"]:
    """The matrix of the parameters, in local coordinates; zeros give the identity."""
    a, b, c = theta[3:6] / (2 * radius)
    rotation = jnp.array(
        (
            (1 + a * a - b * b - c * c, 2 * (a * b - c), 2 * (a * c + b)),
            (2 * (a * b + c), 1 - a * a + b * b - c * c, 2 * (b * c - a)),
            (2 * (a * c - b), 2 * (b * c + a), 1 - a * a - b * b + c * c),
        )
    ) / (1 + a * a + b * b + c * c)
    (sx, sy, sz), (h, i, j) = jnp.exp(theta[6:9] / radius), theta[9:] / radius
    strain = jnp.array(((sx, h, i), (0, sy, j), (0, 0, sz)))
    top = jnp.concatenate([rotation @ strain, theta[:3, None]], axis=1)
    return jnp.concatenate([top, jnp.array([[0.0, 0.0, 0.0, 1.0]])])


def similarity_and_gradient(
    theta: Parameters, views: Views, stiffness: Scalar | float, *, preset: str
) -> tuple[tuple[Scalar, tuple[Scalar, Scalar]], Parameters]:
    """s; s without the strain penalty, and its value if the volumes matched inside both masks; and the gradient of s.

    The steps are compiled one by one. In one function, XLA on a CPU computes parts of the samples and descriptors once
    per channel: at 64 x 64 x 56 voxels it took 175 ms, the steps take 50 ms.
    """
    displacement = _displacement(theta, views)
    sampled = warp(views.moving[None], displacement)
    image = sampled[..., :1]
    values, g_descriptors, g_mask = _compared(mind(image, preset=preset), sampled[..., 1], views)
    g_image = _pulled_back(image, g_descriptors, preset=preset)
    penalty, gradient = _gradient(theta, views, stiffness, _slopes(views.moving, displacement), g_image, g_mask)
    return (values[0] - penalty, values), gradient


def _matrix(theta: Parameters, views: Views) -> Float[Array, "3 4"]:
    """The matrix from voxels of the fixed grid to voxels of the moving volume."""
    return (views.to_moving @ affine_map(theta, views.radius) @ views.to_local)[:3]


def _penalty(theta: Parameters, views: Views, stiffness: Scalar | float) -> Scalar:
    return stiffness * jnp.sum((theta[6:] / views.radius) ** 2)


@jax.jit
def _displacement(theta: Parameters, views: Views) -> Displacement:
    """Where voxels of the fixed grid go in the moving volume, less their index."""
    index = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in views.weights.shape), indexing="ij")
    rows = [
        sum(row[k] * index[k] for k in range(3)) + row[3] - own
        for row, own in zip(_matrix(theta, views), index, strict=True)
    ]
    return jnp.stack(rows, axis=-1)[None]


@jax.jit
def _slopes(moving: Float[Array, "_x _y _z 2"], displacement: Displacement) -> list[Displacement]:
    return warp_slopes(moving[None], displacement)


@jax.jit
def _compared(
    m: Float[Array, "1 x y z k"], mask: Float[Array, "1 x y z"], views: Views
) -> tuple[tuple[Scalar, Scalar], Float[Array, "1 x y z k"], Float[Array, "1 x y z"]]:
    """s without the penalty, its value for volumes that match, and the gradient of the first by its two inputs."""
    difference = views.fixed - m[0]
    gain = views.unrelated - jnp.mean(difference**2, axis=-1)
    weights = views.weights * mask[0]
    values = jnp.sum(weights * gain), views.unrelated * jnp.sum(weights)
    g_descriptors = (2 / difference.shape[-1]) * weights[..., None] * difference
    return values, g_descriptors[None], (views.weights * gain)[None]


@partial(jax.jit, static_argnames="preset")
def _pulled_back(
    image: Float[Array, "1 x y z 1"], g_descriptors: Float[Array, "1 x y z k"], *, preset: str
) -> Float[Array, "1 x y z 1"]:
    """The gradient by the image from that by its descriptors."""
    return jax.vjp(partial(mind, preset=preset), image)[1](g_descriptors)[0]


@jax.jit
def _gradient(
    theta: Parameters,
    views: Views,
    stiffness: Scalar | float,
    slopes: list[Displacement],
    g_image: Float[Array, "1 x y z 1"],
    g_mask: Float[Array, "1 x y z"],
) -> tuple[Scalar, Parameters]:
    """The penalty of strain, and the gradient of s by the parameters."""
    g_position = (slopes[0] * g_image + slopes[1] * g_mask[..., None])[0]
    index = [jnp.arange(n, dtype=jnp.float32) for n in views.weights.shape]
    x, y, z = (
        jnp.tensordot(jnp.sum(g_position, axis=others), i, ((0,), (0,)))
        for others, i in zip(((1, 2), (0, 2), (0, 1)), index, strict=True)
    )
    g_matrix = jnp.stack([x, y, z, jnp.sum(g_position, axis=(0, 1, 2))], axis=-1)
    (through_matrix,) = jax.vjp(lambda t: _matrix(t, views), theta)[1](g_matrix)
    penalty, through_penalty = jax.value_and_grad(_penalty)(theta, views, stiffness)
    return penalty, through_matrix - through_penalty


@jax.jit
def shift_scores(
    fixed: Float[Array, "_x _y _z c"], moving: Float[Array, "x y z c"], unrelated: Scalar
) -> Float[Array, "u v w"]:
    """Sum of v v' (u - |f - m|^2) with fixed voxel p on moving voxel p + shift, for all shifts from 0 on, cyclic.

    The last channel of both volumes is their mask. The sums are correlations, computed by Fourier transforms. Their
    size is the sum of both sizes, so that negative shifts, counted from the end, do not overlap positive ones.
    """
    shape = [a + b for a, b in zip(fixed.shape[:3], moving.shape[:3], strict=True)]
    mask, mask_there = fixed[..., -1], moving[..., -1]
    f, m = fixed[..., :-1], moving[..., :-1]

    def spectrum(values):
        return jnp.fft.rfftn(values, shape)

    def add(total, channel):
        one, other = channel
        return total + jnp.conj(spectrum(mask * one)) * spectrum(mask_there * other), None

    first, second = spectrum(mask * (unrelated - jnp.mean(f**2, axis=-1))), spectrum(mask)
    total = jnp.conj(first) * spectrum(mask_there)
    total -= jnp.conj(second) * spectrum(mask_there * jnp.mean(m**2, axis=-1))
    cross, _ = lax.scan(add, jnp.zeros_like(total), (jnp.moveaxis(f, -1, 0), jnp.moveaxis(m, -1, 0)))
    return jnp.fft.irfftn(total + 2 / f.shape[-1] * cross, shape)


def unrelated(f: Float[np.ndarray, "n k"], m: Float[np.ndarray, "_m k"]) -> float:
    """Mean of |f - m|^2 over all pairs of a place in one volume and a place in the other, averaged over channels."""
    return float(np.mean(f.var(axis=0) + m.var(axis=0) + (f.mean(axis=0) - m.mean(axis=0)) ** 2))


def peaks(scores: Float[np.ndarray, "x y z"], *, count: int, apart: int) -> Integer[np.ndarray, "s 3"]:
    """The `count` voxels of the highest scores, highest first, more than `apart` voxels apart along some axis."""
    left = scores.copy()
    found: list[tuple[np.intp, ...]] = []
    while len(found) < count:
        at = np.unravel_index(np.argmax(left), left.shape)
        found.append(at)
        left[tuple(slice(max(i - apart, 0), i + apart + 1) for i in at)] = -np.inf
    return np.array(found)


def sample(volume, voxels):
    """Samples a volume at fractional voxels (n 3) trilinearly, as (n c); edge values outside."""
    size = np.array(volume.shape[:3])
    voxels = jnp.clip(voxels, 0, size - 1)
    base = jnp.minimum(jnp.floor(lax.stop_gradient(voxels)).astype(jnp.int32), size - 2)
    strides = np.array([size[1] * size[2], size[2], 1])
    corners = volume.reshape(-1, volume.shape[-1])[(base @ strides)[:, None] + CORNERS @ strides]  # (n 8 c)
    ahead = (voxels - base)[:, None]
    weights = jnp.prod(jnp.where(CORNERS == 1, ahead, 1 - ahead), axis=-1)
    return jnp.sum(weights[..., None] * corners, axis=1)
