"""Intensities by tissue: CT-like, MR-like or any.

A contrast is a table with one intensity in [0, 1] for each of `TISSUES`; air is 0 in all of them.
Letters: t tissues, k channels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Integer

from f3r_jax.data.phantom.appearance import TISSUES

Contrast = Float[Array, " t"]
CT, MR, ANY = range(3)
CT_WINDOW = (-160.0, 240.0)  # HU
CT_OFFSET = 12.0  # HU, standard deviation by tissue
MOST_AGENT = 1.3  # of the contrast agent; 1 is that of the portal venous phase
MR_SPREAD = 0.35  # standard deviation of the logarithm of a tissue's signal
MR_FULL = 1000.0  # the signal that is 1
# Factors of the fat in an MR signal: in phase, with fat suppression, in opposed phase
FAT_FACTORS = (1.0, 0.08, -1.0)

VENOUS, PLAIN, T2, T1, FAT = np.array(list(TISSUES.values()), np.float32).T
NOT_AIR = (np.arange(len(TISSUES)) > 0).astype(np.float32)


def contrast(key: Array, kind: Integer[Array, ""] | int) -> Contrast:
    """A random contrast of one kind: `CT`, `MR` or `ANY`."""
    keys = jax.random.split(key)
    protocol, intensities = jnp.split(jax.random.uniform(keys[0], (3 + len(TISSUES),)), [3])
    spread = jax.random.normal(keys[1], (len(TISSUES),))
    return NOT_AIR * jnp.stack([_ct(protocol, spread), _mr(protocol, spread), intensities])[kind]


def standard_contrast(kind: int) -> Contrast:
    """CT in the portal venous phase, or a T2-weighted MR."""
    return jnp.asarray(NOT_AIR) * {CT: _windowed(VENOUS), MR: jnp.minimum(T2 / MR_FULL, 1)}[kind]


def clean_contrast(key: Array, channels: int) -> Float[Array, "t {channels}"]:
    """Any intensities, in several channels."""
    return NOT_AIR[:, None] * jax.random.uniform(key, (len(TISSUES), channels))


def _ct(protocol: Float[Array, "3"], spread: Contrast) -> Contrast:
    """Any amount of contrast agent, each tissue off by some HU."""
    enhancement = MOST_AGENT * protocol[0]
    return _windowed(PLAIN + enhancement * (VENOUS - PLAIN) + CT_OFFSET * spread)


def _windowed(hounsfield: Array | np.ndarray) -> Contrast:
    low, high = CT_WINDOW
    return jnp.clip((hounsfield - low) / (high - low), 0, 1)


def _mr(protocol: Float[Array, "3"], spread: Contrast) -> Contrast:
    """T1- or T2-weighted, with or without the signal of fat, each tissue off by a factor."""
    weighted = jnp.where(protocol[1] < 0.5, T1, T2)
    fat_factor = jnp.array(FAT_FACTORS)[jnp.floor(len(FAT_FACTORS) * protocol[2]).astype(jnp.int32)]
    signal = weighted * jnp.exp(MR_SPREAD * spread) * jnp.abs(1 - FAT + fat_factor * FAT)
    return jnp.minimum(signal / MR_FULL, 1)
