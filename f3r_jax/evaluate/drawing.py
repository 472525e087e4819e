"""What every figure of an evaluation shares."""

import os
from pathlib import Path

from matplotlib.figure import Figure

WIDTH, DPI = 7.0, 200  # inches; 1400 pixels


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a PNG through a temporary file."""
    path = Path(path)
    beside = path.with_suffix(".tmp.png")
    # matplotlib's own version string is left out of the file, so that equal pictures are equal bytes.
    figure.savefig(beside, metadata={"Software": None})
    os.replace(beside, path)


def as_words(name: str) -> str:
    """The name of a number as a reader expects it: "dice_liver" is "dice liver"."""
    return name.replace("_", " ").replace("/", " ").strip()
