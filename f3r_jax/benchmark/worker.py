"""Measures one job in its own process: `python -m f3r_jax.benchmark.worker JOB`, where JOB is JSON.

Protocol, one JSON line each:

1. after set-up and warm-up, the set-up cost
2. for every line of standard input, the seconds of one run
3. at the end of the input, the peak memory

Workers can thus be timed alternately. If the job does not fit into memory, the line is {"no_memory": why} and the
process exits.

A job (`job.Job`) of a network has `variant`, `dtype` ("float32", "bfloat16") and `remat`; one of a convolution has
`kernel` and `channels`. `who` is one of:

- "jax": f3r_jax
- "xla": JAX with XLA's own convolution
- "alone": train steps of `LAMBDAS` one after another, where "jax" trains them together
- "torch": the same network in PyTorch
- "voxelmorph": the network of the package `voxelmorph`

`jax_jobs.PREPARE` and `torch_jobs.PREPARE` list which `what` each can do. JAX jobs do not import PyTorch, and PyTorch
jobs do not import JAX.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

from f3r_jax.benchmark.job import Job, ReadyJob, no_memory, peak_mib, timed
from f3r_jax.common.malloc import keep_freed_memory

IN_TORCH = ("torch", "voxelmorph")
WARM_UP = 100  # most runs of a warm-up


def main(argument: str) -> int:
    """Serves the job until the end of standard input; returns the exit status, 1 if it does not fit into memory."""
    try:
        serve(Job.from_json(json.loads(argument)))
    except Exception as error:
        if not no_memory(error):
            raise
        send(no_memory=str(error).strip().partition("\n")[0])
        return 1
    return 0


def serve(job: Job) -> None:
    """Prepares the job, then runs it once per line of standard input."""
    prepared = prepare(job)
    warm_up(prepared.run)
    send(**prepared.set_up.to_json())
    for _ in sys.stdin:
        send(**asdict(timed(prepared.run)[1]))
    send(peak_mib=peak_mib(), device_peak_mib=prepared.device_peak_mib())


def warm_up(run: Callable[[], object]) -> None:
    """Runs for a second, or `WARM_UP` times. The first ten runs of a short job are slow, as memory grows."""
    end = time.monotonic() + 1
    for _ in range(WARM_UP):
        run()
        if time.monotonic() > end:
            return


def prepare(job: Job) -> ReadyJob:
    """Prepares a job."""
    if job.who in IN_TORCH:
        from f3r_jax.benchmark import torch_jobs

        return torch_jobs.PREPARE[job.who, job.what](job)
    from f3r_jax.benchmark import jax_jobs

    keep_freed_memory()  # as the entry points do
    return jax_jobs.PREPARE[job.who, job.what](job)


def send(**values: object) -> None:
    """Prints a line of JSON."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
