"""The volume that the slices of a DICOM series form: their order, their affine, and what is wrong with them.

DICOM's axes are LPS; the affine is in RAS+. Letters: x columns, y rows, z slices.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from f3r_jax.common.errors import UserError
from f3r_jax.data.grids import Affine
from f3r_jax.data.nifti_geometry import check_affine

SAME_PLACE = 0.01  # mm: positions are stored with some decimals
PARALLEL = 1e-3  # largest difference of two direction cosines of one volume
UNEVEN = 0.1  # of the distance between slices: larger deviations are not rounding errors
TILTED = 1e-3  # sideways shift per distance: smaller ones are rounding errors


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: a file, or a frame of a file. Lengths are in mm, LPS."""

    path: Path
    frame: int
    size: tuple[int, int]  # columns and rows
    position: Float64[np.ndarray, "3"]  # of the first voxel
    turn: Float64[np.ndarray, "6"]  # direction of a row, then of a column
    spacing: Float64[np.ndarray, "2"]  # between rows, then between columns
    thickness: float
    slope: float
    intercept: float

    @property
    def normal(self) -> np.ndarray:
        """The direction across the slice."""
        return np.cross(self.turn[:3], self.turn[3:])

    @property
    def name(self) -> str:
        """The slice in messages."""
        return self.path.name + (f" frame {self.frame + 1}" if self.frame else "")


def ordered(slices: Sequence[Slice], path: Path) -> list[Slice]:
    """The slices sorted along their normal.

    Raises:
      UserError: slices of several directions or voxel sizes, or several at one place.
    """
    first = slices[0]
    for each in slices:
        if np.abs(each.turn - first.turn).max() > PARALLEL:
            raise UserError(
                f"{path}: slices of different orientation ({first.name}, {each.name}); expected one volume: is a "
                "localiser among them?"
            )
        if np.abs(each.spacing - first.spacing).max() > 1e-4 * first.spacing.max():
            raise UserError(f"{path}: slices of different pixel spacing ({first.name}, {each.name}); expected one")
    found = sorted(slices, key=lambda each: float(each.position @ first.normal))
    for one, other in itertools.pairwise(found):
        if (other.position - one.position) @ first.normal < SAME_PLACE:
            places = len({round(float(each.position @ first.normal), 2) for each in slices})
            raise UserError(
                f"{path}: {len(slices)} slices at {places} places ({one.name} and {other.name} share one); expected "
                "one volume, but this series holds several (phases, echoes, b-values?): keep the files of one"
            )
    return found


def stack(slices: Sequence[Slice], path: Path) -> tuple[Affine, tuple[str, ...]]:
    """The affine (RAS+) of sorted slices, and notes on it.

    Raises:
      UserError: a slice is missing, or the distances are uneven.
    """
    first = slices[0]
    step = first.normal * first.thickness
    notes: tuple[str, ...] = ()
    if len(slices) > 1:
        places = np.array([each.position @ first.normal for each in slices])
        gaps = np.diff(places)
        gap = float(np.median(gaps))
        _check_gaps(slices, gaps, gap, path)
        step = (slices[-1].position - first.position) / (len(slices) - 1)
        along = first.position + np.arange(len(slices))[:, None] * step
        away = np.linalg.norm(np.array([each.position for each in slices]) - along, axis=1)
        if away.max() > UNEVEN * gap:
            worst = slices[int(away.argmax())]
            raise UserError(f"{path}: {worst.name} is {away.max():.3g} mm off the line of slices; expected one line")
        sideways = np.linalg.norm(step - (step @ first.normal) * first.normal) / (step @ first.normal)
        if sideways > TILTED:
            notes = (
                f"{path}: the gantry was tilted by {np.degrees(np.arctan(sideways)):.3g} degrees, so its axes are not "
                "orthogonal; ITK, ANTs and 3D Slicer refuse results on its grid; resample it first to open them there",
            )
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = first.turn[:3] * first.spacing[1], first.turn[3:] * first.spacing[0]
    lps[:3, 2], lps[:3, 3] = step, first.position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    check_affine(affine, path)
    return affine, notes


def _check_gaps(slices: Sequence[Slice], gaps: np.ndarray, gap: float, path: Path) -> None:
    odd = np.flatnonzero(np.abs(gaps - gap) > UNEVEN * gap)
    if not odd.size:
        return
    index = int(odd[0])
    between = f"between {slices[index].name} and {slices[index + 1].name}"
    missing = gaps / gaps.min() - 1
    if (np.abs(missing - np.rint(missing)) < UNEVEN).all():
        count = int(np.rint(missing).sum())
        index = int(np.argmax(missing > UNEVEN))
        between = f"between {slices[index].name} and {slices[index + 1].name}"
        raise UserError(
            f"{path}: {count} slice{'s are' if count > 1 else ' is'} missing, the first {between} ({gaps[index]:.4g} "
            f"mm apart, others {gaps.min():.4g} mm); expected a whole series"
        )
    raise UserError(
        f"{path}: distances of {gaps.min():.4g} to {gaps.max():.4g} mm between slices (such as {between}); expected "
        "even distances: resample the series first"
    )
