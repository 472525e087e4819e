"""Classical baselines from PyPI: SyN, greedy and convexAdam. None of them is trained.

Each takes two volumes on one grid and returns the backward (pull) displacement in voxels of that grid: `fixed` at p
corresponds to `moving` at p + u(p). None starts with an affine step. Their packages are imported in the functions that
need them, and JAX is not imported at all. So a process that runs one of them holds nothing else in memory.

Letters: x y z voxels.
"""

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from f3r_jax.common.arrays import VoxelField
from f3r_jax.config import syn_config


class VolumePair(NamedTuple):
    """Two volumes on one grid, intensities in [0, 1]; spacing along x, y, z in mm."""

    fixed: Float[np.ndarray, "x y z"]
    moving: Float[np.ndarray, "x y z"]
    spacing: Float[np.ndarray, "3"]


def syn(pair: VolumePair, *, settings: ConfigDict | None = None, seed: int = 0) -> VoxelField:
    """SyN (Avants et al., 2008) with mutual information through ANTsPy.

    The default iterations of ANTsPy never run at full resolution; the paper's do (`configs/syn.py`).

    Args:
      pair: the volumes.
      settings: `config.syn` of a config, or of `configs/syn.py` if None.
      seed: seed of the metric's random samples.
    """
    import ants

    settings = syn_config(option="").syn if settings is None else settings
    mm = tuple(float(size) for size in pair.spacing)
    fixed, moving = (ants.from_numpy(np.asarray(image), spacing=mm) for image in (pair.fixed, pair.moving))
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
        # The header has no rotation, so the axes in mm are those in voxels.
        return (ants.image_read(fields[0]).numpy() / np.asarray(pair.spacing)).astype(np.float32)


def greedy(pair: VolumePair, *, iterations: Sequence[int] = (100, 100, 50)) -> VoxelField:
    """Greedy (Yushkevich et al., 2016) with normalised mutual information and its default smoothing and step.

    Its default iterations, 100 at half and 100 at full resolution, start too fine for breathing motion. So three levels
    are used here, as for SyN.
    """
    import SimpleITK
    from picsl_greedy import Greedy3D

    def image(array: np.ndarray) -> SimpleITK.Image:
        converted = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))  # SimpleITK's arrays are (z y x)
        converted.SetSpacing([float(size) for size in pair.spacing])
        return converted

    program = Greedy3D()
    program.execute(
        # -wp 0: the field isn't rounded to a tenth of a voxel; -V 0: nothing is printed.
        f"-i fixed moving -m NMI -n {'x'.join(map(str, iterations))} -o field -wp 0 -V 0",
        fixed=image(pair.fixed),
        moving=image(pair.moving),
        field=None,
    )
    mm = SimpleITK.GetArrayFromImage(program["field"]).transpose(2, 1, 0, 3)  # vectors stay in the order x y z
    return (mm / np.asarray(pair.spacing)).astype(np.float32)


def convex_adam(pair: VolumePair) -> VoxelField:
    """ConvexAdam (Siebert et al., 2021), its authors' package, with MIND and the default settings, on the CPU.

    It ignores the spacing: all lengths and the field are in voxels along the axes of the array.
    """
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    field = convex_adam_pt(pair.fixed, pair.moving, dtype=torch.float32, device=torch.device("cpu"))
    return field.astype(np.float32)


class Baseline(NamedTuple):
    """A baseline: its function, the module that it needs and the package that contains the module."""

    register: Callable[[VolumePair], VoxelField]
    module: str
    package: str

    @property
    def installed(self) -> bool:
        """Whether its package is installed."""
        return importlib.util.find_spec(self.module.partition(".")[0]) is not None

    def prepare(self) -> Callable[[VolumePair], VoxelField]:
        """Imports the module and returns `register`."""
        importlib.import_module(self.module)
        return self.register


BASELINES = {
    "SyN": Baseline(syn, "ants", "antspyx"),
    "greedy": Baseline(greedy, "picsl_greedy", "picsl-greedy"),
    "convexAdam": Baseline(convex_adam, "convexAdam.convex_adam_MIND", "convexAdam"),
}
