"""What instance optimisation compares on a working grid: labels, landmarks, further sequences and parts of a pair.

`grid` is the working grid; the affine `matrix` maps mm of the fixed frame to mm of the moving frame.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from f3r_jax.common.arrays import Matrix
from f3r_jax.data import resample
from f3r_jax.data.affine.guided import trust_in
from f3r_jax.data.nifti import Grid
from f3r_jax.ops.pyramid import Weight
from f3r_jax.ops.restraints import Landmarks, Parts, Restraints, Volumes
from f3r_jax.ops.shapes import as_volume
from f3r_jax.ops.sources import Source, label_source, mind_source
from f3r_jax.register import scans
from f3r_jax.register.guidance import Guidance, driving_labels, parts_of
from f3r_jax.register.scans import Scan

SQUARE_CENTIMETRE = 100.0  # mm^2


class Guides(NamedTuple):
    """The arguments of `refine` besides the volumes."""

    weight: Array | None = None
    further: tuple[Source, ...] = ()
    restraints: Restraints = Restraints()


def guides(
    fixed: Scan, moving: Scan, grid: Grid, matrix: Matrix, guidance: Guidance, *, preset: str, spacing: int
) -> Guides:
    """All that takes part besides the two scans; `spacing` is that of the finest level, in voxels of the grid."""
    extra = _pairs_of_sequences(fixed, moving)
    weight = jnp.float32(1 / (1 + len(extra))) if extra else None
    further = []
    for one, other in extra:
        sides = (_on_grid(scan, main, on) for scan, main, on in _places(one, other, fixed, moving, grid, matrix))
        (image, mask), (image_there, mask_there) = sides
        further.append(mind_source(image, image_there, mask, mask_there, preset=preset, spacing=spacing, weight=weight))
    return Guides(
        weight,
        (*further, *labels(fixed, moving, grid, matrix, guidance, spacing=spacing)),
        restraints(fixed, moving, grid, matrix, guidance),
    )


def labels(
    fixed: Scan, moving: Scan, grid: Grid, matrix: Matrix, guidance: Guidance, *, spacing: int
) -> tuple[Source, ...]:
    """The source of the labels that drive; empty if none does."""
    values = driving_labels(fixed.labels, moving.labels, guidance)
    if not values or fixed.labels is None or moving.labels is None:
        return ()
    there = dataclasses.replace(grid, affine=matrix @ grid.affine)
    maps, known = [], []
    for scan, image, on in ((fixed, fixed.labels, grid), (moving, moving.labels, there)):
        maps.append(as_volume(resample.resample_labels(image, on).astype(np.int32)))
        known.append(as_volume(resample.field_of_view(scan.image.grid, on).astype(np.float32)))
    weight = jnp.float32(guidance.labels_weight)
    return (label_source(*maps, *known, jnp.asarray(values), spacing=spacing, weight=weight),)


def restraints(fixed: Scan, moving: Scan, grid: Grid, matrix: Matrix, guidance: Guidance) -> Restraints:
    """The landmarks that drive, and the parts that move rigidly or keep their volume."""
    landmarks, rigid, volumes = None, None, None
    if guidance.landmarks_weight > 0 and fixed.landmarks is not None and moving.landmarks is not None:
        landmarks = Landmarks(
            fixed=jnp.asarray(resample.to_voxels(fixed.landmarks, grid.affine), jnp.float32),
            moving=jnp.asarray(resample.to_voxels(moving.landmarks, matrix @ grid.affine), jnp.float32),
            used=jnp.asarray(trust_in(fixed.landmarks, moving.landmarks), jnp.float32),
            weight=jnp.float32(guidance.landmarks_weight / SQUARE_CENTIMETRE),
            edge=jnp.float32(grid.spacing.min()),
        )
    if fixed.rigid is not None:
        parts = parts_of(fixed.rigid)
        index = resample.resample_labels(parts, grid).astype(np.int32)
        rigid = Parts(
            as_volume(index),
            as_volume((index > 0).astype(np.float32)),
            jnp.arange(1, int(parts.data.max()) + 1),
            *(jnp.asarray(_centred(affine, grid), jnp.float32) for affine in (grid.affine, matrix @ grid.affine)),
        )
    if fixed.preserve is not None:
        kept = (resample.resample_labels(fixed.preserve, grid) > 0).astype(np.float32)
        volumes = Volumes(as_volume(kept), jnp.float32(np.log(abs(np.linalg.det(matrix[:3, :3])))))
    return Restraints(landmarks, rigid, volumes)


def _centred(affine: np.ndarray, grid: Grid) -> np.ndarray:
    """The first three rows of an affine, shifted so that the centre of the grid is the origin: single precision."""
    centre = affine[:3, :3] @ ((np.asarray(grid.shape) - 1) / 2)
    return np.concatenate([affine[:3, :3], -centre[:, None]], axis=1)


def _pairs_of_sequences(fixed: Scan, moving: Scan) -> Sequence[tuple[Scan, Scan]]:
    """Further pairs to compare, in order; a side without further sequences gives its scan to each of the others."""
    if not fixed.extra and not moving.extra:
        return ()
    one, other = fixed.extra or (fixed,) * len(moving.extra), moving.extra or (moving,) * len(fixed.extra)
    return tuple(zip(one, other, strict=True))


def _places(
    one: Scan, other: Scan, fixed: Scan, moving: Scan, grid: Grid, matrix: Matrix
) -> tuple[tuple[Scan, Scan, Grid], ...]:
    there = dataclasses.replace(grid, affine=matrix @ grid.affine)
    return (one, fixed, grid), (other, moving, there)


def _on_grid(scan: Scan, main: Scan, grid: Grid) -> tuple[Array, Weight]:
    """A further sequence on a grid, and where it is known: inside its field of view and the main scan's mask."""
    data, inside = scans.on_grid(scan, grid)
    if main.mask is not None:
        inside &= resample.resample_labels(main.mask, grid) > 0
    return as_volume(data), as_volume(inside.astype(np.float32))
