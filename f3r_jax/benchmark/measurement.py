"""The measurement of a workload: the time and memory of each subject, and the ratios of their times."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from f3r_jax.benchmark.environment import Environment
from f3r_jax.benchmark.job import Job, SetUp
from f3r_jax.benchmark.roofline import Cost, Peaks
from f3r_jax.benchmark.workloads import Workload


@dataclass(frozen=True)
class Range:
    """Median, minimum and maximum."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Range":
        """The range of some values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Ratio:
    """Time of the first subject of a workload divided by that of another, run by run."""

    wall: Range
    cpu: Range


@dataclass(frozen=True)
class Performance:
    """Time and memory of a subject."""

    set_up: SetUp
    wall: Sequence[float]  # seconds of each run
    cpu: Sequence[float]
    peak_mib: float
    device_peak_mib: float | None  # of an accelerator's own memory

    @property
    def peak(self) -> float:
        """Peak memory in MiB; with an accelerator, that of its own memory."""
        return self.device_peak_mib or self.peak_mib

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict. Those of `set_up` are next to the others, not in a dict of their own."""
        own = {name: value for name, value in vars(self).items() if name != "set_up"}
        return self.set_up.to_json() | own

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Performance":
        """Reads what `to_json` returns."""
        own = (found[name] for name in ("wall", "cpu", "peak_mib", "device_peak_mib"))
        return cls(SetUp.from_json(found), *own)


@dataclass(frozen=True)
class Measurement:
    """What was found for a workload: `results` and `ratios`, or why there are none."""

    workload: Workload
    results: Mapping[str, Performance] = field(default_factory=dict)  # by `Job.who`
    ratios: Mapping[str, Ratio] = field(default_factory=dict)  # of the first subject to each other one
    no_memory: tuple[str, str] | None = None  # the subject that does not fit into memory, and the message
    error: str | None = None  # of a process that failed
    cost: Cost | None = None  # minimum work of the network

    @property
    def job(self) -> Job:
        """The job of the first subject; those of the others differ in `who` only."""
        return self.workload[0]

    def to_json(self) -> dict[str, Any]:
        """The job, with a list for `who`, and what was found."""
        found: dict[str, Any] = self.job.to_json()
        del found["who"]
        found["who"] = [job.who for job in self.workload]
        if self.results:
            found["results"] = {who: result.to_json() for who, result in self.results.items()}
            found["ratios"] = {who: asdict(ratio) for who, ratio in self.ratios.items()}
        others = {"no_memory": self.no_memory, "error": self.error, "cost": self.cost and self.cost._asdict()}
        return found | {name: value for name, value in others.items() if value is not None}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Measurement":
        """Reads what `to_json` returns."""
        return cls(
            tuple(Job.from_json({**found, "who": who}) for who in found["who"]),
            {who: Performance.from_json(result) for who, result in found.get("results", {}).items()},
            {
                who: Ratio(*(Range(**ratio[clock]) for clock in ("wall", "cpu")))
                for who, ratio in found.get("ratios", {}).items()
            },
            tuple(found["no_memory"]) if "no_memory" in found else None,
            found.get("error"),
            Cost(**found["cost"]) if "cost" in found else None,
        )


@dataclass(frozen=True)
class Measurements:
    """The measurements of a section or of a command, and where they were made."""

    environment: Environment
    device: str
    repeats: int
    rows: Sequence[Measurement]
    peaks: Mapping[str, Peaks] = field(default_factory=dict)  # peak performance of the device by dtype

    def done(self, *what: str) -> list[Measurement]:
        """Those with results, of the given kinds of job or of all."""
        return [row for row in self.rows if row.results and (not what or row.job.what in what)]
