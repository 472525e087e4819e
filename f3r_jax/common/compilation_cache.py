"""The folder in which JAX caches compiled functions between runs."""

import contextlib
import hashlib
import os
import platform
import time
import warnings
import zlib
from pathlib import Path

import jax

CHECKED = "checked"  # file in the cache; files that are not newer have been checked
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # its first bytes
SECONDS_WORTH_KEEPING = 0.0  # shortest compilation that is cached: the smallest takes 30 ms, reading it a few ms


def keep_compiled_programs() -> Path | None:
    """Turns on JAX's persistent compilation cache in the user's cache folder; returns the folder.

    Only entry points call this, so importing the package has no side effects. JAX's own settings take precedence:
    JAX_COMPILATION_CACHE_DIR sets another folder, JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. Functions
    compiled for a CPU use the instructions of that CPU, so each CPU model has its own folder. Entries that are damaged,
    for example because the disk was full, are removed; otherwise JAX would warn of them and compile again in each run.
    """
    # The cache saves time only: an entry that cannot be read or written is no reason to print dozens of lines.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache entry")
    config = jax.config
    if config.jax_compilation_cache_dir or not config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "f3r_jax" / f"{platform.machine()}-{hashlib.sha256(_cpu().encode()).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # the home folder is read-only, as in some containers: JAX compiles again in each process
        return None
    with contextlib.suppress(OSError):
        remove_damaged(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS_WORTH_KEEPING)
    return folder


def remove_damaged(folder: Path) -> int:
    """Removes the entries of a cache that cannot be decompressed; returns their number.

    Only entries that are newer than the last check are read.
    """
    mark, now = folder / CHECKED, time.time()
    last = mark.stat().st_mtime if mark.exists() else 0.0
    damaged = 0
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process may remove it too
            if entry.stat().st_mtime >= last and _is_damaged(entry.read_bytes()):
                entry.unlink()
                damaged += 1
    mark.touch()
    os.utime(mark, (now - 60, now - 60))  # an entry that is being written now is checked again by the next run
    return damaged


def _is_damaged(content: bytes) -> bool:
    """Whether an entry is empty or ends early. JAX compresses with zstandard if that is installed, else with zlib."""
    try:
        if content.startswith(ZSTANDARD):
            import zstandard

            zstandard.ZstdDecompressor().decompress(content, max_output_size=2**31)
        else:
            zlib.decompress(content)
    except ImportError:
        return False  # JAX cannot read it either and writes another entry
    except Exception:
        return True
    return False


def _cpu() -> str:
    """The CPU's instruction set flags where /proc/cpuinfo lists them, else the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
