"""The position of a pair from the labels or landmarks that drive, for the affine step."""

import dataclasses
from collections.abc import Callable

import numpy as np

from f3r_jax.common.arrays import Matrix
from f3r_jax.data.affine import guided
from f3r_jax.data.affine.guided import Points
from f3r_jax.data.affine.start import DEFORMATION
from f3r_jax.data.nifti import Grid
from f3r_jax.ops.restraints import Restraints
from f3r_jax.ops.sources import Source
from f3r_jax.register import sources
from f3r_jax.register.guidance import Guidance, driving_labels
from f3r_jax.register.scans import Scan

FEWEST = 3  # landmarks that give a rotation
# A matrix may be worse by this, of 1 - Dice and in mm, as labels and landmarks have errors of their own.
SLACK_OF_LABELS, SLACK_OF_LANDMARKS = 0.02, 2.0
NEAR = 48.0  # mm on average over a label that drives: the coarse deformation pulls it into place from there


@dataclasses.dataclass(frozen=True)
class KnownPosition:
    """A matrix from what drives.

    Attributes:
      matrix: mm of the fixed frame to mm of the moving frame.
      what: "labels" or "landmarks", for the console.
      count: how many of them drive.
      points: where they are in the fixed frame, in mm.
      error: the error of a matrix: 1 - Dice, or mm.
      slack: how much worse another matrix may be.
      on_grid: the sources and restraints of what drives on a grid, for a matrix.
    """

    matrix: Matrix
    what: str
    count: int
    points: Points
    error: Callable[[Matrix], float]
    slack: float
    on_grid: Callable[[Grid, Matrix], tuple[tuple[Source, ...], Restraints]]

    def allows(self, other: Matrix) -> bool:
        """Whether what drives does not contradict another matrix."""
        return self.error(other) <= self.error(self.matrix) + self.slack

    def distance(self, other: Matrix) -> float:
        """The distance of another matrix from this one in mm, on average over what drives."""
        between = guided.moved(self.matrix, self.points) - guided.moved(other, self.points)
        return float(np.linalg.norm(between, axis=1).mean())

    def begins(self, searched: Matrix | None) -> list[Matrix]:
        """The matrices from which the coarse deformation begins, given that of a search, if there is one.

        A single label knows little of the rest of the body: if a search ends near it, it begins there, and the label
        pulls during the deformation. docs/register.md has both ways on real pairs: on average the search is better for
        one label, the labels for two and three.
        """
        if searched is None:
            return [self.matrix]
        if self.what == "labels" and self.count == 1:
            return [searched if self.distance(searched) < NEAR else self.matrix]
        return [self.matrix, searched] if self.allows(searched) else [self.matrix]


def known_position(fixed: Scan, moving: Scan, guidance: Guidance, *, scales: bool) -> KnownPosition:
    """The position from three or more landmarks, else from labels, else from fewer landmarks.

    `scales` lets labels give scales along x, y and z too, and landmarks one scale. Labels or landmarks drive.
    """

    def on_grid(grid: Grid, matrix: Matrix) -> tuple[tuple[Source, ...], Restraints]:
        spacing = DEFORMATION.levels[-1].spacing
        given = (fixed, moving, grid, matrix, guidance)
        return sources.labels(*given, spacing=spacing), sources.restraints(*given)

    points: list[Points] = []
    if guidance.landmarks_weight > 0 and fixed.landmarks is not None and moving.landmarks is not None:
        points = [fixed.landmarks, moving.landmarks]
    labels = driving_labels(fixed.labels, moving.labels, guidance)
    if fixed.labels is not None and moving.labels is not None and labels and (not points or len(points[0]) < FEWEST):
        maps = (fixed.labels, moving.labels)
        matrix = guided.from_labels(*maps, labels, scales=scales)
        at = np.argwhere(np.isin(maps[0].data, labels)).astype(np.float64)
        there = guided.moved(maps[0].affine, at)

        def mismatch(matrix: Matrix) -> float:
            return 1 - guided.overlap(*maps, labels, matrix)

        return KnownPosition(matrix, "labels", len(labels), there, mismatch, SLACK_OF_LABELS, on_grid)
    matrix = guided.from_landmarks(*points, scaled=scales)

    def distance(matrix: Matrix) -> float:
        return float(np.median(np.linalg.norm(guided.moved(matrix, points[0]) - points[1], axis=1)))

    return KnownPosition(matrix, "landmarks", len(points[0]), points[0], distance, SLACK_OF_LANDMARKS, on_grid)
