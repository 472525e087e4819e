"""What the figures and the viewer of a registration show: the scans and labels on the working grid."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from f3r_jax.common.arrays import Intensities, LabelMap, VoxelField
from f3r_jax.config import ORGANS
from f3r_jax.data import resample
from f3r_jax.data.grids import Grid
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.warp import warp, warp_nearest
from f3r_jax.register.pipeline import RegistrationResult
from f3r_jax.register.scans import OrganLabels, Scan
from f3r_jax.register.uncertainty import Uncertainty


@dataclasses.dataclass(frozen=True)
class Shown:
    """Volumes on the working grid. The moving scan and its labels are shown after the affine step.

    Attributes:
      grid: the working grid.
      fixed, moving, warped: the scans in [0, 1].
      displacement: the deformation without its affine part.
      labels: the labels of "fixed", "moving" and "warped", inside the fixed scan's field of view; empty without labels.
      organs: the label values of each organ; without labels those of f3r_jax, which are not used.
      spread: the uncertainty, or None.
    """

    grid: Grid
    fixed: Intensities
    moving: Intensities
    warped: Intensities
    displacement: VoxelField
    labels: Mapping[str, LabelMap]
    organs: Mapping[str, tuple[int, ...]]
    spread: Uncertainty | None


def shown_volumes(
    fixed: Scan, outcome: RegistrationResult, organs: OrganLabels | None, spread: Uncertainty | None
) -> Shown:
    """The volumes of a result; `organs` and `spread` are shown too if there are any."""
    u = outcome.transform.displacement
    return Shown(
        grid=outcome.transform.grid,
        fixed=outcome.fixed,
        moving=outcome.moving,
        warped=np.asarray(warp(jnp.asarray(outcome.moving)[None, ..., None], jnp.asarray(u)[None]))[0, ..., 0],
        displacement=u,
        labels={} if organs is None else _labels(organs, outcome.transform, fixed),
        organs=ORGANS if organs is None else organs.values,
        spread=spread,
    )


def _labels(organs: OrganLabels, transform: Transform, fixed: Scan) -> dict[str, LabelMap]:
    """The fixed, the moving and the warped labels on the working grid, inside the fixed scan's field of view."""
    grid = transform.grid
    there = dataclasses.replace(grid, affine=transform.matrix @ grid.affine)
    moving = resample.resample_labels(organs.moving, there)
    nearest = warp_nearest(jnp.asarray(moving)[None, ..., None], jnp.asarray(transform.displacement)[None])
    warped = np.asarray(nearest)[0, ..., 0]
    inside = resample.field_of_view(fixed.image.grid, grid)
    return {
        "fixed": resample.resample_labels(organs.fixed, grid),
        "moving": np.where(inside, moving, 0),
        "warped": np.where(inside, warped, 0),
    }
