"""Settings of synthetic pairs: sizes of motions, probabilities, and strengths of the effects of a scanner."""

from collections.abc import Sequence
from dataclasses import dataclass

from ml_collections import ConfigDict


@dataclass(frozen=True)
class Settings:
    """Static settings: functions are compiled again for other values. Intensities are in [0, 1].

    A "maximum" is the upper bound of a uniform distribution from 0. A "maximum of either sign" is the bound of one from
    minus to plus this value. The two images of a pair move independently, so the displacement between them is larger by
    a factor of about 1.4.
    """

    spacing: tuple[float, float, float] = (4.8, 4.8, 4.8)  # mm
    # Motions
    amplitude: float = 2.0  # voxels, maximum standard deviation of the smooth random velocity
    start_amplitude: float = 0.5  # voxels, at progress 0; the other motions are smaller by the same factor
    shift: float = 1.5  # voxels along each axis, maximum of either sign
    breathing: float = 3.0  # voxels, maximum of either sign of the liver's head-feet motion
    rotation: float = 4.0  # degrees about each axis, maximum of either sign
    scaling: float = 0.04  # maximum of either sign of the logarithm of the size along each axis
    # Contents
    shapes: float = 0.5  # probability of random shapes instead of an anatomy
    ct: float = 0.3  # probability that an image is CT-like
    mr: float = 0.3  # probability that it is MR-like; otherwise tissues have arbitrary intensities
    # Acquisition
    blur: float = 0.8  # voxels, maximum standard deviation
    thick_slices: float = 1.5  # voxels, maximum standard deviation along one axis, in half of the images
    bias: float = 0.4  # maximum standard deviation of the logarithm of a smooth factor, not for CT
    gamma: float = 0.5  # maximum of either sign of the logarithm of the exponent, not for CT
    noise: float = 0.06  # maximum standard deviation
    crop: float = 0.4  # probability that one of the two images has a smaller field of view
    # For the loss
    clean_channels: int = 3
    clean_blur: float = 0.8  # voxels

    def __post_init__(self):
        if not 0 <= self.start_amplitude <= self.amplitude or self.amplitude == 0:
            raise ValueError(
                f"start_amplitude is {self.start_amplitude}, amplitude {self.amplitude}; "
                "expected 0 <= start_amplitude <= amplitude and amplitude > 0"
            )
        if min(self.ct, self.mr) < 0 or self.ct + self.mr > 1:
            raise ValueError(f"ct is {self.ct}, mr {self.mr}; expected probabilities with a sum of at most 1")


def of_config(section: ConfigDict, *, spacing: Sequence[float]) -> Settings:
    """Reads the settings from a section of a config with every field except `spacing`; `spacing` is in mm."""
    scalars = {name: default for name, default in vars(Settings()).items() if name != "spacing"}
    values = {name: type(default)(section[name]) for name, default in scalars.items()}
    x, y, z = map(float, spacing)
    return Settings(spacing=(x, y, z), **values)
