"""Times jobs alternately (A B A B), each in its own process (`worker`)."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from f3r_jax.benchmark.tables import summary, title


class NoMemoryError(Exception):
    """A job does not fit into memory."""


class Subject:
    """A job in its own process, which ends with the `with` block."""

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
        with contextlib.suppress(OSError):  # on Linux: if memory runs out, kill this process first
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("1000")

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def answer(self) -> dict:
        """The next line of JSON from the process.

        Raises:
          NoMemoryError: the job does not fit into memory.
          ChildProcessError: the process ended for another reason.
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
        """Runs the job once; returns its seconds by clock."""
        with contextlib.suppress(BrokenPipeError):  # the answer has the reason
            self.process.stdin.write("\n")
        return self.answer()

    def peak(self) -> dict:
        """Ends the job; returns its peak memory."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.answer()


def measure(jobs: list[dict], *, repeats: int) -> dict:
    """Times the jobs of a group alternately; with 0 repeats they only warm up, to measure the memory.

    Instead of "results" and "ratios" the returned dict holds "no_memory" (who, why) if a job does not fit into memory,
    and "error" if a process failed.
    """
    task = {key: value for key, value in jobs[0].items() if key != "who"} | {"who": [job["who"] for job in jobs]}
    print_progress(f"{title(task)}:")
    subjects = []
    try:
        with contextlib.ExitStack() as stack:
            results = {}
            for job in jobs:
                print_progress(f" preparing {job['who']},")
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
    """Raises a ChildProcessError if some subjects run on a CPU and others on an accelerator."""
    devices = {who: result["device"] for who, result in results.items()}
    if len({device == "cpu" for device in devices.values()}) > 1:
        raise ChildProcessError(f"not comparable: the subjects run on different devices: {devices}")


def ratios(results: dict[str, dict]) -> dict[str, dict]:
    """Time of the first subject divided by that of each other, run by run, for wall-clock and CPU time."""
    first, *others = results
    return {
        other: {
            clock: summary([a / b for a, b in zip(results[first][clock], results[other][clock], strict=True)])
            for clock in ("wall", "cpu")
        }
        for other in others
    }


def print_progress(text: str) -> None:
    """Prints a part of a progress line."""
    print(text, end="", flush=True)
