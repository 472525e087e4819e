"""Values of flags that are lists or ranges: the CT window, the labels of organs, rows of a table."""

import math
import re
from collections.abc import Sequence

from f3r_jax.common.errors import UserError


def window(texts: Sequence[str]) -> tuple[float, float]:
    """The bounds of `--ct_window` in HU; raises a UserError unless they are two increasing numbers."""
    try:
        low, high = map(float, texts)
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise UserError(f"--ct_window is {','.join(texts)}, expected two numbers such as -160,240")
    return low, high


def rows(text: str | None) -> range | None:
    """The rows of `--rows`, from 0; None without the flag. Raises a UserError for another form than 11-20."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)-(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(f"--rows is {text!r}, expected the first and the last row of the table, from 1, such as 11-20")
    return range(int(found[1]) - 1, int(found[2]))


def organs(texts: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """The label values of `--organs` by name; None without the flag. Raises a UserError for another form."""
    if texts is None:
        return None
    try:
        named = [part.split("=") for part in texts]
        return {name: tuple(int(value) for value in values.split("+")) for name, values in named}
    except ValueError as error:
        raise UserError(f"--organs is {','.join(texts)}, expected such as liver=1,kidneys=3+4") from error
