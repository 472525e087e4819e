"""Intensities by tissue: CT-like, MR-like or any.

A contrast is a table with one intensity in [0, 1] for each of `TISSUES`; air is 0 in all of them.
Letters: t tissues, k channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from f3r_jax.data.synthesis.tissues import TISSUES

Contrast = Float[Array, " t"]
CT, MR, ANY = range(3)
CT_WINDOW = (-160.0, 240.0)  # HU
CT_OFFSET = 12.0  # HU, standard deviation by tissue
MR_SPREAD = 0.35  # standard deviation of the logarithm of a tissue's signal
MR_FULL = 1000.0  # the signal that is 1
# Factors of the fat in an MR signal: in phase, with fat suppression, in opposed phase
FAT_FACTORS = (1.0, 0.08, -1.0)

VENOUS, PLAIN, T2, T1, FAT = np.array(list(TISSUES.values()), np.float32).T
NOT_AIR = (np.arange(len(TISSUES)) > 0).astype(np.float32)


def contrast(key: Array, kind: Integer[Array, ""] | int) -> Contrast:
    """A random contrast of one kind: `CT`, `MR` or `ANY`."""
    keys = jax.random.split(key, 3)
    any_intensity = jax.random.uniform(keys[ANY], (len(TISSUES),))
    return NOT_AIR * jnp.stack([_ct(keys[CT]), _mr(keys[MR]), any_intensity])[kind]


def standard_contrast(kind: int) -> Contrast:
    """CT in the portal venous phase, or a T2-weighted MR."""
    return jnp.asarray(NOT_AIR) * {CT: _windowed(VENOUS), MR: jnp.minimum(T2 / MR_FULL, 1)}[kind]


def clean_contrast(key: Array, channels: int) -> Float[Array, "t {channels}"]:
    """Any intensities, in several channels."""
    return NOT_AIR[:, None] * jax.random.uniform(key, (len(TISSUES), channels))


def _ct(key: Array) -> Contrast:
    """Any amount of contrast agent, each tissue off by some HU."""
    keys = jax.random.split(key)
    enhancement = jax.random.uniform(keys[0], maxval=1.3)
    offset = CT_OFFSET * jax.random.normal(keys[1], (len(TISSUES),))
    return _windowed(PLAIN + enhancement * (VENOUS - PLAIN) + offset)


def _windowed(hounsfield: Array | np.ndarray) -> Contrast:
    low, high = CT_WINDOW
    return jnp.clip((hounsfield - low) / (high - low), 0, 1)


def _mr(key: Array) -> Contrast:
    """T1- or T2-weighted, with or without the signal of fat, each tissue off by a factor."""
    keys = jax.random.split(key, 3)
    weighting = jax.random.bernoulli(keys[0])
    fat_factor = jax.random.choice(keys[1], jnp.array(FAT_FACTORS))
    factors = jnp.exp(MR_SPREAD * jax.random.normal(keys[2], (len(TISSUES),)))
    signal = jnp.where(weighting, T1, T2) * factors * jnp.abs(1 - FAT + fat_factor * FAT)
    return jnp.minimum(signal / MR_FULL, 1)
