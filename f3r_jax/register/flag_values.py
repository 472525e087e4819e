"""Values of flags that hold several numbers or names."""

import math
from collections.abc import Sequence

from f3r_jax.common.errors import UserError


def window_of(values: Sequence[str]) -> tuple[float, float]:
    """The HU of `--ct_window`; raises a UserError unless they are two numbers in order."""
    try:
        low, high = map(float, values)
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise UserError(f"--ct_window is {','.join(values)}, expected two numbers such as -160,240")
    return low, high


def organs_of(values: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """The label values of `--organs`; raises a UserError for another form."""
    if values is None:
        return None
    try:
        named = [part.split("=") for part in values]
        return {name: tuple(int(value) for value in of_organ.split("+")) for name, of_organ in named}
    except ValueError as error:
        raise UserError(f"--organs is {','.join(values)}, expected such as liver=1,kidneys=3+4") from error
