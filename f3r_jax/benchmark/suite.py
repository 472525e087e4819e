"""The whole benchmark: measures section after section and writes each to the Markdown file when it is finished.

Each measurement is saved at once in RECORD/DEVICE/SECTION.json. A suite that was killed or ran out of time
resumes from there if sources, versions and machine are unchanged. Sections are named after the device, so sections of
other devices are left unchanged in the file, with their date.
"""

import contextlib
import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from f3r_jax.benchmark import registration, registration_tables, roofline, section_tables, workloads
from f3r_jax.benchmark.environment import Environment, current_environment, fingerprint
from f3r_jax.benchmark.job import Job, SetUp
from f3r_jax.benchmark.measurement import Measurement, Measurements
from f3r_jax.benchmark.roofline import Cost, Peaks
from f3r_jax.benchmark.tables import heading, remarks, replace_section
from f3r_jax.benchmark.timing import Worker, measure
from f3r_jax.benchmark.workloads import JAX, Target, Workload
from f3r_jax.common.files import json_safe, write_text
from f3r_jax.common.provenance import versions
from f3r_jax.evaluate.classical import BASELINES

SMALL, LARGE, LARGEST, TINY = (64, 64, 64), (144, 144, 128), (192, 160, 192), (48, 32, 32)
EDGES = (64, 96, 128, 160, 192)
CASES = 2  # pairs to register
UNFINISHED = 3  # exit status when the time is up
NEVER = float("inf")


class Section(NamedTuple):
    """A section of the Markdown file."""

    title: str  # " on DEVICE" is added
    workloads: Callable[[Target], list[Workload]]
    tables: Callable[[Measurements], list[str]]
    against: tuple[str, ...]
    repeats: int
    repeats_on_gpu: int


BOTH = tuple(workloads.BASELINES)
SECTIONS = {
    "small": Section("64 x 64 x 64", partial(workloads.networks, shape=SMALL), section_tables.networks, BOTH, 5, 20),
    "large": Section("144 x 144 x 128", partial(workloads.networks, shape=LARGE), section_tables.networks, BOTH, 3, 20),
    "scaling": Section("Scaling", partial(workloads.scaling, edges=EDGES), section_tables.scaling, ("torch",), 3, 20),
    "memory": Section("Memory", partial(workloads.memory, shapes=(LARGE, LARGEST)), section_tables.memory, (), 0, 0),
    "convolutions": Section(
        "Convolutions", partial(workloads.convolutions, shape=SMALL), section_tables.convolutions, ("torch",), 5, 20
    ),
    "sweep": Section("Three lambdas as one", partial(workloads.sweeps, shape=TINY), section_tables.sweeps, (), 5, 20),
}
REGISTRATION = "registration"
NAMES = (*SECTIONS, REGISTRATION)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Where the sections are measured and saved."""

    target: Target
    environment: Environment
    sources: str  # `environment.fingerprint`
    folder: Path  # holds the records of this device
    page: Path | None = None  # the Markdown file
    deadline: float = NEVER  # of time.monotonic()
    checkpoint: str | None = None  # folder of a training run, for the registrations
    peaks: dict[str, Peaks] = dataclasses.field(default_factory=dict)  # peak performance of the device, by dtype

    @property
    def key(self) -> dict[str, Any]:
        """Identifies sources, device, machine and versions; a record with another key is not reused."""
        facts = {name: self.environment.to_json()[name] for name in ("machine", "versions")}
        return {"sources": self.sources, "device": self.target.device} | facts

    @property
    def late(self) -> bool:
        """Whether the time is up, so that nothing new is started."""
        return time.monotonic() > self.deadline

    def read(self, name: str) -> dict[str, Any]:
        """The record of that name, or {} if there is none with this key."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # no record, or no JSON
            record: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
            if record["key"] == self.key:
                return record
        return {}

    def write(self, name: str, **values: object) -> None:
        """Saves a record."""
        record = {"key": self.key} | values
        write_text(self.folder / f"{name}.json", json.dumps(json_safe(record), indent=1) + "\n")

    def publish(self, title: str, text: str) -> None:
        """Prints a section and writes it to the Markdown file."""
        print(f"\n## {title} on {self.target.device}\n\n{text}", flush=True)
        if self.page:
            replace_section(self.page, text, name=f"{title} on {self.target.device}")

    def found(self, name: str) -> dict[str, Measurement]:
        """Saved measurements of a section by `identity`, without failed ones, which are measured again."""
        rows = {which: Measurement.from_json(row) for which, row in self.read(name).get("measurements", {}).items()}
        return {which: row for which, row in rows.items() if row.error is None}


def start(*, record: Path, page: Path | None, minutes: float | None, checkpoint: str | None) -> Suite:
    """The suite for the device of this machine."""
    deadline = NEVER if minutes is None else time.monotonic() + 60 * minutes
    device = ask(Job(JAX, "device")).device
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    folder = record / re.sub(r"\W+", "_", device)
    folder.mkdir(parents=True, exist_ok=True)
    here = Target(device, workloads.installed())
    suite = Suite(here, current_environment(), fingerprint(), folder, page, deadline, checkpoint)
    commit = suite.environment.commit
    first = suite.read("device")
    if not first:
        first = {"commit": commit, "peaks": {dtype: ask(Job(JAX, "peaks", dtype=dtype)).peaks for dtype in here.dtypes}}
        suite.write("device", **first)
    if commit is None or commit.endswith("+"):
        # The suite writes the Markdown file, so the working tree differs from its commit; the sources do not.
        commit = first["commit"]
    described = dataclasses.replace(suite.environment, commit=commit)
    peaks = {dtype: Peaks(**each) for dtype, each in first["peaks"].items()}
    return dataclasses.replace(suite, environment=described, peaks=peaks)


def ask(job: Job) -> SetUp:
    """What is known of a job when it is ready."""
    with Worker(job) as worker:
        return worker.wait_until_ready()


def run_suite(names: Iterable[str], suite: Suite, *, fresh: bool = False) -> int:
    """Measures these sections; finished ones are measured again only with `fresh`.

    Returns:
      The exit status: 1 if a process failed, otherwise `UNFINISHED` if the time is up.
    """
    if fresh:
        for name in names:
            (suite.folder / f"{name}.json").unlink(missing_ok=True)
    print("\n".join(plan(names, suite)), flush=True)
    statuses = [
        registrations(suite) if name == REGISTRATION else section(SECTIONS[name], name, suite) for name in names
    ]
    if UNFINISHED in statuses:
        print("The time is up; run the same command again to resume.")
    return 1 if 1 in statuses else max(statuses)


def plan(names: Iterable[str], suite: Suite) -> list[str]:
    """One line per section: what will be measured."""
    lines = [f"To measure on {suite.target.device}, saved in {suite.folder}:"]
    for name in names:
        if name == REGISTRATION:
            state = why_no_registrations(suite) or ("" if registered(suite) else f"{CASES} pairs")
        else:
            wanted, found = SECTIONS[name].workloads(suite.target), suite.found(name)
            missing = sum(identity(workload) not in found for workload in wanted)
            state = f"{missing} of {len(wanted)} workloads" if missing else ""
        lines.append(f"  {name}: {state or 'finished before, skipped; --fresh measures it again'}")
    return lines + [f"  {line}" for line in workloads.left_out(BOTH, suite.target)]


def section(kind: Section, name: str, suite: Suite) -> int:
    """Measures the missing workloads of a section and publishes it; returns the exit status."""
    wanted, found = kind.workloads(suite.target), suite.found(name)
    described = Environment.from_json(facts) if (facts := suite.read(name).get("facts")) else suite.environment
    repeats = kind.repeats_on_gpu if suite.target.gpu else kind.repeats
    for workload in wanted:
        if identity(workload) in found or suite.late:
            continue
        described = suite.environment
        found[identity(workload)] = dataclasses.replace(measure(workload, repeats=repeats), cost=cost_of(workload[0]))
        saved = {which: row.to_json() for which, row in found.items()}
        suite.write(name, facts=described.to_json(), measurements=saved)
    rows = [found[identity(workload)] for workload in wanted if identity(workload) in found]
    missing = len(wanted) - len(rows)
    if rows:
        measured = Measurements(described, suite.target.device, repeats, rows, suite.peaks)
        lines = [heading(described, device=measured.device), *kind.tables(measured), *remarks(rows)]
        lines += workloads.left_out(kind.against, suite.target)
        if missing:
            lines.append(f"Unfinished: {missing} of {len(wanted)} workloads are not measured yet.")
        suite.publish(kind.title, "\n\n".join(lines) + "\n")
    if any(row.error is not None for row in rows):
        return 1
    return UNFINISHED if missing else 0


def identity(workload: Workload) -> str:
    """The key of a workload in a record."""
    return json.dumps([job.to_json() for job in workload], sort_keys=True)


def cost_of(job: Job) -> Cost | None:
    """Minimum cost of the network; None for a job without a network."""
    count = {"forward": roofline.forward_cost, "train": roofline.train_cost}.get(job.what)
    return count(job.variant, job.shape, dtype=job.dtype) if count else None


# Registrations


def why_no_registrations(suite: Suite) -> str | None:
    """The reason why the registrations are skipped, if they are."""
    if not any(baseline.installed for baseline in BASELINES.values()):
        return "skipped: no baseline is installed (make bench EXTRAS=peers)"
    if not suite.checkpoint:
        return "skipped: needs --checkpoint, the folder of a training run"
    return None


def registered(suite: Suite) -> dict[str, Any]:
    """The record of registrations with this checkpoint, or {} if there is none."""
    record = suite.read(REGISTRATION)
    return record if record and record["checkpoint"] == suite.checkpoint else {}


def registrations(suite: Suite) -> int:
    """Like `section`, for the registrations of phantom pairs."""
    if why_no_registrations(suite):
        return 0
    title, record = f"Registration, {' x '.join(map(str, LARGE))}", registered(suite)
    if not record and suite.late:
        return UNFINISHED
    if not record:
        found = registration.measure_registration(
            shape=LARGE,
            spacing=registration.fitting_spacing(LARGE),
            cases=CASES,
            checkpoint=suite.checkpoint,
            note=lambda line: print(line, flush=True),
        )
        packages = versions([baseline.package for baseline in BASELINES.values()])
        described = dataclasses.replace(suite.environment, versions={**suite.environment.versions, **packages})
        record = {"text": registration_tables.as_markdown(found, described), "failed": any(found.failures())}
        if not record["failed"]:
            suite.write(REGISTRATION, checkpoint=suite.checkpoint, **record)
    suite.publish(title, record["text"])
    return int(record["failed"])
