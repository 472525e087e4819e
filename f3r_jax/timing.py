"""Jobs timed in turn, A B A B, each in a process of its own (`measurements`)."""

import contextlib
import json
import os
import signal
import subprocess
import sys

from f3r_jax.benchmark_tables import summary, title


class Subject:
    """A job in a process of its own, ended with the `with` block."""

    def __init__(self, job: dict):
        settings = {"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self.who = job["who"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "f3r_jax.measurements", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env=os.environ | settings,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def answer(self) -> dict:
        """The next thing the process says."""
        if line := self.process.stdout.readline():
            return json.loads(line)
        status = self.process.wait()
        killed = " (killed: out of memory?)" if status == -signal.SIGKILL else ""
        raise ChildProcessError(f"{self.who} ended with status {status}{killed}")

    def run(self) -> dict:
        """Seconds of one run."""
        self.process.stdin.write("\n")
        return self.answer()

    def peak(self) -> dict:
        """Peak memory; no run after it."""
        self.process.stdin.close()
        return self.answer()


def measure(jobs: list[dict], *, repeats: int) -> dict:
    """Times the jobs of a group in turn; the result holds "error" in place of the figures when a process died."""
    task = {key: value for key, value in jobs[0].items() if key != "who"}
    say(f"{title(task)}:")
    try:
        with contextlib.ExitStack() as stack:
            subjects, results = [], {}
            for job in jobs:
                say(f" {job['who']} gets ready,")
                subjects.append(subject := stack.enter_context(Subject(job)))
                results[subject.who] = subject.answer() | {"wall": [], "cpu": []}
            for n in range(repeats):
                for subject in subjects:
                    for clock, seconds in subject.run().items():
                        results[subject.who][clock].append(seconds)
                say(f" {n + 1}")
            for subject in subjects:
                results[subject.who] |= subject.peak()
    except OSError as error:  # also a broken pipe
        say(f" {error}\n")
        return task | {"error": str(error)}
    say(f" of {repeats}\n")
    ours, *others = results
    ratios = {
        other: {
            clock: summary([a / b for a, b in zip(results[ours][clock], results[other][clock], strict=True)])
            for clock in ("wall", "cpu")
        }
        for other in others
    }
    return task | {"results": results, "ratios": ratios}


def say(text: str) -> None:
    """A piece of a line of progress."""
    print(text, end="", flush=True)
