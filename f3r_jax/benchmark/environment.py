"""The environment of a measurement: machine, package versions and source fingerprint."""

import datetime
import hashlib
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from f3r_jax.common import memory
from f3r_jax.common.provenance import commit, versions

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "voxelmorph")


@dataclass(frozen=True)
class Machine:
    """The machine of a measurement."""

    cpu: str
    cores: int | None
    memory_gib: float | None  # of the container, if it has a limit; None: not reported


@dataclass(frozen=True)
class Environment:
    """Where and how something was measured."""

    command: str
    date: str
    commit: str | None
    machine: Machine
    versions: Mapping[str, str]  # of the packages

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Environment":
        """Reads what `to_json` returns."""
        return cls(**{**found, "machine": Machine(**found["machine"])})


def current_environment(packages: Sequence[str] = PACKAGES) -> Environment:
    """Command, date, commit, machine and package versions of this process."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    limit = memory.total()
    memory_gib = None if limit is None else round(limit / 2**30, 1)
    return Environment(
        command=shlex.join(["python", "-m", "f3r_jax.benchmark", *sys.argv[1:]]),
        date=datetime.date.today().isoformat(),
        commit=commit(),
        machine=Machine(models[0] if models else platform.machine(), cores, memory_gib),
        versions=versions(packages),
    )


def fingerprint() -> str:
    """Hash of the package's sources. Unlike the commit, it covers uncommitted changes and works outside git."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
