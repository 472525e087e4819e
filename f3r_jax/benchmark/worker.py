"""One thing to measure, in a process of its own: `python -m f3r_jax.measurements JOB`, where JOB is JSON.

The process prepares what the job names and warms up, then says in a line of JSON what that cost. For every line it
reads it runs once more and says the seconds; at the end of its input it says the peak memory. Several such processes
can so be timed in turn. What doesn't fit into memory it says in a line {"no_memory": why}, and ends.

A job: `who`, `what`, `shape`, and for a network `variant`, optionally `dtype` ("float32", "bfloat16") and `remat`; for
a convolution `kernel` and `channels`. Who can do what: `jax_jobs.PREPARE` ("jax", "xla": JAX with XLA's own
convolution, "alone": train steps of `LAMBDAS` one after another, where "jax" does them as one program) and
`torch_jobs.PREPARE` ("torch": the same network, "voxelmorph": VoxelMorph's own). Neither's library is imported for the
other's jobs.
"""

import json
import sys
import time
from collections.abc import Callable

from f3r_jax.benchmark.job import ReadyJob, no_memory, peak_mib, timed
from f3r_jax.common.malloc import keep_freed_memory

IN_TORCH = ("torch", "voxelmorph")
WARM_UP = 100  # runs at most


def main(argument: str) -> int:
    """Serves the job until the end of standard input; the exit status is 1 if it doesn't fit into memory."""
    try:
        serve(json.loads(argument))
    except Exception as error:
        if not no_memory(error):
            raise
        send(no_memory=str(error).strip().partition("\n")[0])
        return 1
    return 0


def serve(job: dict) -> None:
    """Prepares the job, then runs it for each line of standard input."""
    prepared = prepare(job)
    warm_up(prepared.run)
    send(imported_mib=prepared.imported_mib, device=prepared.device, compile=prepared.compile, **prepared.facts)
    for _ in sys.stdin:
        send(**timed(prepared.run)[1])
    send(peak_mib=peak_mib(), device_peak_mib=prepared.device_peak_mib())


def warm_up(run: Callable[[], None]) -> None:
    """Runs for a second, or `WARM_UP` times: the first ten runs of a short job are slow, as memory grows."""
    end = time.monotonic() + 1
    for _ in range(WARM_UP):
        run()
        if time.monotonic() > end:
            return


def prepare(job: dict) -> ReadyJob:
    """The job ready to run."""
    if job["who"] in IN_TORCH:
        from f3r_jax.benchmark import torch_jobs as jobs
    else:
        from f3r_jax.benchmark import jax_jobs as jobs

        keep_freed_memory()  # as the entry points do
    return jobs.PREPARE[job["who"], job["what"]](job)


def send(**values: object) -> None:
    """A line of JSON."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
