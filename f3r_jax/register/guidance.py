"""What the user knows about a pair and what takes part in its registration: settings and their checks.

Labels and landmarks drive if their weight is above zero; else they are only scored. Letters: n landmarks.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from f3r_jax.common.errors import UserError
from f3r_jax.data import resample
from f3r_jax.data.nifti import Grid, Image

SMALLEST_PART = 27  # voxels of the mask: fewer have no rotation and no volume that could be measured
CONNECTED = np.ones((3, 3, 3))  # voxels that share a corner belong to one part


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What drives a registration in addition to the intensities. Each is a flag of `f3r_jax.register`.

    Attributes:
      labels_weight: of the mean over the labels of 1 - Dice.
      labels_drive: the values that drive; None: all that both label maps share.
      landmarks_weight: per square centimetre of the landmarks' mean squared distance.
      robust: whether places that differ by far more than the mean count less.
    """

    labels_weight: float = 0.0
    labels_drive: tuple[int, ...] | None = None
    landmarks_weight: float = 0.0
    robust: bool = False

    @property
    def drives(self) -> bool:
        """Whether labels or landmarks drive."""
        return self.labels_weight > 0 or self.landmarks_weight > 0

    def changed(self) -> dict[str, object]:
        """The settings that differ from their defaults, by the name of their flag."""
        return {name: value for name, value in vars(self).items() if value != getattr(UNGUIDED, name)}


UNGUIDED = Guidance()


def guidance_of(
    labels_weight: float, labels_drive: Sequence[str] | None, landmarks_weight: float, robust: bool
) -> Guidance:
    """The guidance of the flags; raises a UserError for a label that is no number."""
    try:
        drive = None if labels_drive is None else tuple(map(int, labels_drive))
    except ValueError as error:
        raise UserError(f"--labels_drive is {','.join(labels_drive or ())}, expected numbers such as 1,2") from error
    return Guidance(labels_weight, drive, landmarks_weight, robust)


def check_positive(guidance: Guidance) -> None:
    """Raises a UserError for a weight below zero or that is no number."""
    for name in ("labels_weight", "landmarks_weight"):
        if not 0 <= (value := getattr(guidance, name)) < np.inf:
            raise UserError(f"--{name} is {value:g}, expected a number of 0 or more")
    if guidance.labels_drive is not None and not guidance.labels_weight > 0:
        raise UserError("--labels_drive without --labels_weight: no label drives; expected a weight above 0")


def driving_labels(fixed: Image | None, moving: Image | None, guidance: Guidance) -> tuple[int, ...]:
    """The label values that drive; empty without a weight.

    Raises:
      UserError: labels shall drive, and a label map is missing or does not hold them.
    """
    if not guidance.labels_weight > 0:
        return ()
    if fixed is None or moving is None:
        raise UserError("--labels_weight needs label maps of both scans: --fixed_labels and --moving_labels")
    values = [{int(value) for value in np.unique(image.data)} - {0} for image in (fixed, moving)]
    shared = sorted(values[0] & values[1])
    found = [f"{_listed(each)} in {image.path}" for each, image in zip(values, (fixed, moving), strict=True)]
    if not shared:
        raise UserError(f"--labels_weight: the label maps share no value, found {found[0]} and {found[1]}")
    if guidance.labels_drive is None:
        return tuple(shared)
    if missing := [value for value in guidance.labels_drive if value not in shared]:
        raise UserError(f"--labels_drive: label {missing[0]} is not in both maps, found {found[0]} and {found[1]}")
    return tuple(sorted(set(guidance.labels_drive)))


def _listed(values: Sequence[int] | set[int]) -> str:
    return ", ".join(map(str, sorted(values))) or "no label"


def check_landmarks_inside(points: np.ndarray, grid: Grid, file: str) -> None:
    """Raises a UserError for a landmark outside its scan, for example in voxels or in LPS."""
    voxels = resample.to_voxels(points, grid.affine)
    outside = ((voxels < -0.5) | (voxels > np.asarray(grid.shape) - 0.5)).any(axis=1)
    if outside.any():
        row = int(np.argmax(outside))
        place = ", ".join(f"{value:g}" for value in points[row])
        raise UserError(f"{file}: landmark {row + 1} at {place} mm is outside {grid.path}; expected mm in RAS+")


def parts_of(mask: Image) -> Image:
    """The connected parts of each label of a mask, numbered from 1.

    Raises:
      UserError: an empty mask, or a part that is too small.
    """
    numbered, count = np.zeros(mask.data.shape, np.int32), 0
    for value in np.unique(mask.data[mask.data > 0]):
        parts, found = ndimage.label(mask.data == value, CONNECTED)
        numbered[parts > 0] = parts[parts > 0] + count
        count += found
    if not count:
        raise UserError(f"{mask.path}: the mask is empty, expected values above 0 at the voxels of the parts")
    sizes = np.bincount(numbered.ravel())[1:]
    if sizes.min() < SMALLEST_PART:
        raise UserError(
            f"{mask.path}: a part holds {sizes.min()} voxels; expected connected parts of at least {SMALLEST_PART}"
        )
    return dataclasses.replace(mask, data=numbered)


def check_apart(rigid: Image, preserve: Image) -> None:
    """Raises a UserError if a rigid and a preserved part overlap: a rigid part keeps its volume anyway."""
    if shared := np.count_nonzero((rigid.data > 0) & (preserve.data > 0)):
        raise UserError(f"{preserve.path}: overlaps {rigid.path} in {shared} voxels; expected masks apart")
