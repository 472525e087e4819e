"""Instance optimisation of a case of a study, without training or starting from a network's prediction."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32
from ml_collections import ConfigDict
from scipy.ndimage import binary_dilation

from f3r_jax.common.errors import UserError
from f3r_jax.data.affine import coarse
from f3r_jax.data.cases import Case
from f3r_jax.evaluate.inference import Registration, apply_displacement
from f3r_jax.ops.instance_optimisation import Level, Refinement, refine
from f3r_jax.ops.mind import PRESETS
from f3r_jax.ops.shapes import as_volume

LABEL = "instance optimisation"
RATE = 0.3  # learning rate of Adam at the start of a level, in voxels of its grid


def settings_of(section: ConfigDict) -> Refinement:
    """The settings in `config.instance`.

    Raises:
      UserError: a value is invalid.
    """
    if section.mind not in PRESETS:
        raise UserError(f"instance.mind is {section.mind!r}, expected one of {', '.join(PRESETS)}")
    if not section.lam >= 0:
        raise UserError(f"instance.lam is {section.lam}, expected 0 or more")
    spacings = tuple(section.spacings)
    if not spacings or not all(isinstance(spacing, int) and spacing > 0 for spacing in spacings):
        raise UserError(f"instance.spacings is {spacings}, expected grid spacings in voxels, such as (8, 4, 2)")
    if not section.steps > 0:
        raise UserError(f"instance.steps is {section.steps}, expected a number above 0")
    levels = tuple(Level(spacing, section.steps, RATE) for spacing in spacings)
    try:
        return Refinement(mind=section.mind, lam=section.lam, levels=levels, diffeomorphic=bool(section.diffeomorphic))
    except ValueError as error:
        raise UserError(f"instance: {error}") from error


def body_of(image: Float32[np.ndarray, "x y z"]) -> Bool[np.ndarray, "x y z"]:
    """The body in an image in [0, 1], and one voxel around it, because its surface is compared too."""
    return binary_dilation(coarse.body_of(image, "mr"))  # a CT in its window has no HU, but is zero in air too


def network_weight_of(section: ConfigDict) -> float:
    """The weight of the network's displacement in the result, from `config.instance` of a network.

    Raises:
      UserError: it is not between 0 and 1.
    """
    if not 0 <= section.network_weight <= 1:
        raise UserError(f"instance.network_weight is {section.network_weight}, expected 0 to 1")
    return float(section.network_weight)


def optimise_case(
    case: Case, settings: Refinement, *, start: np.ndarray | None = None, network_weight: float = 0.0
) -> Registration:
    """Optimises the displacement of one case, starting from a displacement (x y z 3) in voxels or from zero.

    Only the fixed body is compared, because air is no evidence of where tissue belongs. The result is the weighted mean
    of what was found and of a network's displacement, the start: their errors differ, so they partly cancel.
    """
    found = refine(
        as_volume(case.fixed),
        as_volume(case.moving),
        fixed_mask=as_volume(body_of(case.fixed).astype(np.float32)),
        start=None if start is None else jnp.asarray(start)[None],
        settings=settings,
    )
    displacement = np.asarray(found)[0]
    if start is not None:
        displacement = (1 - network_weight) * displacement + network_weight * start
    return apply_displacement(case, displacement)
