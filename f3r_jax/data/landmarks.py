"""Landmarks: corresponding points of two scans."""

from pathlib import Path

import numpy as np

from f3r_jax.common.errors import UserError
from f3r_jax.data.points import read_points


def check_landmarks(one: Path, other: Path) -> None:
    """Raises a UserError unless both files hold equally many points."""
    counts = [len(read_landmarks(file)) for file in (one, other)]
    if counts[0] != counts[1]:
        raise UserError(f"{one}: {counts[0]} landmarks, but {counts[1]} in {other}; they must correspond row by row")


def read_landmarks(path: Path) -> np.ndarray:
    """Reads points (n 3) in mm, RAS+, from a file that `points.py` reads."""
    return read_points(path).points
