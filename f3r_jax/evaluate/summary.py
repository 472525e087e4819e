"""The summary of an evaluation: means over its cases, and the file `summary.json`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from f3r_jax.evaluate import controls, metrics
from f3r_jax.evaluate.controls import PairSpecific
from f3r_jax.evaluate.scores import SCORES, CaseScores, FieldScores, merge_after


@dataclass(frozen=True)
class MeanStd:
    """Mean and standard deviation over cases; NaN where unknown."""

    mean: float
    std: float

    @classmethod
    def from_json(cls, found: Mapping[str, float | None]) -> "MeanStd":
        """Reads a dict of the fields, where JSON has null for a number that is not finite."""
        return cls(*(math.nan if (value := found[name]) is None else value for name in ("mean", "std")))

    @classmethod
    def of(cls, values: Sequence[float]) -> "MeanStd":
        """Summarises the values of all cases."""
        found = metrics.summarise(values)
        return cls(found.mean, found.std)


UNKNOWN = MeanStd(math.nan, math.nan)


@dataclass(frozen=True)
class FieldSummary:
    """Means of `FieldScores` over the cases that have the score; None if none has."""

    organs: Mapping[str, Mapping[str, MeanStd]]  # the `SCORES` of each organ; empty without labels
    epe_mm: MeanStd | None
    tre_mm: MeanStd | None

    def mean_over_organs(self, score: str) -> float:
        """The mean over organs of a score's mean over cases; NaN without organs, or if an organ has no score."""
        return float(np.mean([scores[score].mean for scores in self.organs.values()])) if self.organs else math.nan

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "FieldSummary":
        """Reads a dict of the fields; the errors in mm may be missing."""
        organs = {
            organ: {score: MeanStd.from_json(value) for score, value in of_organ.items()}
            for organ, of_organ in found["organs"].items()
        }
        errors = (found.get(name) for name in ("epe_mm", "tre_mm"))
        return cls(organs, *(error and MeanStd.from_json(error) for error in errors))

    @classmethod
    def of(cls, cases: Sequence[FieldScores]) -> "FieldSummary":
        """Summarises the scores of all cases."""
        known = [case.organs for case in cases if case.organs is not None]
        organs = {
            organ: {score: MeanStd.of([of_case[organ][score] for of_case in known]) for score in SCORES}
            for organ in (known[0] if known else {})
        }
        errors = (
            [value for case in cases if (value := getattr(case, name)) is not None] for name in ("epe_mm", "tre_mm")
        )
        return cls(organs, *(MeanStd.of(values) if values else None for values in errors))


@dataclass(frozen=True)
class ControlSummary:
    """Means of `ControlScores` over cases, and whether the network has learned the pair."""

    mean_field: FieldSummary
    other_pair: FieldSummary
    pair_specific: PairSpecific

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "ControlSummary":
        """Reads a dict of the fields."""
        mean_field, other_pair = (FieldSummary.from_json(found[kind]) for kind in controls.KINDS)
        return cls(mean_field, other_pair, PairSpecific.from_json(found["pair_specific"]))

    @classmethod
    def of(cls, cases: Sequence[CaseScores]) -> "ControlSummary | None":
        """Summarises the controls of all cases; None if a case has none."""
        found = [case.controls for case in cases if case.controls is not None]
        if len(found) < len(cases):
            return None
        pairs = zip(cases, found, strict=True)
        gains = [gain for case, of_case in pairs if (gain := _dice_gain(case.after, of_case.mean_field)) is not None]
        return cls(
            FieldSummary.of([of_case.mean_field for of_case in found]),
            FieldSummary.of([of_case.other_pair for of_case in found]),
            controls.judge(gains, [of_case.deviations for of_case in found]),
        )


@dataclass(frozen=True)
class Summary:
    """The content of `summary.json`."""

    method: str
    direction: str
    cases: int
    parameters: int
    step: int | None  # of the checkpoint; None for a method that is not trained
    seconds_per_pair: float
    device: str
    folding_percent: MeanStd
    sd_log_jacobian: MeanStd
    after: FieldSummary
    before: FieldSummary
    controls: ControlSummary | None
    versions: Mapping[str, str]  # of the packages, at the evaluation
    origin: Mapping[str, Any]  # of the run, see `workdir.metadata.write_origin`
    early: bool = False  # written by a version without controls

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict. Those of `after` are next to the others, not in a dict of their own."""
        fields = asdict(self)
        del fields["early"]
        return merge_after(fields)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Summary":
        """Reads a `summary.json`, also of earlier versions, which wrote "moving" for "before".

        Raises:
          KeyError, TypeError or AttributeError: it is not the summary of an evaluation.
        """
        folding, sd_log_jacobian, of_controls = map(found.get, ("folding_percent", "sd_log_jacobian", "controls"))
        return cls(
            method=found["method"],
            direction=found["direction"],
            cases=found["cases"],
            parameters=found["parameters"],
            step=found["step"],
            seconds_per_pair=found["seconds_per_pair"],
            device=found["device"],
            folding_percent=MeanStd.from_json(folding) if folding else UNKNOWN,
            sd_log_jacobian=MeanStd.from_json(sd_log_jacobian) if sd_log_jacobian else UNKNOWN,
            after=FieldSummary.from_json(found),
            before=FieldSummary.from_json(found["before" if "before" in found else "moving"]),
            controls=ControlSummary.from_json(of_controls) if of_controls else None,
            versions=found.get("versions") or {},
            origin=found.get("origin") or {key: found[key] for key in ("command",) if key in found},
            early="controls" not in found,
        )


def _dice_gain(case: FieldScores, mean_field: FieldScores) -> float | None:
    """Mean Dice of a case minus that of its mean field, in points."""
    if case.organs is None or mean_field.organs is None:
        return None
    own, control = (
        {organ: scores["dice"] for organ, scores in organs.items()} for organs in (case.organs, mean_field.organs)
    )
    return controls.dice_gain(own, control)
