"""The stage of a trained network in a registration."""

import jax.numpy as jnp
import numpy as np

from f3r_jax.common.errors import UserError
from f3r_jax.data import transforms
from f3r_jax.data.affine.start import Start
from f3r_jax.data.nifti_geometry import PathLike
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.fields import compose
from f3r_jax.ops.shapes import Displacement, Volume
from f3r_jax.ops.warp import warp
from f3r_jax.register import scans
from f3r_jax.register.scans import Scan
from f3r_jax.register.volumes import WorkingVolumes
from f3r_jax.workdir.trained_network import Network


def predict_displacement(
    network: Network, fixed: Scan, moving: Scan, volumes: WorkingVolumes, start: Start | None = None
) -> np.ndarray:
    """Predicts the displacement (x y z 3) on the grid of `volumes`; the network runs at its training spacing.

    A `start` has a coarse deformation, which is a second estimate of the displacement. The network then also sees the
    moving scan after the mean of both estimates, and its prediction is composed with this mean.
    """
    grid, own = volumes.grid, scans.covering(volumes.grid, spacing=tuple(network.config.data.spacing))
    same = own.shape == grid.shape and np.allclose(own.affine, grid.affine, rtol=0, atol=1e-3)
    inputs = volumes if same else WorkingVolumes(fixed, moving, own, volumes.matrix, start)
    displacement = predicted(network, inputs.moving, inputs.fixed)
    if start is not None:
        mean = (displacement + jnp.asarray(transforms.resampled(start.transform, own))[None]) / 2
        displacement = compose(mean, predicted(network, warp(inputs.moving, mean), inputs.fixed))
    found = np.asarray(displacement)[0]
    return found if same else transforms.resampled(Transform(own, volumes.matrix, found), grid)


def predicted(network: Network, moving: Volume, fixed: Volume) -> Displacement:
    """The displacement (1 x y z 3) that a network predicts.

    For a network that was trained on synthetic pairs, it is the mean of two predictions: for the scans, and for the
    scans mirrored along x.
    """
    displacement, _ = network.predict(network.params, moving, fixed)
    if not network.any_modality:
        return displacement
    mirrored, _ = network.predict(network.params, moving[:, ::-1], fixed[:, ::-1])
    return (displacement + mirrored[:, ::-1] * jnp.array([-1.0, 1.0, 1.0])) / 2


def check_direction(network: Network, modality: str, moving: PathLike) -> None:
    """Raises a UserError unless the network was trained with this modality as the moving scan.

    A network that was trained on synthetic pairs has seen contrasts of all kinds on both sides.
    """
    if network.any_modality:
        return
    expected = "ct" if network.config.data.direction == "ct_to_mr" else "mr"
    if modality != expected:
        raise UserError(
            f"{network.source}: was trained with the {expected.upper()} as the moving scan, but "
            f"{moving} is {modality.upper()}; swap fixed and moving, or give another checkpoint"
        )
