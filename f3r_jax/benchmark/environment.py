"""The environment of a measurement: machine, package versions and source fingerprint."""

import datetime
import hashlib
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from f3r_jax.common.provenance import commit, versions

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "voxelmorph")


def environment(packages: Sequence[str] = PACKAGES) -> dict:
    """Command, date, commit, machine and package versions."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "command": shlex.join(["python", "-m", "f3r_jax.benchmark", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": {"cpu": models[0] if models else platform.machine(), "cores": cores, "memory_gib": round(memory, 1)},
        "versions": versions(packages),
    }


def fingerprint() -> str:
    """Hash of the package's sources. Unlike the commit, it covers uncommitted changes and works outside git."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]
