"""Size, saving and labels of the figures of an evaluation."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

from f3r_jax.common.files import replacing

# The first figure on a machine takes some seconds longer; that is no warning for a user.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

WIDTH, DPI = 7.0, 200  # inches; 1400 pixels


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Writes a figure as PNG, through a temporary file."""
    with replacing(Path(path)) as temporary, plain_text(figure):
        # Matplotlib's version is left out of the file, so that equal figures are equal bytes.
        figure.savefig(temporary, metadata={"Software": None})


@contextmanager
def plain_text(figure: Figure) -> Iterator[None]:
    """Makes a figure's text literal, to be saved inside the block: names of files and organs may contain anything.

    Matplotlib reads text between two $ as mathematics, cannot draw names that are not UTF-8, and warns of characters
    that its font lacks. Numbers at an axis stay as they are.
    """
    numbers = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            if not isinstance(axis.get_major_formatter(), FixedFormatter):
                ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                numbers |= {axis.offsetText, *(label for tick in ticks for label in (tick.label1, tick.label2))}
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_text(text.get_text().encode("utf-8", "backslashreplace").decode())
            text.set_parse_math(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def as_words(name: str) -> str:
    """Display name of a number: "dice_liver" becomes "dice liver"."""
    return name.replace("_", " ").replace("/", " ").strip()
