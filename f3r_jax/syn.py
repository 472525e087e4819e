"""SyN (Avants et al., 2008) with mutual information through ANTsPy: the paper's classical rival. It learns nothing.

The default iterations of ANTsPy never run at full resolution; the paper's do (`configs/syn.py`).
"""

import importlib.util
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from f3r_jax.data.datasets import Case
from f3r_jax.errors import UserError
from f3r_jax.ops.warp import warp, warp_nearest
from f3r_jax.predict import Registration, volume

LABEL = "SyN"


def check() -> None:
    """Raises a UserError if ANTsPy is not installed."""
    if importlib.util.find_spec("ants") is None:
        raise UserError("SyN needs ANTsPy, which is not installed: make EXTRAS=baselines, or pip install antspyx")


def register(case: Case, settings: ConfigDict, *, seed: int) -> Registration:
    """Registers one case with the settings of `config.syn`."""
    displacement = displace(case.fixed, case.moving, case.spacing, settings, seed=seed)
    field, labels = jnp.asarray(displacement)[None], case.moving_labels
    if labels is not None:
        labels = np.asarray(warp_nearest(jnp.asarray(labels)[None, ..., None], field))[0, ..., 0]
    return Registration(displacement, np.asarray(warp(volume(case.moving), field))[0, ..., 0], labels)


def displace(
    fixed: Float[np.ndarray, "x y z"],
    moving: Float[np.ndarray, "x y z"],
    spacing: Float[np.ndarray, "3"],
    settings: ConfigDict,
    *,
    seed: int,
) -> Float[np.ndarray, "x y z 3"]:
    """SyN's displacement in voxels of the fixed grid, pull. Both volumes are on the same grid; spacing is in mm."""
    import ants

    mm = tuple(float(size) for size in spacing)
    fixed, moving = (ants.from_numpy(np.asarray(image), spacing=mm) for image in (fixed, moving))
    with tempfile.TemporaryDirectory(prefix="syn-") as folder:
        result = ants.registration(
            fixed=fixed,
            moving=moving,
            type_of_transform="SyNOnly",
            initial_transform="identity",
            syn_metric="mattes",
            syn_sampling=settings.bins,
            reg_iterations=tuple(settings.iterations),
            grad_step=settings.grad_step,
            flow_sigma=settings.flow_sigma,
            total_sigma=settings.total_sigma,
            outprefix=f"{folder}/",
            random_seed=seed + 1,  # 0 would mean a seed from the clock
        )
        fields = [path for path in result["fwdtransforms"] if Path(path).name.endswith("Warp.nii.gz")]
        # Without a rotation in the header the axes of the millimetres are those of the voxels.
        return (ants.image_read(fields[0]).numpy() / np.asarray(spacing)).astype(np.float32)
