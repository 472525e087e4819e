"""Sources of instance optimisation: features of both volumes on one grid that match where the registration is right.

A source costs, at a displacement u,

    weight * mean over known voxels and channels of (F(p) - M(p + u(p)))^2

F and M are MIND descriptors of a pair of scans, one-hot labels, or any other features. The costs of all sources are
added. M is linearised (`ops/quadratic.py`), so several sources make one quadratic, and a step costs no more than with
one. Letters: b batch (of one), x y z voxels, c channels, k labels.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Integer

from f3r_jax.ops.mind import PRESETS, mind
from f3r_jax.ops.pyramid import Weight, extend, pool, pool_known, smooth
from f3r_jax.ops.quadratic import Quadratic, linearise
from f3r_jax.ops.shapes import Displacement, Features, Scalar, Volume, total
from f3r_jax.ops.warp import warp

# A voxel whose difference is this many times the mean has a quarter of its weight in a robust source.
OUTLYING = 3.0


class Side(NamedTuple):
    """One of the two volumes on a level's grid, and the known fraction of each voxel."""

    features: Features  # b x y z c
    weight: Features  # b x y z 1


class Source(NamedTuple):
    """Features of both volumes on one grid, and the weight of their difference; None is the weight 1."""

    fixed: Side
    moving: Side
    weight: Scalar | None = None


def mind_source(
    fixed: Volume,
    moving: Volume,
    fixed_mask: Weight | None = None,
    moving_mask: Weight | None = None,
    *,
    preset: str,
    spacing: int,
    weight: Scalar | None = None,
) -> Source:
    """MIND of two volumes on a grid of `spacing` voxels. Masks are 1 where a volume is known; None: everywhere."""
    fixed_side, moving_side = (
        _describe(image, jnp.ones_like(image) if mask is None else mask, preset=preset, spacing=spacing)
        for image, mask in ((fixed, fixed_mask), (moving, moving_mask))
    )
    return Source(fixed_side, moving_side, weight)


@partial(jax.jit, static_argnames=("preset", "spacing"))
def _describe(image: Volume, mask: Weight, *, preset: str, spacing: int) -> Side:
    """The descriptor pooled onto a grid of `spacing`. Voxels outside the mask have no influence."""
    image = extend(image, mask, voxels=reach_of(preset))
    return Side(*pool_known(mind(image, preset=preset), (mask > 0).astype(image.dtype), spacing))


def reach_of(preset: str) -> int:
    """The largest distance, in voxels along an axis, from which a voxel affects the descriptor of a preset."""
    row = PRESETS[preset]
    return len(row.taps) // 2 + max(abs(step) for pair in row.pairs for offset in pair for step in offset)


@partial(jax.jit, static_argnames="spacing")
def label_source(
    fixed: Integer[Array, "b x y z 1"],
    moving: Integer[Array, "b x y z 1"],
    fixed_known: Weight,
    moving_known: Weight,
    labels: Integer[Array, " k"],
    *,
    spacing: int,
    weight: Scalar,
) -> Source:
    """One-hot labels, pooled onto a grid of `spacing` and smoothed by a mean of three voxels along each axis.

    The features are scaled so that the cost is `weight` times the mean over the labels of 1 - Dice, where the label
    maps are binary and known everywhere. So a small label counts as much as a large one.
    """

    def pooled(volume: Array, known: Weight) -> tuple[Features, Features]:
        one_hot = jnp.concatenate([pool((volume == label).astype(known.dtype), spacing) for label in labels], axis=-1)
        return smooth(one_hot), pool(known, spacing)

    sides = (pooled(fixed, fixed_known), pooled(moving, moving_known))
    sizes = total(jnp.mean(features, axis=(0, 1, 2, 3)) for features, _ in sides)
    scale = 1 / jnp.sqrt(jnp.maximum(sizes, 1e-9))
    fixed_side, moving_side = (Side(features * scale, known) for features, known in sides)
    return Source(fixed_side, moving_side, weight)


def coarser(source: Source, ratio: int) -> Source:
    """The source on a grid whose voxels have `ratio` times the edge."""
    fixed, moving = (Side(*pool_known(*side, ratio)) for side in source[:2])
    return Source(fixed, moving, source.weight)


def compare(
    sources: Sequence[Source], displacement: Displacement, *, robust: bool = False
) -> tuple[Quadratic, Float[Array, "x y z"] | None]:
    """The costs of all sources near a displacement: a quadratic, and its weight at each voxel.

    The cost is the sum over voxels of weight and quadratic. With several sources the weights are in the quadratic, and
    the second result is None. `robust` reduces the weight of voxels that differ by far more than the mean.
    """
    parts = [_compare(source, displacement, robust) for source in sources]
    if len(parts) == 1:
        return parts[0]
    return add(*(scaled(quadratic, weight) for quadratic, weight in parts)), None


def _compare(source: Source, displacement: Displacement, robust: bool) -> tuple[Quadratic, Float[Array, "x y z"]]:
    fixed, moving, share = source
    quadratic = linearise(fixed.features, moving.features, displacement)
    weight = (fixed.weight * warp(moving.weight, displacement, padding="zero"))[0, ..., 0]
    known = jnp.maximum(jnp.sum(weight), 1) * fixed.features.shape[-1]
    if robust:
        mean = jnp.sum(weight * quadratic.constant) / jnp.maximum(jnp.sum(weight), 1)
        weight = weight / (1 + quadratic.constant / (OUTLYING * mean + 1e-9)) ** 2
    weight /= known
    return quadratic, weight if share is None else share * weight


def scaled(quadratic: Quadratic, weight: Float[Array, "x y z"]) -> Quadratic:
    """The quadratic times a weight at each voxel."""
    return Quadratic(*(weight * part for part in quadratic))


def add(*quadratics: Quadratic) -> Quadratic:
    """The sum of quadratics on one grid."""
    return Quadratic(*(total(parts) for parts in zip(*quadratics, strict=True)))
