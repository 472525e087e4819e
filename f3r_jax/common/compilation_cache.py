"""The folder in which JAX caches compiled functions between runs."""

import hashlib
import os
import platform
from pathlib import Path

import jax

SECONDS_WORTH_KEEPING = 0.0  # shortest compilation that is cached: the smallest takes 30 ms, reading it a few ms


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache in the user's cache folder; returns the folder.

    Only entry points call this, so importing the package has no side effects. JAX's own settings take precedence:
    JAX_COMPILATION_CACHE_DIR sets another folder, JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Functions
    compiled for a CPU use the instructions of that CPU, so each CPU model has its own folder.
    """
    config = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "f3r_jax" / f"{platform.machine()}-{hashlib.sha256(_cpu().encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # the home folder is read-only, as in some containers: JAX compiles again in each process
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    return folder


def _cpu() -> str:
    """The CPU's instruction set flags where /proc/cpuinfo lists them, else the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
