"""Types of NumPy arrays for the whole package. `ops/shapes.py` has the types of JAX arrays."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Integer, Real

VoxelField = Float[np.ndarray, "x y z 3"]  # backward displacement in voxels of the fixed grid: phi(p) = p + u(p)
WorldField = Float[np.ndarray, "x y z 3"]  # displacement in mm along the axes of RAS+
Intensities = Float[np.ndarray, "x y z"]
Mask = Bool[np.ndarray, "x y z"]
LabelMap = Integer[np.ndarray, "x y z"]
Matrix = Float[np.ndarray, "4 4"]  # homogeneous, maps points to points
Numbers = Sequence[float | int] | Real[np.ndarray, "n"]
Spacing = Sequence[float | int] | Real[np.ndarray, "3"]  # mm, along x, y, z
