"""Size, saving and labels of the figures of an evaluation."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FuncFormatter

from f3r_jax.common.files import replacing
from f3r_jax.evaluate.slices import INK, SMALL

# The first figure on a machine takes some seconds longer; that is no warning for a user.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)

# Beginnings of Matplotlib's warnings that a user cannot act on: of scripts that its font lacks, and of narrow panels.
NO_WARNING = ("Glyph .* missing from", "Matplotlib currently does not support", "constrained_layout not applied")
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
    that its font lacks and of names that leave no room for the panels. Numbers at an axis stay as they are.
    """
    numbers = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            # Labels that are given, not numbers, have one of these.
            if not isinstance(axis.get_major_formatter(), FixedFormatter | FuncFormatter):
                ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
                numbers |= {axis.offsetText, *(label for tick in ticks for label in (tick.label1, tick.label2))}
    for text in figure.findobj(Text):
        if text not in numbers:
            text.set_text(_escaped(text.get_text()))
            text.set_parse_math(False)
    with warnings.catch_warnings():
        for message in NO_WARNING:
            warnings.filterwarnings("ignore", message=message)
        yield


def _escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(text: str, length: int = 40) -> str:
    """The text, cut in the middle if it has more characters than `length`; what is not UTF-8 is escaped.

    Tick labels need this, because Matplotlib sets them again while it draws.
    """
    text = _escaped(text)
    if len(text) <= length:
        return text
    end = (length - 1) // 3
    return f"{text[: length - 1 - end]}\N{HORIZONTAL ELLIPSIS}{text[-end:]}"


def colour_bar(figure: Figure, shown: AxesImage, extend: str, left: str, right: str = "") -> None:
    """Adds the scale of a panel's colours below the panels, with a word on either side; `extend` is Matplotlib's."""
    height = figure.get_figheight()
    place = figure.add_axes((0.62, 0.27 / height, 0.26, 0.07 / height))
    bar = figure.colorbar(shown, cax=place, orientation="horizontal", extend=extend)
    place.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)
    bar.outline.set_linewidth(0.5)
    for x, word, side in ((0.605, left, "right"), (0.895, right, "left")):
        figure.text(x, 0.305 / height, word, size=SMALL, color=INK, ha=side, va="center")


def as_words(name: str) -> str:
    """Display name of a number: "dice_liver" becomes "dice liver"."""
    return name.replace("_", " ").replace("/", " ").strip()
