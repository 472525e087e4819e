"""Array shapes, named once for the whole package.

Letters: b batch, x y z voxels along the axes of a RAS+ grid (z is the slice axis), c channels.
Public functions are annotated with these names; the tests check them at run time.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

Volume = Float[Array, "b x y z c"]
Features = Float[Array, "_b _x _y _z _c"]  # a volume whose size or channels differ from another's in the same call
WholeVolume = Float[Array, "b _X _Y _Z c"]  # that a displacement on a part of its grid reads
Displacement = Float[Array, "b x y z 3"]  # voxels of the fixed grid, pull: phi(p) = p + u(p)
Scalar = Float[Array, ""]


def as_volume(array: Float[np.ndarray, "x y z"]) -> Volume:
    """(x y z) -> (1 x y z 1) on the device."""
    return jnp.asarray(array)[None, ..., None]
