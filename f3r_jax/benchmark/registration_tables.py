"""What was found for registrations with f3r_jax and the baselines, as JSON and as a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from f3r_jax.benchmark.environment import Environment
from f3r_jax.benchmark.registration_worker import RegistrationCost
from f3r_jax.benchmark.tables import heading, table

COLUMNS = {  # score: (heading of its column, digits)
    "dice": ("Dice, %", 1),
    "liver_dice": ("liver Dice, %", 1),
    "hd95_mm": ("HD95, mm", 1),
    "epe_mm": ("end-point error, mm", 2),
    "sd_log_jacobian": ("SDlogJ", 3),
    "folding_percent": ("folding, %", 3),
    "seconds": ("seconds", 1),
    "compile_seconds": ("of these, tracing and cache reads", 1),
}


@dataclass(frozen=True)
class RegisteredPair:
    """One pair: its scores by name and the cost of the registration, or the error if it failed."""

    scores: Mapping[str, float] = field(default_factory=dict)
    cost: RegistrationCost | None = None  # None before registration
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The scores and the cost in one dict, or the error."""
        if self.error is not None:
            return {"error": self.error}
        return {**self.scores, **(self.cost.to_json() if self.cost else {})}


@dataclass(frozen=True)
class Registrations:
    """The same pairs registered with several methods."""

    seed: int
    spacing: float  # mm
    left_out: Sequence[str]  # one line for each baseline that is not installed
    before: Sequence[RegisteredPair]
    methods: Mapping[str, Sequence[RegisteredPair]]
    device: str
    first_seconds: Mapping[str, float]  # of the first registration, by f3r_jax method

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return vars(self) | {
            "before": [pair.to_json() for pair in self.before],
            "methods": {name: [pair.to_json() for pair in pairs] for name, pairs in self.methods.items()},
        }

    def failures(self) -> Iterator[tuple[str, int, str]]:
        """(method, index of the pair, error) of each failed registration."""
        for name, pairs in self.methods.items():
            yield from ((name, n, pair.error) for n, pair in enumerate(pairs) if pair.error is not None)


def as_markdown(found: Registrations, environment: Environment) -> str:
    """The section of the Markdown file: how it was measured, and the table."""
    count = len(found.before)
    lines = [
        heading(environment, device=found.device),
        f"{count} phantom {'pairs' if count > 1 else 'pair'} (seed {found.seed}, {found.spacing:g} mm), CT to MR; mean "
        "(minimum-maximum) over pairs. Dice and HD95 are means over liver, spleen and kidneys; the end-point error "
        "is a mean over their voxels. Seconds are those of the registration, without imports. f3r_jax read its "
        "compiled functions from JAX's compilation cache. Tracing and cache reads are listed separately, as is the "
        "first registration of a size, which compiles. Each registration ran in its own process; peak memory is "
        "that of the process, and in parentheses that after the imports.",
        table([row_of("before", found.before, None)] + [
            row_of(name, pairs, found.first_seconds.get(name))
            for name, pairs in found.methods.items() if any(pair.error is None for pair in pairs)
        ]),
        *(f"Failed: {name}, pair {number + 1}: {error}." for name, number, error in found.failures()),
        *found.left_out,
    ]  # fmt: skip
    return "\n\n".join(lines) + "\n"


def row_of(name: str, pairs: Sequence[RegisteredPair], first_seconds: float | None) -> dict[str, str]:
    """A row of the table over the pairs that did not fail; cells without a value are empty."""
    known = [pair.to_json() for pair in pairs if pair.error is None]
    cells = {"method": name if len(known) == len(pairs) else f"{name} ({len(known)} of {len(pairs)} pairs)"}
    for key, (label, digits) in COLUMNS.items():
        cells[label] = format_range([values[key] for values in known], digits) if key in known[0] else ""
    cells["first, s"] = "" if first_seconds is None else f"{first_seconds:.1f}"
    costs = [pair.cost for pair in pairs if pair.cost is not None]
    memory = f"{max(cost.peak for cost in costs):.0f} ({max(cost.imported_mib for cost in costs):.0f})" if costs else ""
    return cells | {"peak MiB (imports)": memory}


def format_range(values: Sequence[float], digits: int) -> str:
    """Mean, minimum and maximum as in 87.3 (85.1-89.4)."""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), min(values), max(values)))
    return f"{mean} ({low}-{high})"
