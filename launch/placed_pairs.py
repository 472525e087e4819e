"""Phantom pairs whose moving CT is anywhere: shifted, scaled and turned, with half of a field of view cut off.

The placement P maps mm of the patient to mm of the CT's frame: x -> s R x + t. The anatomy is painted at the inverse
placement of the CT's voxels. So the CT is along the axes of its own frame, nothing is interpolated, and the body fills
the field of view as in a scanner. The MR is the fixed scan; its frame is the patient's.

Letters: n points, x y z voxels.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.random import Generator, default_rng
from scipy.spatial.transform import Rotation

from f3r_jax.common.arrays import Matrix
from f3r_jax.config import CT_WINDOW, MR_PERCENTILES, ORGANS
from f3r_jax.data import preprocess
from f3r_jax.data.nifti import Grid, Image
from f3r_jax.data.phantom.appearance import CT_PHASES, MR_SEQUENCES, acquire_mr, add_ct_noise
from f3r_jax.data.phantom.generate import centred_axis, draw_patient, image_of
from f3r_jax.data.phantom.motion import displacement_mm
from f3r_jax.data.transforms import Transform, apply_matrix, field_on, warp_image
from f3r_jax.register.scans import Scan
from guided_pairs import LANDMARKS, NOISE

Points = Float64[np.ndarray, "n 3"]  # mm

FIXED, MOVING, SPACING = (336.0, 288.0, 240.0), (480.0, 384.0, 240.0), 4.0  # mm: fields of view, and voxels
STREAM = 4  # of random numbers; the patient has the streams before
LANDMARK_STREAM = 5  # of random numbers
KIDNEYS = tuple(ORGANS[name][0] for name in ("right_kidney", "left_kidney"))
MOST_SHIFT, SCALES, MOST_ROTATION = 300.0, (0.8, 1.25), 20.0  # mm, factors, degrees
OFF_CENTRE = 20.0  # mm, at most, along each axis, between the centres of the moving field of view and of the patient
CUTS = ("neither", "fixed, lower half", "fixed, upper half", "moving, lower half", "moving, upper half")  # what is kept
HALF_OF_CASES = 0.5  # have a cut field of view
POINTS = 6000  # at most, of the body and of the organs
SIGNAL = 5.0  # of the MR without noise: air has none


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the moving scan is: shift in mm, scale, rotation as a vector in degrees, and what of a view is kept."""

    shift: np.ndarray
    scale: float
    rotation: np.ndarray
    off_centre: np.ndarray
    cut: str

    @property
    def matrix(self) -> Matrix:
        """From mm of the patient to mm of the moving scan's frame."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * Rotation.from_rotvec(self.rotation, degrees=True).as_matrix()
        matrix[:3, 3] = self.shift
        return matrix

    def values(self) -> dict[str, Any]:
        """The columns of a table."""
        axis = self.rotation / max(float(np.linalg.norm(self.rotation)), 1e-9)
        return {
            "cut": self.cut,
            "shift_mm": round(float(np.linalg.norm(self.shift)), 1),
            "scale": round(self.scale, 3),
            "rotation": round(float(np.linalg.norm(self.rotation)), 1),
            "axis": " ".join(f"{part:.2f}" for part in axis),
        }


@dataclasses.dataclass(frozen=True)
class PlacedPair:
    """An MR and a CT, points of the MR with their counterparts, and what a user may know of both scans.

    Attributes:
      fixed: the MR.
      moving: the CT.
      placement: where the CT is.
      points: mm of the fixed frame, inside both fields of view; of the body, then of the four organs.
      patient: their counterparts in mm of the patient in the position of the CT, before the placement.
      body: the number of points of the body.
      organ: the label of each point of the four organs.
      labels: the label maps of the MR and of the CT.
      landmarks: eight points of the organs, none of `points`, and their counterparts with noise, in mm of both frames.
        Without an organ in both fields of view they are points of the body.
      visible: which voxels of the MR have their counterpart in the CT's field of view.
    """

    fixed: Scan
    moving: Scan
    placement: Placement
    points: Points
    patient: Points
    body: int
    organ: np.ndarray
    labels: tuple[Image, Image]
    landmarks: tuple[Points, Points]
    visible: np.ndarray

    def errors(self, found: Points) -> tuple[float, float]:
        """Mean distances of found counterparts, in mm of the patient, over the body and over the organs."""
        away = self._away(found)
        return _mean(away[: self.body]), _mean(away[self.body :])

    def kidney_error(self, found: Points) -> float:
        """The mean distance over the kidneys, as in `errors`; NaN if neither is in both fields of view."""
        return _mean(self._away(found)[self.body :][np.isin(self.organ, KIDNEYS)])

    def kidney_dice(self, transform: Transform) -> float:
        """The mean Dice of the kidneys in % over `visible` voxels; NaN if neither is there."""
        grid = self.fixed.image.grid
        found = warp_image(self.labels[1], field_on(transform, grid), grid, order=0)[self.visible]
        wanted = self.labels[0].data[self.visible]
        sides = [(wanted == value, found == value) for value in KIDNEYS if (wanted == value).any()]
        return _mean(np.array([200 * np.sum(a & b) / (a.sum() + b.sum()) for a, b in sides]))

    def _away(self, found: Points) -> np.ndarray:
        there = apply_matrix(np.linalg.inv(self.placement.matrix), found.T).T
        return np.linalg.norm(there - self.patient, axis=1)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def draw_placement(rng: Generator) -> Placement:
    """Draws length and direction of the shift, angle and axis of the rotation, the scale and the cut."""

    def direction() -> np.ndarray:
        vector = rng.normal(size=3)
        return vector / np.linalg.norm(vector)

    shift = rng.uniform(0, MOST_SHIFT) * direction()
    rotation = rng.uniform(0, MOST_ROTATION) * direction()
    scale, off_centre = float(np.exp(rng.uniform(*np.log(SCALES)))), rng.uniform(-OFF_CENTRE, OFF_CENTRE, 3)
    cut = CUTS[int(rng.integers(1, len(CUTS)))] if rng.random() < HALF_OF_CASES else CUTS[0]
    return Placement(shift, scale, rotation, off_centre, cut)


def make_pair(seed: int, index: int, *, spacing: float = SPACING, placement: Placement | None = None) -> PlacedPair:
    """Generates the pair of phantom case (seed, index), with voxels of `spacing` mm; the placement is drawn if None."""
    placement = placement or draw_placement(default_rng([seed, index, STREAM]))
    drawn = draw_patient(seed, index, tuple(CT_PHASES), tuple(MR_SEQUENCES))
    anatomy, motion, ct_values, mr_values, look, noise = drawn
    axes, axes_there = (
        [centred_axis(round(length / spacing), spacing) for length in lengths] for lengths in (FIXED, MOVING)
    )
    to_ct = displacement_mm(motion, axes, backward=False)
    clean, labels = image_of(anatomy, axes, to_ct, mr_values, spacing)
    mr = acquire_mr(look, noise, clean, axes)

    centre = apply_matrix(placement.matrix, placement.off_centre[:, None])[:, 0]
    there = np.stack(np.meshgrid(*axes_there, indexing="ij"))
    inverse = np.linalg.inv(placement.matrix)
    patient = apply_matrix(inverse, there.reshape(3, -1) + centre[:, None]).reshape(there.shape)
    ct, ct_labels = image_of(
        anatomy, axes_there, np.moveaxis(patient - there, 0, -1), ct_values, spacing / placement.scale
    )
    ct = add_ct_noise(noise, ct, np.full(3, spacing))

    fixed_kept, moving_kept = (_kept(placement.cut, side, len(a[2])) for side, a in enumerate((axes, axes_there)))
    fixed = _scan(mr, axes, np.zeros(3), fixed_kept, "mr")
    moving = _scan(ct, axes_there, centre, moving_kept, "ct")
    at = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    counterpart = at + to_ct
    visible = _inside(moving.image.grid, apply_matrix(placement.matrix, counterpart.reshape(-1, 3).T).T)
    visible = visible.reshape(labels.shape)
    visible[:, :, : fixed_kept.start], visible[:, :, fixed_kept.stop :] = False, False
    sets = [np.argwhere(mask & visible) for mask in (np.abs(clean) > SIGNAL, labels > 0)]
    rng = default_rng([seed, index, LANDMARK_STREAM])
    marks = rng.permutation(sets[1] if len(sets[1]) >= LANDMARKS else sets[0])[:LANDMARKS]
    marked = counterpart[tuple(marks.T)] + rng.normal(0, NOISE / np.sqrt(3), (len(marks), 3))
    sets = [each[:: -(-len(each) // POINTS) or 1] for each in sets]
    body, organs = (each[~(each[:, None] == marks).all(axis=2).any(axis=1)] for each in sets)
    chosen = tuple(np.concatenate([body, organs]).T)
    return PlacedPair(
        fixed=fixed,
        moving=moving,
        placement=placement,
        points=at[chosen],
        patient=counterpart[chosen],
        body=len(body),
        organ=labels[tuple(organs.T)],
        labels=(
            Image(labels[:, :, fixed_kept], fixed.image.affine, "labels of the mr"),
            Image(ct_labels[:, :, moving_kept], moving.image.affine, "labels of the ct"),
        ),
        landmarks=(at[tuple(marks.T)], apply_matrix(placement.matrix, marked.T).T),
        visible=visible[:, :, fixed_kept],
    )


def _kept(cut: str, side: int, planes: int) -> slice:
    """The planes that a cut leaves to the fixed (0) or the moving scan (1)."""
    scan, _, half = cut.partition(", ")
    if scan != ("fixed", "moving")[side]:
        return slice(0, planes)
    return slice(0, planes // 2) if half == "lower half" else slice(planes - planes // 2, planes)


def _scan(data: np.ndarray, axes: list[np.ndarray], centre: np.ndarray, planes: slice, modality: str) -> Scan:
    """A scan of some planes; `centre` is that of all planes."""
    spacing = float(axes[0][1] - axes[0][0])
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = centre + np.array([axes[0][0], axes[1][0], axes[2][planes.start]])
    image = Image(np.ascontiguousarray(data[:, :, planes]), affine, f"phantom {modality}")
    normalised = preprocess.normalise(image, modality, ct_window=CT_WINDOW, mr_percentiles=MR_PERCENTILES)
    return Scan(image, normalised, modality, image.grid)


def _inside(grid: Grid, points: Points) -> np.ndarray:
    """Which points are inside a field of view."""
    voxels = apply_matrix(np.linalg.inv(grid.affine), points.T).T
    return ((voxels >= -0.5) & (voxels <= np.array(grid.shape) - 0.5)).all(axis=1)
