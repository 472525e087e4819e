"""Intensities of the phantom's tissues in CT and in five MR sequences, and the effects of a scanner.

MR signals are those of typical abdominal protocols, in arbitrary units. In fat-suppressed sequences the signal of fat
is almost 0. In opposed phase it is subtracted from the signal of water. The image is the absolute value, so that a
voxel with half of each is black, as on a scanner. `held_out` has further protocols, for tests alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from scipy.ndimage import gaussian_filter

from f3r_jax.data.phantom import held_out
from f3r_jax.data.phantom.shapes import draw_waves, sum_of_waves


class Tissue(NamedTuple):
    """One tissue: CT values in HU by phase, MR signals, and the share of the MR signal that comes from fat."""

    venous: float
    plain: float
    t2: float
    t1: float
    fat: float = 0.0


TISSUES = {
    "air": Tissue(-1000, -1000, 0, 0),
    "skin": Tissue(10, 10, 200, 300, 0.3),
    "fat": Tissue(-100, -100, 840, 900, 0.97),
    "muscle": Tissue(60, 52, 150, 380, 0.03),
    "lung": Tissue(-840, -850, 40, 40),
    "heart": Tissue(110, 40, 220, 350),
    "blood": Tissue(150, 42, 70, 250),
    "cortical": Tissue(620, 610, 50, 40),
    "marrow": Tissue(230, 210, 380, 620, 0.55),
    "disc": Tissue(85, 75, 480, 350),
    "fluid": Tissue(12, 8, 1050, 150),
    "cord": Tissue(40, 32, 360, 330),
    "artery": Tissue(155, 42, 50, 300),
    "vein": Tissue(170, 42, 90, 280),
    "liver": Tissue(112, 58, 270, 540, 0.04),
    "tumour": Tissue(65, 42, 470, 370),
    "necrosis": Tissue(30, 25, 760, 220),
    "cyst": Tissue(8, 6, 1080, 150),
    "spleen": Tissue(122, 48, 440, 360),
    "cortex": Tissue(185, 35, 420, 410),
    "medulla": Tissue(145, 32, 570, 310),
    "urine": Tissue(20, 4, 980, 140),
    "bile": Tissue(8, 10, 1050, 260),
    "bowel": Tissue(85, 36, 300, 350),
    "chyme": Tissue(22, 18, 880, 240),
    "stool": Tissue(30, 30, 330, 450),
    "gas": Tissue(-950, -950, 15, 15),
    "pancreas": Tissue(95, 40, 330, 570, 0.05),
}
GASES = ("air", "gas")

CT_PHASES = {"venous": "portal venous contrast phase", "plain": "no contrast agent"}
# sequence: (its signal, the factor of the fat part of that signal)
MR_SEQUENCES = {
    "t2": ("t2", 1.0),
    "t2_fat_suppressed": ("t2", 0.08),
    "t1_fat_suppressed": ("t1", 0.08),
    "in_phase": ("t1", 1.0),
    "out_of_phase": ("t1", -1.0),
}


def draw_ct_values(rng: Generator, phases: Sequence[str]) -> dict[str, float]:
    """Draws HU by tissue for one of the phases, with a random offset for each tissue."""
    phase = phases[int(rng.integers(len(phases)))]
    offsets = np.clip(rng.normal(size=len(TISSUES)), -2, 2) * 5.0
    return {
        name: _intensity(name, tissue, phase) + (0.0 if name in GASES else offset)
        for (name, tissue), offset in zip(TISSUES.items(), offsets.tolist(), strict=True)
    }


def draw_mr_values(rng: Generator, sequences: Sequence[str]) -> dict[str, float]:
    """Draws the signal by tissue for one of the sequences; negative if fat exceeds water in opposed phase.

    The signal of each tissue varies by some percent, and the fat fraction of the liver is up to a quarter.
    """
    sequence = sequences[int(rng.integers(len(sequences)))]
    signal, factor = MR_SEQUENCES.get(sequence) or (sequence, held_out.SEQUENCES[sequence])
    spread = np.exp(0.1 * np.clip(rng.normal(size=len(TISSUES)), -2, 2)).tolist()
    steatosis = float(np.clip(rng.exponential(0.05), 0, 0.25))
    values = {}
    for (name, tissue), off in zip(TISSUES.items(), spread, strict=True):
        fat = max(tissue.fat, steatosis) if name == "liver" else tissue.fat
        values[name] = _intensity(name, tissue, signal) * off * (1 - fat + factor * fat)
    return values


def _intensity(name: str, tissue: Tissue, protocol: str) -> float:
    """The intensity of a tissue in a protocol, of the table above or of `held_out`."""
    if protocol in held_out.INTENSITIES:
        return float(held_out.INTENSITIES[protocol][name])
    return float(getattr(tissue, protocol))


def add_ct_noise(rng: Generator, image: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Adds noise to HU, correlated over 2 mm like that of reconstruction kernels; the result is at least -1024."""
    noise = gaussian_filter(rng.normal(size=image.shape).astype(np.float32), 2.0 / spacing, truncate=3)
    level = rng.uniform(8, 20)
    return np.maximum(image + noise * (level / noise.std()), -1024).astype(np.float32)


def acquire_mr(look: Generator, noise: Generator, image: np.ndarray, axes: list[np.ndarray]) -> np.ndarray:
    """Simulates an MR of an image: thick slices, a bias field and Rician noise, resampled to the grid.

    The stack of slices may be shorter than the grid; the image is 0 beyond it.
    """
    z = axes[2]
    step = z[1] - z[0]
    thickness = max(look.uniform(3.0, 7.0), step)
    bias_waves = draw_waves(look, 3, shortest=350, longest=700, amplitude=look.uniform(0.05, 0.25))
    level = look.uniform(12, 35)
    centres = np.arange(z[0] + look.uniform(0, 0.5) * thickness, z[-1] + thickness / 2, thickness)
    profile = np.exp(-0.5 * ((centres[:, None] - z) / (0.35 * thickness)) ** 2)
    slices = np.einsum("xyz,sz->xys", np.abs(image), (profile / profile.sum(1, keepdims=True)).astype(np.float32))
    points = np.meshgrid(axes[0], axes[1], centres, indexing="ij")
    slices *= np.exp(sum_of_waves(points, bias_waves)[0]).astype(np.float32)
    real, imaginary = (noise.normal(0, level, slices.shape).astype(np.float32) for _ in range(2))
    slices = np.hypot(slices + real, imaginary)
    back = np.stack([np.interp(z, centres, unit) for unit in np.eye(len(centres))], axis=1).astype(np.float32)
    back[~covered(look, z)] = 0
    return np.einsum("xys,zs->xyz", slices, back)


def covered(rng: Generator, z: np.ndarray) -> np.ndarray:
    """Draws which planes a stack contains: all, or in one of three cases up to a tenth fewer at either end."""
    lost = rng.uniform(0, 0.1, 2) * (z[-1] - z[0])
    if rng.random() > 1 / 3:
        return np.full(len(z), True)
    return (z >= z[0] + lost[0]) & (z <= z[-1] - lost[1])
