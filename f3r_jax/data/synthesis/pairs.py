"""Synthetic pairs with ground truth for training, as a pure function of random keys.

Two images with independent contrasts and motions are made from one tissue map. In addition there are clean images of
both with the same contrast, for a loss that compares them: warp(clean_moving, displacement) is clean_fixed.
Letters: b batch, x y z voxels, k channels of the clean images.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Integer, UInt8

from f3r_jax.data.synthesis.acquisition import acquire, blurred, computed_once, draw_crops
from f3r_jax.data.synthesis.contrasts import ANY, CT, MR, clean_contrast, contrast, standard_contrast
from f3r_jax.data.synthesis.deformations import draw_motion
from f3r_jax.data.synthesis.labels import shape_map
from f3r_jax.data.synthesis.settings import Settings
from f3r_jax.ops.shapes import Displacement, Features, Scalar, Volume
from f3r_jax.ops.warp import warp

STANDARD = (CT, MR)  # kinds of the moving and the fixed image of a standard pair
STANDARD_STRENGTH = 0.3  # factor for the effects of the scanner in standard pairs


class SyntheticPair(NamedTuple):
    """A batch of pairs; the displacement is for a backward warp, in voxels. The clean images are not cropped."""

    moving: Volume
    fixed: Volume
    displacement: Displacement
    clean_moving: Features
    clean_fixed: Features


@partial(jax.jit, static_argnames="settings")
def make_pairs(
    keys: Array, labels: UInt8[Array, "b x y z"], *, settings: Settings, progress: Scalar | float
) -> SyntheticPair:
    """Generates one pair per tissue map.

    Args:
      keys: one JAX random key per pair, (b).
      labels: indices of `TISSUES`, as returned by `tissue_map`.
      settings: how pairs are drawn.
      progress: from 0 to 1. With it the motions grow from `start_amplitude` to `amplitude`. It is also the
        probability that a pair has random contrasts and possibly random shapes. Other pairs are an anatomy as venous
        CT (moving) and T2-weighted MR (fixed).
    """
    make = partial(_make_pair, settings=settings, progress=jnp.asarray(progress, jnp.float32))
    return lax.map(lambda example: make(*example), (keys, labels))


def _make_pair(key: Array, labels: UInt8[Array, "x y z"], *, settings: Settings, progress: Scalar) -> SyntheticPair:
    """Generates one pair, without the batch axis."""
    x, y, z = labels.shape
    shape = x, y, z
    keys = jax.random.split(key, 6)
    chances = jax.random.uniform(keys[0], (4,))
    any_pair = chances[0] < progress
    has_shapes = any_pair & (chances[1] < settings.shapes)
    draw_shapes = partial(shape_map, keys[1], shape=shape, spacing=settings.spacing)
    labels = lax.cond(has_shapes, draw_shapes, lambda: labels)
    start = settings.start_amplitude / settings.amplitude
    strength = start + (1 - start) * progress
    motion = draw_motion(keys[2], shape, settings=settings, strength=strength, breathes=~has_shapes)
    clean = clean_contrast(keys[3], settings.clean_channels)[labels]
    clean = computed_once(blurred(clean, jnp.full(3, settings.clean_blur)))
    kinds = jnp.where(any_pair, _kinds(chances[2:], settings), jnp.array(STANDARD))
    tables = jax.vmap(contrast)(jax.random.split(keys[4]), kinds)
    tables = jnp.where(any_pair, tables, jnp.stack([standard_contrast(kind) for kind in STANDARD]))
    images = jnp.stack([_moved(table[labels], u) for table, u in zip(tables, motion[:2], strict=True)])
    keys = jax.random.split(keys[5], 3)
    strength = jnp.where(any_pair, 1.0, STANDARD_STRENGTH)
    images = jax.vmap(partial(acquire, settings=settings, strength=strength))(keys[:2], images, is_ct=kinds == CT)
    shown = draw_crops(keys[2], shape, probability=settings.crop * any_pair)
    moving, fixed = ((image * mask)[..., None] for image, mask in zip(images, shown, strict=True))
    clean_moving, clean_fixed = (warp(clean[None], u)[0] for u in motion[:2])
    return SyntheticPair(moving, fixed, motion.between[0], clean_moving, clean_fixed)


def _moved(image: Float[Array, "x y z"], displacement: Displacement) -> Float[Array, "x y z"]:
    return computed_once(warp(computed_once(image)[None, ..., None], displacement)[0, ..., 0])


def _kinds(chances: Float[Array, "2"], settings: Settings) -> Integer[Array, "2"]:
    """Kinds of the contrasts of the moving and the fixed image, drawn independently."""
    return jnp.where(chances < settings.ct, CT, jnp.where(chances < settings.ct + settings.mr, MR, ANY))
