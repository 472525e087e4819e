"""The whole benchmark: measures section after section and writes each to the Markdown file when it is finished.

Each group of measurements is saved at once in RECORD/DEVICE/SECTION.json. A suite that was killed or ran out of time
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
from typing import NamedTuple

import jax

from f3r_jax.benchmark import environment, registration, roofline, section_tables, workloads
from f3r_jax.benchmark.tables import heading, remarks, replace_section
from f3r_jax.benchmark.timing import Subject, measure
from f3r_jax.benchmark.workloads import PASSES, Group, Machine
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
    groups: Callable[[Machine], list[Group]]
    tables: Callable[[dict], list[str]]
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

    machine: Machine
    environment: dict  # `environment.environment`
    sources: str  # `environment.fingerprint`
    folder: Path  # holds the records of this device
    page: Path | None = None  # the Markdown file
    deadline: float = NEVER  # of time.monotonic()
    checkpoint: str | None = None  # folder of a training run, for the registrations
    peaks: dict[str, dict] = dataclasses.field(default_factory=dict)  # peak performance of the device, by dtype

    @property
    def key(self) -> dict:
        """Identifies sources, device, machine and versions; a record with another key is not reused."""
        facts = {name: self.environment[name] for name in ("machine", "versions")}
        return {"sources": self.sources, "device": self.machine.device, **facts}

    @property
    def late(self) -> bool:
        """Whether the time is up, so that nothing new is started."""
        return time.monotonic() > self.deadline

    def read(self, name: str) -> dict:
        """The record of that name, or {} if there is none with this key."""
        with contextlib.suppress(FileNotFoundError, ValueError):  # no record, or no JSON
            record = json.loads((self.folder / f"{name}.json").read_text())
            if record["key"] == self.key:
                return record
        return {}

    def write(self, name: str, **values: object) -> dict:
        """Saves and returns a record."""
        record = {"key": self.key} | values
        write_text(self.folder / f"{name}.json", json.dumps(json_safe(record), indent=1) + "\n")
        return record

    def publish(self, title: str, text: str) -> None:
        """Prints a section and writes it to the Markdown file."""
        print(f"\n## {title} on {self.machine.device}\n\n{text}", flush=True)
        if self.page:
            replace_section(self.page, text, name=f"{title} on {self.machine.device}")

    def found(self, name: str) -> dict[str, dict]:
        """Saved measurements of a section by `identity`, without failed ones, which are measured again."""
        rows = self.read(name).get("measurements", {})
        return {which: row for which, row in rows.items() if "error" not in row}


def start(*, record: Path, page: Path | None, minutes: float | None, checkpoint: str | None) -> Suite:
    """The suite for the device of this machine."""
    deadline = NEVER if minutes is None else time.monotonic() + 60 * minutes
    device = ask({"who": "jax", "what": "device"})["device"]
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    folder = record / re.sub(r"\W+", "_", device)
    folder.mkdir(parents=True, exist_ok=True)
    here = Machine(device, workloads.installed())
    suite = Suite(here, environment.environment(), environment.fingerprint(), folder, page, deadline, checkpoint)
    first = suite.read("device")
    if not first:
        peaks = {dtype: ask({"who": "jax", "what": "peaks", "dtype": dtype})["peaks"] for dtype in here.dtypes}
        first = suite.write("device", commit=suite.environment["commit"], peaks=peaks)
    commit = suite.environment["commit"]
    if commit is None or commit.endswith("+"):
        # The suite writes the Markdown file, so the working tree differs from its commit; the sources do not.
        commit = first["commit"]
    described = suite.environment | {"commit": commit}
    return dataclasses.replace(suite, environment=described, peaks=first["peaks"])


def ask(job: dict) -> dict:
    """The answer of a job when it is ready."""
    with Subject(job) as subject:
        return subject.answer()


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
    lines = [f"To measure on {suite.machine.device}, saved in {suite.folder}:"]
    for name in names:
        if name == REGISTRATION:
            state = why_no_registrations(suite) or ("" if registered(suite) else f"{CASES} pairs")
        else:
            groups, found = SECTIONS[name].groups(suite.machine), suite.found(name)
            missing = sum(identity(group) not in found for group in groups)
            state = f"{missing} of {len(groups)} groups" if missing else ""
        lines.append(f"  {name}: {state or 'finished before, skipped; --fresh measures it again'}")
    return lines + [f"  {line}" for line in workloads.left_out(BOTH, suite.machine)]


def section(kind: Section, name: str, suite: Suite) -> int:
    """Measures the missing groups of a section and publishes it; returns the exit status."""
    groups, found = kind.groups(suite.machine), suite.found(name)
    facts = suite.read(name).get("facts") or suite.environment
    repeats = kind.repeats_on_gpu if suite.machine.gpu else kind.repeats
    for group in groups:
        if identity(group) in found or suite.late:
            continue
        facts = suite.environment
        found[identity(group)] = measure(group, repeats=repeats) | bounds_of(group[0])
        suite.write(name, facts=facts, measurements=found)
    rows = [found[identity(group)] for group in groups if identity(group) in found]
    missing = len(groups) - len(rows)
    if rows:
        facts = facts | {"device": suite.machine.device, "peaks": suite.peaks}
        report = facts | {"repeats": repeats, "measurements": rows}
        lines = [heading(report, device=suite.machine.device), *kind.tables(report), *remarks(report)]
        lines += workloads.left_out(kind.against, suite.machine)
        if missing:
            lines.append(f"Unfinished: {missing} of {len(groups)} groups are not measured yet.")
        suite.publish(kind.title, "\n\n".join(lines) + "\n")
    if any("error" in row for row in rows):
        return 1
    return UNFINISHED if missing else 0


def identity(group: Group) -> str:
    """The key of a group in a record."""
    return json.dumps(group, sort_keys=True)


def bounds_of(job: dict) -> dict:
    """Minimum cost of the network as {"cost": ...}; {} for a job without a network."""
    if job["what"] not in PASSES:
        return {}
    count = {"forward": roofline.forward_cost, "train": roofline.train_cost}[job["what"]]
    return {"cost": count(job["variant"], job["shape"], dtype=job.get("dtype", "float32"))._asdict()}


# Registrations


def why_no_registrations(suite: Suite) -> str | None:
    """The reason why the registrations are skipped, if they are."""
    if not any(baseline.installed for baseline in BASELINES.values()):
        return "skipped: no baseline is installed (make bench EXTRAS=peers)"
    if not suite.checkpoint:
        return "skipped: needs --checkpoint, the folder of a training run"
    return None


def registered(suite: Suite) -> dict:
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
        facts = suite.environment | {"versions": suite.environment["versions"] | packages}
        text = registration.as_markdown(facts | {"shape": LARGE, REGISTRATION: found})
        record = {"text": text, "failed": any(registration.failures(found))}
        if not record["failed"]:
            suite.write(REGISTRATION, checkpoint=suite.checkpoint, **record)
    suite.publish(title, record["text"])
    return int(record["failed"])
