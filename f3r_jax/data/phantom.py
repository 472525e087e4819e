"""A procedural abdomen imaged by CT and by MR: as many registration problems with a known answer as one likes.

The anatomy is a list of analytic shapes in mm (`phantom_anatomy`), centred on the grid; the field of view crops it or
surrounds it with air. Case (seed, index) is the same patient, the same breathing and the same contrast at any shape and
spacing. The CT is the anatomy as it is; the MR is the same anatomy looked up at deformed coordinates, so that the
truth holds exactly and no label map is interpolated. Letters: x y z voxels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator, default_rng
from scipy.interpolate import make_interp_spline
from scipy.ndimage import gaussian_filter

from f3r_jax.data.phantom_anatomy import draw_anatomy
from f3r_jax.data.phantom_shapes import Anatomy, Points, draw_waves, frame_of, paint, sum_of_waves

# tissue: HU in the portal venous phase, then MR signal of a T2-weighted scan
TISSUES = {
    "air": (-1000, 0),
    "skin": (10, 200),
    "fat": (-100, 840),
    "muscle": (60, 150),
    "lung": (-840, 40),
    "heart": (110, 220),
    "blood": (150, 70),
    "cortical": (620, 50),
    "marrow": (230, 380),
    "disc": (85, 480),
    "fluid": (12, 1050),
    "cord": (40, 360),
    "artery": (155, 50),
    "vein": (170, 90),
    "liver": (112, 270),
    "tumour": (65, 470),
    "necrosis": (30, 760),
    "cyst": (8, 1080),
    "spleen": (122, 440),
    "cortex": (185, 420),
    "medulla": (145, 570),
    "urine": (20, 980),
    "bile": (8, 1050),
    "bowel": (85, 300),
    "chyme": (22, 880),
    "stool": (30, 330),
    "gas": (-950, 15),
    "pancreas": (95, 330),
}
KNOTS_MM = 8.0  # the deformation is integrated on a lattice of this spacing; its shortest wave is 10 times that
SLAB_VOXELS = 400_000  # painted at a time, to bound the memory


@dataclass(frozen=True)
class PhantomCase:
    """One patient; displacements are in voxels and pull: `warp(ct, ct_to_mr)` lines up with `mr`."""

    ct: np.ndarray  # (x y z) float32, HU
    mr: np.ndarray  # (x y z) float32, arbitrary units
    ct_labels: np.ndarray  # (x y z) uint8: 1 liver, 2 spleen, 3 right kidney, 4 left kidney
    mr_labels: np.ndarray
    ct_to_mr: np.ndarray  # (x y z 3) float32
    mr_to_ct: np.ndarray  # (x y z 3) float32, its inverse


def make_case(seed: int, index: int, *, shape: Sequence[int], spacing: Sequence | np.ndarray) -> PhantomCase:
    """Case `index` of the data set `seed` on a grid of `shape` voxels of `spacing` mm, RAS."""
    anatomy_rng, motion_rng, look_rng, noise_rng = (default_rng([seed, index, stream]) for stream in range(4))
    spacing = np.asarray(spacing, float)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    anatomy, motion = draw_anatomy(anatomy_rng), draw_motion(motion_rng)
    ct_values, mr_values = draw_contrast(look_rng)
    ct_to_mr, mr_to_ct = (displacement_mm(motion, axes, backward=backward) for backward in (False, True))
    ct, ct_labels = image_of(anatomy, axes, None, ct_values, float(spacing.mean()))
    mr, mr_labels = image_of(anatomy, axes, ct_to_mr, mr_values, float(spacing.mean()))
    return PhantomCase(
        ct=add_ct_noise(noise_rng, ct, spacing),
        mr=acquire_mr(look_rng, noise_rng, mr, axes),
        ct_labels=ct_labels,
        mr_labels=mr_labels,
        ct_to_mr=(ct_to_mr / spacing).astype(np.float32),
        mr_to_ct=(mr_to_ct / spacing).astype(np.float32),
    )


def image_of(
    anatomy: Anatomy, axes: list[np.ndarray], displacement: np.ndarray | None, values: dict, blur: float
) -> tuple[np.ndarray, np.ndarray]:
    """Intensities and labels of the anatomy at p + displacement(p), slab by slab."""
    images, labels = [], []
    slices = max(1, SLAB_VOXELS // (len(axes[0]) * len(axes[1])))
    for start in range(0, len(axes[2]), slices):
        slab = slice(start, start + slices)
        points = np.meshgrid(axes[0], axes[1], axes[2][slab], indexing="ij")
        if displacement is not None:
            points = [c + displacement[:, :, slab, i] for i, c in enumerate(points)]
        image, label = paint(anatomy, tuple(c.ravel().astype(np.float32) for c in points), values, blur=blur)
        images.append(image.reshape(points[0].shape))
        labels.append(label.reshape(points[0].shape))
    return np.concatenate(images, axis=2), np.concatenate(labels, axis=2)


# Deformation


@dataclass(frozen=True)
class Motion:
    """A stationary velocity (mm per unit time) followed for unit time, then a rigid motion."""

    velocity: Callable[[Points], list[np.ndarray]]
    rotation: np.ndarray  # (3, 3)
    shift: np.ndarray  # (3,) mm


def draw_motion(rng: Generator) -> Motion:
    """MR in expiration against CT in inspiration: the organs stand higher in the MR, the liver most."""
    breath = float(np.clip(rng.normal(-27, 8), -42, -5))
    belly = float(np.clip(rng.normal(5, 3), -2, 12))
    waves = draw_waves(rng, 6, shortest=85, longest=160, amplitude=3.8)
    degrees, shift = np.clip(rng.normal(0, 1.2, 3), -2.5, 2.5), np.clip(rng.normal(0, 2.5, 3), -5, 5)

    def velocity(p: Points) -> list[np.ndarray]:
        x, y, z = p
        spine = np.exp(-((x / 42) ** 2)) / (1 + np.exp((y + 20) / 12))
        wall = np.exp(-(((x / 140) ** 2 + (y / np.where(y < 0, 95, 110)) ** 2) ** 3))
        free = (1 - spine) * wall
        organs = np.exp(-(((x - 45) / 120) ** 2) - ((z - 45) / 105) ** 2)
        front = np.exp(-((x / 85) ** 2) - ((y - 80) / 50) ** 2 - ((z + 10) / 90) ** 2)
        u = [free * wall * wave for wave in sum_of_waves(p, waves)]
        return [u[0], u[1] + belly * front, u[2] + breath * organs * free]

    return Motion(velocity, frame_of(*degrees), shift)


def displacement_mm(motion: Motion, axes: list[np.ndarray], *, backward: bool) -> np.ndarray:
    """Displacement (x, y, z, 3) float64 in mm of the motion or of its inverse.

    Integrated on a lattice and interpolated by cubic splines: the motion is so smooth that this is exact to 0.02 mm,
    and it costs the same at any spacing of the voxels. The flow of the negative velocity is the inverse.
    """
    knots = [np.linspace(a[0] - 1, a[-1] + 1, max(4, int(np.ceil((a[-1] - a[0] + 2) / KNOTS_MM)) + 1)) for a in axes]
    start = np.stack(np.meshgrid(*knots, indexing="ij"))
    rotate = motion.rotation
    if backward:
        end = flow(motion.velocity, rigid(rotate.T, start - motion.shift[:, None, None, None]), -1.0)
    else:
        end = rigid(rotate, flow(motion.velocity, start, 1.0)) + motion.shift[:, None, None, None]
    field = end - start
    for knot, points in zip(knots, axes, strict=True):  # interpolates the first axis and puts it last, three times
        weights = make_interp_spline(knot, np.eye(len(knot)))(points)
        field = np.einsum("cxyz,px->cyzp", field, weights)
    return np.moveaxis(field, 0, -1)


def rigid(rotation: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (3, ...) turned about the origin."""
    return np.einsum("ij,jxyz->ixyz", rotation, points)


def flow(velocity: Callable[[Points], list[np.ndarray]], points: np.ndarray, time: float, steps: int = 3) -> np.ndarray:
    """Where the velocity carries the points (3, ...) in `time`: Runge-Kutta of order 4."""

    def at(p: np.ndarray) -> np.ndarray:
        return np.stack(velocity(tuple(p)))

    h = time / steps
    for _ in range(steps):
        k1 = at(points)
        k2 = at(points + h / 2 * k1)
        k3 = at(points + h / 2 * k2)
        k4 = at(points + h * k3)
        points = points + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return points


# Appearance


def draw_contrast(rng: Generator) -> tuple[dict, dict]:
    """CT values in HU and MR signals by tissue, of one clinic's protocols, each tissue off by some percent."""
    ct, mr = {}, {}
    for tissue, row in TISSUES.items():
        ct_offset, mr_factor = np.clip(rng.normal(size=2), -2, 2)
        ct[tissue] = row[0] + (0.0 if tissue in ("air", "gas") else 5.0 * ct_offset)
        mr[tissue] = row[1] * float(np.exp(0.08 * mr_factor))
    return ct, mr


def add_ct_noise(rng: Generator, image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """HU with noise that is correlated over 2 mm, as reconstruction kernels leave it, and floored at -1024."""
    noise = gaussian_filter(rng.normal(size=image.shape).astype(np.float32), 2.0 / spacing, truncate=3)
    level = rng.uniform(8, 16)
    return np.maximum(image + noise * (level / noise.std()), -1024).astype(np.float32)


def acquire_mr(look: Generator, noise: Generator, image: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
    """Slices thicker than the voxels, a bias field, Rician noise, then interpolation back to the grid."""
    z = axes[2]
    step = z[1] - z[0]
    thickness = max(look.uniform(4.0, 6.5), step)
    bias_waves = draw_waves(look, 3, shortest=350, longest=700, amplitude=0.16)
    level = look.uniform(15, 30)
    centres = np.arange(z[0] + look.uniform(0, 0.5) * thickness, z[-1] + thickness / 2, thickness)
    profile = np.exp(-0.5 * ((centres[:, None] - z) / (0.35 * thickness)) ** 2)
    slices = np.einsum("xyz,sz->xys", image, (profile / profile.sum(1, keepdims=True)).astype(np.float32))
    points = np.meshgrid(axes[0], axes[1], centres, indexing="ij")
    slices *= np.exp(sum_of_waves(tuple(points), bias_waves)[0]).astype(np.float32)
    real, imaginary = (noise.normal(0, level, slices.shape).astype(np.float32) for _ in range(2))
    slices = np.hypot(slices + real, imaginary)
    back = np.stack([np.interp(z, centres, unit) for unit in np.eye(len(centres))], axis=1).astype(np.float32)
    return np.einsum("xys,zs->xyz", slices, back)
