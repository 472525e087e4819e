"""The scores of a case: after and before registration and with the fields of its controls, as JSON and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from f3r_jax.evaluate.controls import KINDS, Deviations

SCORES = ("dice", "asd_mm", "hd95_mm")

OrganScores = Mapping[str, Mapping[str, float]]  # the `SCORES` of each organ: Dice in percent, distances in mm


@dataclass(frozen=True)
class FieldScores:
    """Scores of a case under one displacement. A score without ground truth is None."""

    organs: OrganScores | None
    epe_mm: float | None  # end-point error inside the organs
    tre_mm: float | None  # target registration error of the landmarks

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "FieldScores":
        """Reads a dict of the fields, which may have other keys too."""
        return cls(found["organs"], found["epe_mm"], found["tre_mm"])


@dataclass(frozen=True)
class ControlScores:
    """Scores of a case with the fields of its controls."""

    mean_field: FieldScores
    other_pair: FieldScores
    deviations: Deviations

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "ControlScores":
        """Reads a dict of the fields."""
        mean_field, other_pair = (FieldScores.from_json(found[kind]) for kind in KINDS)
        return cls(mean_field, other_pair, Deviations(**found["deviations"]))


@dataclass(frozen=True)
class CaseScores:
    """The scores of a case of an evaluation."""

    seconds: float
    folding_percent: float
    sd_log_jacobian: float
    after: FieldScores
    before: FieldScores
    controls: ControlScores | None  # None for a method that is not trained, or without another case

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict. Those of `after` are next to the others, not in a dict of their own."""
        return merge_after(asdict(self))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "CaseScores":
        """Reads what `to_json` returns."""
        return cls(
            found["seconds"],
            found["folding_percent"],
            found["sd_log_jacobian"],
            FieldScores.from_json(found),
            FieldScores.from_json(found["before"]),
            ControlScores.from_json(found["controls"]) if found["controls"] else None,
        )


def merge_after(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the entry "after" by its own entries, as the files of an evaluation have them."""
    parts = (value if name == "after" else {name: value} for name, value in fields.items())
    return {name: value for part in parts for name, value in part.items()}


def cases_csv(cases: Mapping[str, CaseScores]) -> str:
    """CSV with one row per case and organ; unknown values stay empty."""
    suffixes = ["before", *KINDS]
    wide = [*SCORES, *(f"{score}_{suffix}" for suffix in suffixes for score in SCORES)]
    errors = ["epe_mm", *(f"epe_mm_{suffix}" for suffix in suffixes)]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["case", "organ", *wide, *errors, "folding_percent", "sd_log_jacobian", "seconds"], lineterminator="\n"
    )
    writer.writeheader()
    for name, case in cases.items():
        writer.writerows(_csv_rows(name, case))
    return text.getvalue()


def _csv_rows(name: str, case: CaseScores) -> Sequence[Mapping[str, object]]:
    sides = {"": case.after, "_before": case.before}
    if case.controls is not None:
        sides |= {"_mean_field": case.controls.mean_field, "_other_pair": case.controls.other_pair}
    shared: dict[str, object] = {"case": name, "seconds": case.seconds}
    shared |= {"folding_percent": case.folding_percent, "sd_log_jacobian": case.sd_log_jacobian}
    shared |= {f"epe_mm{suffix}": side.epe_mm for suffix, side in sides.items()}
    if case.after.organs is None:
        return [shared]
    return [
        shared
        | {"organ": organ}
        | {
            f"{key}{suffix}": value
            for suffix, side in sides.items()
            for key, value in (side.organs or {})[organ].items()
        }
        for organ in case.after.organs
    ]
