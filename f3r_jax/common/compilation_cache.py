"""Where this process finds programs that JAX compiled before."""

import hashlib
import os
import platform
from pathlib import Path

import jax

SECONDS_WORTH_KEEPING = 0.0  # of compilation: reading a program takes a few ms, compiling the smallest 30


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache in the user's cache folder; returns the folder.

    Called by entry points, so that importing the package changes nothing. JAX's own settings win: with
    JAX_COMPILATION_CACHE_DIR it is another folder, with JAX_ENABLE_COMPILATION_CACHE=false there is none. Programs for
    a CPU hold instructions of the CPU they were compiled on, so each kind of CPU has a folder of its own.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "f3r_jax" / f"{platform.machine()}-{hashlib.sha256(_cpu().encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that can't be written, as in some containers: JAX compiles anew each time
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    return folder


def _cpu() -> str:
    """What the CPU can do, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
