"""What the networks cost: parameters, compilation, forward pass, train step and memory, also against PyTorch.

    python -m f3r_jax.benchmark --parameters
    python -m f3r_jax.benchmark --variant=mrb,wo_f3d --shape=144,144,128 --what=parameters,forward,memory,torch
    python -m f3r_jax.benchmark --what=conv,torch --repeats=9 --json=conv.json --markdown=BENCHMARKS.md

Every subject gets a fresh process, whose peak memory is its own. Subjects to compare are timed in turn, A B A B, and
the ratio is the median over the pairs, because the speed of a machine drifts; both need to fit into memory at once.
"""

import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict

from f3r_jax.benchmark_tables import as_markdown, replace_section, summary, title, write
from f3r_jax.errors import UserError, exit_on_user_error
from f3r_jax.models import LABELS, build, check_shape, count_parameters
from f3r_jax.models.f3rnet import VARIANTS, F3RNet
from f3r_jax.workdir import versions

WHAT = ("parameters", "compile", "forward", "train", "memory", "conv", "torch")
KERNELS = ((3, 3, 3), (3, 3, 1), (1, 1, 3))
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")

FLAGS = flags.FLAGS
flags.DEFINE_list("variant", ["mrb", "wo_f3d"], f"Networks: {', '.join(VARIANTS)}.")
flags.DEFINE_list("shape", ["64", "64", "64"], "Voxels of the volume along x, y, z.")
flags.DEFINE_list(
    "what",
    list(WHAT),
    "What to measure: the passes 'forward' and 'train' (both, where only 'compile' or 'memory' is asked for); "
    "'compile' and 'memory' of these; 'conv': our convolution against XLA's own; 'torch': each against PyTorch; "
    "'parameters'.",
)
flags.DEFINE_integer("repeats", 5, "Timed runs of each, after one that isn't counted.")
flags.DEFINE_string("json", None, "File for everything measured.")
flags.DEFINE_string(
    "markdown", None, "File for the tables; the section of the same shape and device in it is replaced."
)
flags.DEFINE_bool("parameters", False, "Print a line NAME COUNT for each network, and measure nothing.")


@exit_on_user_error
def main(argv: list[str]) -> int:
    """Measures what the flags ask for; the exit status is 1 when a process died over it."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}: options are written --name=value")
    if FLAGS.parameters:
        counts = parameters(VARIANTS) | {
            LABELS[name]: count_parameters(build(ConfigDict({"name": name, "flow_init": 0.0}))) for name in LABELS
        }
        print("\n".join(f"{name} {count}" for name, count in counts.items()))
        return 0
    check_flags()
    shape = tuple(int(size) for size in FLAGS.shape)
    groups = plan(what=FLAGS.what, variants=FLAGS.variant, shape=shape)
    report = environment() | {"shape": shape, "repeats": FLAGS.repeats}
    report["parameters"] = parameters(FLAGS.variant) if "parameters" in FLAGS.what else {}
    report["measurements"] = [measure(jobs, repeats=FLAGS.repeats) for jobs in groups]
    text = as_markdown(report, what=FLAGS.what)
    print(f"\n{text}")
    if FLAGS.json:
        write(Path(FLAGS.json), json.dumps(report, indent=1) + "\n")
    if FLAGS.markdown:
        replace_section(Path(FLAGS.markdown), text, report)
    return int(any("error" in result for result in report["measurements"]))


# What to measure


def check_flags() -> None:
    """Raises `UserError` at the first flag that can't be meant."""
    for flag, values, known in (("what", FLAGS.what, WHAT), ("variant", FLAGS.variant, VARIANTS)):
        if not values:
            raise UserError(f"--{flag}: expected at least one of {', '.join(known)}")
        if unknown := [value for value in values if value not in known]:
            raise UserError(f"--{flag}: unknown {unknown[0]!r}; known are {', '.join(known)}")
    if len(FLAGS.shape) != 3 or not all(size.isdecimal() and int(size) > 0 for size in FLAGS.shape):
        raise UserError(f"--shape={','.join(FLAGS.shape)}: expected three sizes in voxels, like 64,64,64")
    check_shape(tuple(int(size) for size in FLAGS.shape), "--shape")
    if FLAGS.repeats < 1:
        raise UserError(f"--repeats={FLAGS.repeats}: expected 1 or more")
    for path in filter(None, (FLAGS.json, FLAGS.markdown)):
        if not Path(path).absolute().parent.is_dir():
            raise UserError(f"{path}: no such folder; make it first")
        if Path(path).is_dir():
            raise UserError(f"{path}: a folder, where a file was expected")


def plan(*, what: list[str], variants: list[str], shape: tuple[int, ...]) -> list[list[dict]]:
    """The groups of jobs to be timed in turn; the first of a group is ours."""
    others = ["torch"] if "torch" in what else []
    if others and importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed, so nothing is compared with it: pip install 'f3r_jax[bench]'")
        others = []
    passes = [name for name in ("forward", "train") if name in what]
    if not passes and {"compile", "memory"} & set(what):
        passes = ["forward", "train"]
    tasks = [{"what": name, "variant": variant, "shape": shape} for variant in variants for name in passes]
    groups = [[{"who": who, **task} for who in ("jax", *others)] for task in tasks]
    if "conv" in what:
        half = tuple(max(1, size // 2) for size in shape)
        tasks = [
            {"what": name, "kernel": kernel, "channels": channels, "shape": size}
            for channels, size in ((16, shape), (32, half))
            for kernel in KERNELS
            for name in ("conv", "conv_gradient")
        ]
        groups += [[{"who": who, **task} for who in ("jax", "xla", *others)] for task in tasks]
    return groups


def parameters(variants: Iterable[str]) -> dict[str, int]:
    """Number of parameters under the paper's names, without making any."""
    jax.config.update("jax_platforms", "cpu")  # this process must not take the memory of an accelerator
    return {VARIANTS[variant].label: count_parameters(F3RNet(VARIANTS[variant])) for variant in variants}


# Measuring


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


def environment() -> dict:
    """Machine, versions, date, commit and command."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return {
        "command": shlex.join(["python", "-m", "f3r_jax.benchmark", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip() or None,
        "machine": {"cpu": models[0] if models else platform.machine(), "cores": cores, "memory_gib": round(memory, 1)},
        "versions": versions(PACKAGES),
    }


if __name__ == "__main__":
    app.run(main)
