"""Random contrasts: intensities of tissues that are CT-like, MR-like or arbitrary.

A contrast is a table with one intensity in [0, 1] for each of `TISSUES`; air is always 0.
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
CT_OFFSET = 12.0  # HU, standard deviation of the offset of each tissue
MOST_AGENT = 1.3  # maximum amount of contrast agent; 1 is the portal venous phase
MR_SPREAD = 0.35  # standard deviation of the logarithm of a tissue's signal
MR_FULL = 1000.0  # the signal that is scaled to 1
# Factors of the fat signal in MR: in phase, with fat suppression, in opposed phase
FAT_FACTORS = (1.0, 0.08, -1.0)

VENOUS, PLAIN, T2, T1, FAT = np.array(list(TISSUES.values()), np.float32).T
NOT_AIR = (np.arange(len(TISSUES)) > 0).astype(np.float32)


def contrast(key: Array, kind: Integer[Array, ""] | int) -> Contrast:
    """A random contrast of one kind: `CT`, `MR` or `ANY`."""
    keys = jax.random.split(key)
    protocol, intensities = jnp.split(jax.random.uniform(keys[0], (3 + len(TISSUES),)), [3])
    spread = jax.random.normal(keys[1], (len(TISSUES),))
    return jnp.asarray(NOT_AIR) * jnp.stack([_ct(protocol, spread), _mr(protocol, spread), intensities])[kind]


def standard_contrast(kind: int) -> Contrast:
    """The contrast of a CT in the portal venous phase, or of a T2-weighted MR."""
    return jnp.asarray(NOT_AIR) * {CT: _windowed(VENOUS), MR: jnp.minimum(T2 / MR_FULL, 1)}[kind]


def clean_contrast(key: Array, channels: int) -> Float[Array, "t {channels}"]:
    """Arbitrary random intensities, in several channels."""
    return jnp.asarray(NOT_AIR[:, None]) * jax.random.uniform(key, (len(TISSUES), channels))


def _ct(protocol: Float[Array, "3"], spread: Contrast) -> Contrast:
    """A random amount of contrast agent, and a random offset in HU for each tissue."""
    enhancement = MOST_AGENT * protocol[0]
    return _windowed(PLAIN + enhancement * (VENOUS - PLAIN) + CT_OFFSET * spread)


def _windowed(hounsfield: Array | np.ndarray) -> Contrast:
    low, high = CT_WINDOW
    return jnp.clip((hounsfield - low) / (high - low), 0, 1)


def _mr(protocol: Float[Array, "3"], spread: Contrast) -> Contrast:
    """T1- or T2-weighted, with a random factor for fat and one for each tissue."""
    weighted = jnp.where(protocol[1] < 0.5, T1, T2)
    fat_factor = jnp.array(FAT_FACTORS)[jnp.floor(len(FAT_FACTORS) * protocol[2]).astype(jnp.int32)]
    signal = weighted * jnp.exp(MR_SPREAD * spread) * jnp.abs(1 - FAT + fat_factor * FAT)
    return jnp.minimum(signal / MR_FULL, 1)
