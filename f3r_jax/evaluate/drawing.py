"""Size, saving and labels of the figures of an evaluation."""

import os
from pathlib import Path

from matplotlib.figure import Figure

from f3r_jax.common.files import replacing

WIDTH, DPI = 7.0, 200  # inches; 1400 pixels


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, through a temporary file."""
    with replacing(Path(path)) as temporary:
        # Matplotlib's version is left out of the file, so that equal figures are equal bytes.
        figure.savefig(temporary, metadata={"Software": None})


def as_words(name: str) -> str:
    """Display name of a number: "dice_liver" becomes "dice liver"."""
    return name.replace("_", " ").replace("/", " ").strip()
