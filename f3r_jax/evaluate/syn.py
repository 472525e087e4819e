"""SyN as a method of a study: the paper's classical baseline, evaluated without training."""

import importlib.util

from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.data.cases import Case
from f3r_jax.evaluate.classical import VolumePair, syn
from f3r_jax.evaluate.inference import Registration, apply_displacement

LABEL = "SyN"


def require_ants() -> None:
    """Raises a UserError if ANTsPy is not installed."""
    if importlib.util.find_spec("ants") is None:
        raise UserError("SyN needs ANTsPy, which is not installed: make EXTRAS=baselines, or pip install antspyx")


def register_case(case: Case, settings: ConfigDict, *, seed: int) -> Registration:
    """Registers one case with the settings of `config.syn`."""
    return apply_displacement(
        case, syn(VolumePair(case.fixed, case.moving, case.spacing), settings=settings, seed=seed)
    )
