"""Generates phantom cases: a procedural abdomen imaged by CT and by MR, with known displacement.

The anatomy is a list of analytic shapes in mm (`anatomy`), centred on the grid. The field of view crops it or surrounds
it with air. Case (seed, index) has the same patient, breathing and contrast at any shape and spacing. The CT is the
undeformed anatomy. The MR is the same anatomy evaluated at deformed coordinates, so that the ground truth is exact and
no label map is interpolated.

The CT may be in inspiration and the MR in expiration, or vice versa. The mean displacement over many cases is zero, so
that a registration cannot gain anything without the images of the pair. Letters: x y z voxels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, default_rng

from f3r_jax.data.phantom.anatomy import draw_anatomy
from f3r_jax.data.phantom.appearance import (
    CT_PHASES,
    MR_SEQUENCES,
    acquire_mr,
    add_ct_noise,
    draw_ct_values,
    draw_mr_values,
)
from f3r_jax.data.phantom.motion import Motion, displacement_mm, draw_motion
from f3r_jax.data.phantom.shapes import Anatomy, paint

SLAB_VOXELS = 400_000  # painted at a time, to limit the memory


@dataclass(frozen=True)
class PhantomCase:
    """CT and MR of one patient. Displacements are for a backward warp, in voxels: `warp(ct, ct_to_mr)` matches `mr`."""

    ct: np.ndarray  # (x y z) float32, HU
    mr: np.ndarray  # (x y z) float32, arbitrary units
    ct_labels: np.ndarray  # (x y z) uint8: 1 liver, 2 spleen, 3 right kidney, 4 left kidney
    mr_labels: np.ndarray
    ct_to_mr: np.ndarray  # (x y z 3) float32
    mr_to_ct: np.ndarray  # (x y z 3) float32, its inverse


class Patient(NamedTuple):
    """What a case shows, at any shape and spacing, and the generators of its MR's look and of the noise."""

    anatomy: Anatomy
    motion: Motion
    ct_values: dict
    mr_values: dict
    look: Generator
    noise: Generator


def draw_patient(seed: int, index: int, ct_phases: Sequence[str], mr_sequences: Sequence[str]) -> Patient:
    """Draws the patient of case `index` of the data set `seed`, its motion, and the intensities of both scans."""
    anatomy_rng, motion_rng, look_rng, noise_rng = (default_rng([seed, index, stream]) for stream in range(4))
    anatomy = draw_anatomy(anatomy_rng)
    motion = draw_motion(motion_rng, anatomy.frame)
    ct_values, mr_values = draw_ct_values(look_rng, ct_phases), draw_mr_values(look_rng, mr_sequences)
    return Patient(anatomy, motion, ct_values, mr_values, look_rng, noise_rng)


def centred_axis(count: int, spacing: float) -> np.ndarray:
    """The centres of voxels in mm, from the middle of a field of view."""
    return (np.arange(count) - (count - 1) / 2) * spacing


def make_case(
    seed: int,
    index: int,
    *,
    shape: Sequence[int],
    spacing: Sequence | np.ndarray,
    ct_phases: Sequence[str] = tuple(CT_PHASES),
    mr_sequences: Sequence[str] = tuple(MR_SEQUENCES),
) -> PhantomCase:
    """Generates case `index` of the data set `seed` on a grid of `shape` voxels of `spacing` mm, RAS.

    The CT phase and the MR sequence are drawn from the given ones; patient and motion do not depend on them.
    """
    anatomy, motion, ct_values, mr_values, look, noise = draw_patient(seed, index, ct_phases, mr_sequences)
    spacing = np.asarray(spacing, float)
    axes = [centred_axis(n, s) for n, s in zip(shape, spacing, strict=True)]
    ct_to_mr, mr_to_ct = (displacement_mm(motion, axes, backward=backward) for backward in (False, True))
    ct, ct_labels = image_of(anatomy, axes, None, ct_values, float(spacing.mean()))
    mr, mr_labels = image_of(anatomy, axes, ct_to_mr, mr_values, float(spacing.mean()))
    return PhantomCase(
        ct=add_ct_noise(noise, ct, spacing),
        mr=acquire_mr(look, noise, mr, axes),
        ct_labels=ct_labels,
        mr_labels=mr_labels,
        ct_to_mr=(ct_to_mr / spacing).astype(np.float32),
        mr_to_ct=(mr_to_ct / spacing).astype(np.float32),
    )


def image_of(
    anatomy: Anatomy, axes: list[np.ndarray], displacement: np.ndarray | None, values: dict, blur: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paints intensities and labels of the anatomy at p + displacement(p), slab by slab."""
    images, labels = [], []
    slices = max(1, SLAB_VOXELS // (len(axes[0]) * len(axes[1])))
    for start in range(0, len(axes[2]), slices):
        slab = slice(start, start + slices)
        points = list(np.meshgrid(axes[0], axes[1], axes[2][slab], indexing="ij"))
        if displacement is not None:
            points = [c + displacement[:, :, slab, i] for i, c in enumerate(points)]
        x, y, z = (c.ravel().astype(np.float32) for c in points)
        image, label = paint(anatomy, (x, y, z), values, blur=blur)
        images.append(image.reshape(points[0].shape))
        labels.append(label.reshape(points[0].shape))
    return np.concatenate(images, axis=2), np.concatenate(labels, axis=2)
