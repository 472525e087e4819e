"""Jobs timed in turn, A B A B, each in a process of its own (`worker`)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from f3r_jax.benchmark.tables import summary, title


class NoMemoryError(Exception):
    """A job doesn't fit into memory."""


class Subject:
    """A job in a process of its own, ended with the `with` block."""

    def __init__(self, job: dict):
        settings = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.who = job["who"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "f3r_jax.benchmark.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | settings,
        )
        with contextlib.suppress(OSError):  # where memory runs out, this process is to die and no other; Linux
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("1000")

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def answer(self) -> dict:
        """The next thing the process says.

        Raises:
          NoMemoryError: the job doesn't fit into memory.
          ChildProcessError: the process has ended for another reason.
        """
        if line := self.process.stdout.readline():
            found = json.loads(line)
            if "no_memory" in found:
                raise NoMemoryError(found["no_memory"])
            return found
        status = self.process.wait()
        if status == -signal.SIGKILL:
            raise NoMemoryError("killed")
        raise ChildProcessError(f"{self.who} ended with status {status}")

    def run(self) -> dict:
        """Seconds of one run."""
        with contextlib.suppress(BrokenPipeError):  # the answer tells why
            self.process.stdin.write("\n")
        return self.answer()

    def peak(self) -> dict:
        """Peak memory; no run after it."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.answer()


def measure(jobs: list[dict], *, repeats: int) -> dict:
    """Times the jobs of a group in turn; 0 repeats leave it at warming up, for the memory alone.

    In place of the figures the result holds "no_memory" (who, why) where a job doesn't fit into memory, and "error"
    where a process died.
    """
    task = {key: value for key, value in jobs[0].items() if key != "who"} | {"who": [job["who"] for job in jobs]}
    print_progress(f"{title(task)}:")
    subjects = []
    try:
        with contextlib.ExitStack() as stack:
            results = {}
            for job in jobs:
                print_progress(f" {job['who']} gets ready,")
                subjects.append(subject := stack.enter_context(Subject(job)))
                results[subject.who] = subject.answer() | {"wall": [], "cpu": []}
            check_devices(results)
            for n in range(repeats):
                for subject in subjects:
                    for clock, seconds in subject.run().items():
                        results[subject.who][clock].append(seconds)
                print_progress(f" {n + 1}")
            for subject in subjects:
                results[subject.who] |= subject.peak()
    except NoMemoryError as error:
        print_progress(f" {subject.who} does not fit into memory: {error}\n")
        return task | {"no_memory": [subject.who, str(error)]}
    except OSError as error:
        print_progress(f" {error}\n")
        return task | {"error": str(error)}
    print_progress(f" of {repeats}\n")
    return task | {"results": results, "ratios": ratios(results) if repeats else {}}


def check_devices(results: dict[str, dict]) -> None:
    """Raises a ChildProcessError if one runs on a CPU and the other on an accelerator."""
    devices = {who: result["device"] for who, result in results.items()}
    if len({device == "cpu" for device in devices.values()}) > 1:
        raise ChildProcessError(f"not comparable, as they run on different devices: {devices}")


def ratios(results: dict[str, dict]) -> dict[str, dict]:
    """Our time over that of each other, run by run, in wall-clock and in CPU time."""
    ours, *others = results
    return {
        other: {
            clock: summary([a / b for a, b in zip(results[ours][clock], results[other][clock], strict=True)])
            for clock in ("wall", "cpu")
        }
        for other in others
    }


def print_progress(text: str) -> None:
    """A piece of a line of progress."""
    print(text, end="", flush=True)
