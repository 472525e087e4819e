"""Two scans on one working grid, as network and instance optimisation compare them."""

import copy
import dataclasses
from contextlib import nullcontext

import jax.numpy as jnp
import numpy as np

from f3r_jax.common.arrays import Matrix
from f3r_jax.common.progress import Progress
from f3r_jax.data.affine.coarse import CoarseScan
from f3r_jax.data.affine.start import Start
from f3r_jax.data.nifti import Grid
from f3r_jax.ops import shapes
from f3r_jax.ops.instance_optimisation import Refinement, calls, refine
from f3r_jax.ops.losses import mind_l1
from f3r_jax.ops.shapes import Volume
from f3r_jax.ops.warp import warp
from f3r_jax.register import scans
from f3r_jax.register.scans import Scan
from f3r_jax.register.sources import Guides

NOTHING = Guides()


class WorkingVolumes:
    """Both scans on a working grid, the moving one after the affine `matrix`, with masks of the voxels to compare."""

    def __init__(self, fixed: Scan, moving: Scan, grid: Grid, matrix: Matrix, start: Start | None = None) -> None:
        """Resamples both scans. With a `start` only their bodies are compared, and signals keep their low values."""
        self.grid, self.matrix = grid, matrix
        coarse = None if start is None else start.fixed
        self._coarse = None if start is None else start.moving
        self.fixed, self.fixed_mask = _volumes(fixed, grid, coarse)
        self.moving, self.moving_mask = self._moved(moving, matrix)

    def _moved(self, moving: Scan, matrix: Matrix) -> tuple[Volume, Volume]:
        there = dataclasses.replace(self.grid, affine=matrix @ self.grid.affine)
        return _volumes(moving, there, self._coarse)

    def with_matrix(self, moving: Scan, matrix: Matrix) -> "WorkingVolumes":
        """The same with the moving scan after another matrix; the fixed scan is not resampled again."""
        other = copy.copy(self)
        other.matrix = matrix
        other.moving, other.moving_mask = self._moved(moving, matrix)
        return other

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """The fixed and the moving image as arrays (x y z)."""
        return np.asarray(self.fixed)[0, ..., 0], np.asarray(self.moving)[0, ..., 0]

    def similarity(self, u: np.ndarray | None, mind: str) -> float | None:
        """Mean absolute MIND difference inside both masks; None if they do not overlap."""
        warped, mask = self.moving, self.moving_mask
        if u is not None:
            field = jnp.asarray(u)[None]
            warped, mask = warp(warped, field), warp(mask, field, padding="zero")
        mask = (mask > 0.5) & (self.fixed_mask > 0.5)
        return float(mind_l1(self.fixed, warped, preset=mind, mask=mask.astype(jnp.float32))) if mask.any() else None

    def refined(
        self, start: np.ndarray | None, settings: Refinement, *, shown: bool, guides: Guides = NOTHING
    ) -> np.ndarray:
        """Runs instance optimisation from `start`, or from zero; returns the displacement (x y z 3).

        `shown` adds a progress bar. `guides` take part in addition to the two scans.
        """
        with Progress("refining", calls(settings)) if shown else nullcontext() as bar:
            found = refine(
                self.fixed,
                self.moving,
                start=None if start is None else jnp.asarray(start)[None],
                fixed_mask=self.fixed_mask,
                moving_mask=self.moving_mask,
                weight=guides.weight,
                further=guides.further,
                restraints=guides.restraints,
                settings=settings,
                progress=None if bar is None else bar.advance,
            )
        return np.asarray(found)[0]


def _volumes(scan: Scan, grid: Grid, coarse: CoarseScan | None) -> tuple[Volume, Volume]:
    """A scan on a grid in its frame, and the mask of the voxels to compare."""
    data, mask = scans.on_grid(scan, grid, coarse)
    return shapes.as_volume(data), shapes.as_volume(mask.astype(np.float32))
