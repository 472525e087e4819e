"""Values of the flags of `register` that are lists."""

import math
from collections.abc import Sequence

from f3r_jax.common.errors import UserError


def window(values: Sequence[str]) -> tuple[float, float]:
    """The HU that become 0 and 1, from the values of `--ct_window`; raises a UserError for others than two numbers."""
    try:
        low, high = map(float, values)
    except ValueError:
        low = high = 0.0
    if not -math.inf < low < high < math.inf:
        raise UserError(f"--ct_window is {','.join(values)}, expected two numbers such as -160,240")
    return low, high


def organs(values: Sequence[str] | None) -> dict[str, tuple[int, ...]] | None:
    """The label values of each organ, from the values of `--organs`; raises a UserError if they are not numbers."""
    if values is None:
        return None
    try:
        named = [part.split("=") for part in values]
        return {name: tuple(int(value) for value in numbers.split("+")) for name, numbers in named}
    except ValueError as error:
        raise UserError(f"--organs is {','.join(values)}, expected such as liver=1,kidneys=3+4") from error
