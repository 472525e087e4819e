"""Types of JAX arrays for the whole package. `common/arrays.py` has the types of NumPy arrays.

Letters: b batch, x y z voxels along the axes of a RAS+ grid (z is the slice axis), c channels.
Public functions are annotated with these types; the tests check them at run time.
"""

from collections.abc import Iterable
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Num

Volume = Float[Array, "b x y z c"]
Features = Float[Array, "_b _x _y _z _c"]  # a volume whose shape may differ from another's in the same call
WholeVolume = Float[Array, "b _X _Y _Z c"]  # sampled by a displacement that may cover a part of its grid only
Displacement = Float[Array, "b x y z 3"]  # backward displacement in voxels of the fixed grid: phi(p) = p + u(p)
Scalar = Float[Array, ""]
Shape = tuple[int, int, int]  # voxels along x, y and z


def as_volume(array: Num[np.ndarray, "x y z"]) -> Num[Array, "1 x y z 1"]:
    """(x y z) -> (1 x y z 1) on the device; images are float, label maps are whole numbers."""
    return jnp.asarray(array)[None, ..., None]


def total(terms: Iterable[Array]) -> Array:
    """The sum of at least one array; the result of `sum` alone could also be the number 0."""
    return cast(Array, sum(terms))
