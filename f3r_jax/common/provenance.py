"""Origin of a result: package versions and the commit of the sources."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = ("f3r_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "antspyx")


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of `packages` where installed; by default every package that can affect a result."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of these sources, followed by + if they have uncommitted changes; None outside git."""
    root = Path(__file__).parent.parent.parent
    try:
        described = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty=+", "--abbrev=12", "--match="],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None if (root / ".git").exists() else None
