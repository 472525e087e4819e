"""Initial alignment of two scans: the frame of their headers, or the centres of their bodies."""

import numpy as np

from f3r_jax.common.arrays import Matrix
from f3r_jax.data import preprocess, resample
from f3r_jax.data.nifti import Image


def initial_alignment(
    fixed: Image, fixed_modality: str, moving: Image, moving_modality: str, *, body_centre: bool = False
) -> tuple[Matrix, bool]:
    """Returns a matrix from mm of the fixed frame to mm of the moving frame, and whether the headers share a frame.

    The matrix is the identity where the scans overlap in space by their headers. Otherwise, or with `body_centre`, it
    shifts the centre of the body in one scan to that in the other.
    """
    related = resample.has_overlap(fixed.grid, moving.grid)
    if related and not body_centre:
        return np.eye(4), True
    shift = preprocess.body_translation(fixed, fixed_modality, moving, moving_modality)
    return resample.translation(shift), related
