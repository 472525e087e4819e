"""How intensities are shown: a window from percentiles inside the body, and a power that brightens dark organs."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32
from scipy.ndimage import gaussian_filter

from f3r_jax.common.arrays import Intensities, Mask
from f3r_jax.data.preprocess import filled

EXTREMES = (0.5, 99.7)  # percentiles of the whole volume: a few bright voxels do not count
WINDOW = (1.0, 99.0)  # percentiles inside the body
THRESHOLD = 0.1  # of the extremes' distance: what is brighter is body
MEDIAN = 0.45  # the grey level that the median of the body gets if it would be darker
STRONGEST = 0.5  # the smallest power: more of it shows noise
ENOUGH = 2**18  # voxels for the percentiles


@dataclasses.dataclass(frozen=True)
class GreyScale:
    """Shows intensities from `low` (black) to `high` (white), as ((value - low) / (high - low)) ** power."""

    low: float
    high: float
    power: float = 1.0

    def levels(self, volume: Intensities) -> Float32[np.ndarray, "x y z"]:
        """The grey levels of a volume, 0 to 1."""
        linear = np.clip((volume.astype(np.float32) - self.low) / (self.high - self.low), 0, 1)
        return linear if self.power == 1 else linear ** np.float32(self.power)


def grey_scale(volume: Intensities) -> GreyScale:
    """The grey scale of a volume.

    In many MRs fat and fluid are several times brighter than the liver, which a linear window would show nearly black.
    So where the median of the body is dark, the power is below 1.
    """
    step = max(1, math.ceil((volume.size / ENOUGH) ** (1 / 3)))
    thin = volume[::step, ::step, ::step]
    inside = thin[body_mask(thin)]
    low, high = (float(value) for value in np.percentile(inside, WINDOW)) if inside.size else (0.0, 0.0)
    if not high > low:
        low, high = _extremes(thin)
        return GreyScale(low, high)
    median = float(np.clip((np.median(inside) - low) / (high - low), 1e-3, 1 - 1e-3))
    return GreyScale(low, high, float(np.clip(math.log(MEDIAN) / math.log(median), STRONGEST, 1)))


def body_mask(volume: Intensities) -> Mask:
    """Rough mask of the patient: voxels brighter than a tenth of the grey scale, filled slice by slice."""
    low, high = _extremes(volume)
    bright = gaussian_filter(volume, 1.0) > low + THRESHOLD * (high - low)
    return filled(bright)


def _extremes(volume: Intensities) -> tuple[float, float]:
    low, high = np.percentile(volume, EXTREMES)
    return float(low), float(high) if high > low else float(low) + 1.0
