"""The verdict on a registration: `ok`, `check` or `failed`, with reasons in plain words.

The rules use `evidence`, which needs no labels. docs/register.md has a table of right and wrong verdicts.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from f3r_jax.common.errors import EXIT_FAILED_VERDICT
from f3r_jax.register.evidence import Evidence

OK, CHECK, FAILED = "ok", "check", "failed"
LEVELS = (OK, CHECK, FAILED)


@dataclasses.dataclass(frozen=True)
class Limits:
    """A value beyond its limit is a reason.

    Attributes:
      seen: percent of the fixed body in the moving field of view, at least.
      body_dice: of both bodies, percent, at least.
      least_scale, most_scale: of the matrix.
      rotation: of the matrix, degrees, at most.
      likeness: percent, at least.
      smallest_volume: local change of volume, at least.
      cycle_mm: at most.
      apart_mm: distance of another position that matches as well, at most.
      mirrored: percent, at most.
      flipped: percent, at most, upside down and back to front.
    """

    seen: float
    body_dice: float
    least_scale: float
    most_scale: float
    rotation: float
    likeness: float
    smallest_volume: float
    cycle_mm: float
    apart_mm: float
    mirrored: float
    flipped: float


# On 13 results of real pairs of different people, right ones (Dice 48 to 67) had a cycle of 14 to 25 mm, a likeness
# of 31 to 38 % and scales of 0.59 to 1.21. Two wrong ones (Dice 13) had 76 and 77 mm, and 26 and 31 %. The outlines of
# right phantom pairs had a Dice of 67 and more. Mirrored left to right, 16 real pairs matched by -1.2 to 6.4 % better;
# as they are, by 1.5 % at most.
LIMITS = {
    CHECK: Limits(50.0, 60.0, 0.5, 1.8, 25.0, 27.0, 0.05, 32.0, 30.0, 1.7, 3.0),
    FAILED: Limits(20.0, 50.0, 0.35, 2.8, 60.0, 10.0, -1.0, 60.0, math.inf, math.inf, math.inf),
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`level` is one of `LEVELS`. `reasons` has one line of text per rule that spoke against the result."""

    level: str
    reasons: Sequence[str]
    evidence: Evidence | None

    def to_json(self) -> dict[str, Any]:
        """The content of `summary.json`."""
        evidence = None if self.evidence is None else dataclasses.asdict(self.evidence)
        return {"level": self.level, "reasons": list(self.reasons), "evidence": evidence}


def judge(evidence: Evidence | None) -> Verdict:
    """The verdict on a result; None stands for bodies that do not meet."""
    if evidence is None:
        return Verdict(FAILED, ["the two bodies do not meet"], None)
    failed, check = (list(_reasons(evidence, LIMITS[level])) for level in (FAILED, CHECK))
    return Verdict(FAILED if failed else CHECK if check else OK, failed or check, evidence)


def line(verdict: Mapping[str, Any]) -> str:
    """One line of text from `Verdict.to_json`."""
    return ": ".join([verdict["level"], "; ".join(verdict["reasons"])]) if verdict["reasons"] else verdict["level"]


def exit_status(level: str | None, *, strict: bool) -> int:
    """The exit status of a command for a verdict; None stands for a pair without one."""
    return EXIT_FAILED_VERDICT if strict and level == FAILED else 0


def _reasons(found: Evidence, limits: Limits) -> Iterator[str]:
    """One line per limit that is passed."""
    if found.seen < limits.seen:
        yield f"only {found.seen:.0f} % of the fixed body is in the moving scan's field of view"
    if found.body_dice < limits.body_dice:
        yield f"the outlines of the bodies differ (Dice {found.body_dice:.0f} %)"
    least, most = found.scales
    if least < limits.least_scale or most > limits.most_scale:
        yield f"the affine step scales by {least:.2f} to {most:.2f}"
    if found.rotation > limits.rotation:
        yield f"the affine step turns by {found.rotation:.0f} degrees"
    if found.likeness < limits.likeness:
        yield f"the aligned tissues resemble each other little more than shuffled ones ({found.likeness:.0f} %)"
    if found.smallest_volume < limits.smallest_volume:
        yield f"tissue shrinks to {100 * max(found.smallest_volume, 0):.0f} % of its volume"
    if found.cycle_mm > limits.cycle_mm:
        yield f"a registration back ends {found.cycle_mm:.0f} mm away from where it began"
    if found.apart_mm is not None and found.apart_mm > limits.apart_mm:
        yield f"another position, {found.apart_mm:.0f} mm away, matches about as well"
    if found.mirrored > limits.mirrored:
        yield f"the moving scan matches {found.mirrored:.1f} % better if it is mirrored left to right"
    for value, how in ((found.upside_down, "upside down"), (found.back_to_front, "back to front")):
        if value > limits.flipped:
            yield f"the moving scan matches {value:.1f} % better {how}: are the axes in its header right?"
