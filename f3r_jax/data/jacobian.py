"""The Jacobian determinant of a transform as a volume."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from f3r_jax.data.nifti import Grid, Image
from f3r_jax.data.resample import resample
from f3r_jax.data.transforms import Transform
from f3r_jax.ops.fields import jacobian_determinant


def jacobian_on(transform: Transform, grid: Grid) -> Float32[np.ndarray, "x y z"]:
    """The Jacobian determinant of the deformation without the matrix: 1.1 where the moving scan is 10 % larger.

    It is computed on the working grid, by central differences, and sampled trilinearly at each voxel of `grid`, a grid
    of the fixed frame. Outside the working grid the displacement is constant, so it is 1.
    """
    determinant = np.asarray(jacobian_determinant(jnp.asarray(transform.displacement)[None]))[0]
    return resample(Image(determinant - 1, transform.grid.affine), grid) + np.float32(1)
