"""Kills commands at random moments and checks how they end; run it by hand, it is not part of the tests.

  python tests/kill_test.py [--kills=25] [--minutes=60] [--seed=0] [--commands=register,pairs,main,launch]

Each command runs twice to its end, to compile and to be timed. A round then starts it again, sends SIGKILL at a moment
that is uniform in its duration, and checks what is left: a summary stands for a whole result, and an older result is
not lost. Then the same command runs to its end. It must succeed, print nothing to standard error, leave nothing but the
result, and the result must equal that of a run without a kill.

`register` replaces an older result in every other round (--overwrite). The launcher starts `tests/fake_runs.py` instead
of `f3r_jax.main`, and its runs must end with it. The phantom pairs have 24 x 20 x 20 voxels.
"""

import argparse
import json
import math
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from conftest import Commands  # noqa: E402
from f3r_jax.data import nifti  # noqa: E402
from f3r_jax.data.phantom import generate  # noqa: E402

QUICK = ("--affine=none", "--spacing=12", "--iterations=5", "--mind=mind_ssc_near", "--checkpoint=none")
TINY = {
    "model.name": "tiny",
    "data.shape": "16,16,16",
    "data.spacing": "20.0,20.0,16.0",
    "data.cases": 4,
    "data.validation_cases": 1,
    "data.test_cases": 1,
    "train.steps": 24,
    "train.crop": "0,0,0",
    "train.validate_every": 12,
    "train.checkpoint_every": 4,
    "optim.warmup_steps": 2,
    "loss.mind": "mind_ssc",
}
# These files contain seconds or the command. The summary of a training is compared by the log and the registered cases.
OF_THE_RUN = {"report.html", "summary.json", "summary.csv", "origin.json", "cases.csv", "table.md"}
OF_AN_ATTEMPT = ("tensorboard/", "logs/", "compiled/", "checkpoints/")  # a file per attempt, or files of random names
HIDDEN = (".writing-", ".complete", ".moving", ".out-", ".validation", ".predictions")
SECONDS_TO_END = 10.0  # for the runs of a killed launcher


class Command:
    """A command, the folder that it writes, and how a result looks."""

    def __init__(self, name: str, runner: Commands, folder: Path) -> None:
        self.name, self._runner, self.output = name, runner, folder / "result"
        self._arguments = arguments_of(name, folder, self.output)
        self._starts = folder / "starts"  # the fake runs of a launcher are listed here
        self.seconds: list[float] = []  # of the runs from the beginning to the end
        self.reference: dict[str, bytes] = {}

    def prepare(self) -> str | None:
        """Runs the command twice from the beginning; returns what was wrong."""
        for _ in range(2):
            shutil.rmtree(self.output, ignore_errors=True)
            start = time.monotonic()
            if problem := self.run():
                return problem
        self.seconds, self.reference = [time.monotonic() - start], content(self.output)
        print(f"{self.name}: {self.seconds[0]:.1f} s without a kill", flush=True)
        return self.problem_at_end()

    def run(self, *more: str) -> str | None:
        """Runs the command to its end; returns what was wrong."""
        result = self._runner.run(*self._arguments, *more)
        if result.status != 0:
            return f"ended with {result.status}: {result.err.strip()[-300:]}"
        return f"standard error: {result.err.strip()[:300]}" if result.err else None

    def round(self, draw: random.Random, number: int) -> tuple[str, str | None]:
        """Kills the command once and runs it again; returns when it was killed, and what was wrong."""
        more = ["--overwrite"] if self.name == "register" and number % 2 else []
        if not more:
            shutil.rmtree(self.output, ignore_errors=True)
        before, start = content(self.output), time.monotonic()
        end = start + draw.random() * statistics.median(self.seconds[-5:])
        if self._runner.run(*self._arguments, *more, kill_when=lambda: time.monotonic() > end).status == 0:
            self.seconds.append(time.monotonic() - start)
            return "not killed", self.problem_at_end()
        when = self._phase()
        problem = self._problem_after_kill(before) or self.run(*more) or self.problem_at_end()
        return when, problem and f"killed after {end - start:.2f} s ({when}): {problem}"

    def _phase(self) -> str:
        """What the killed process was doing, by what it left."""
        parts = [part for name in leftovers(self.output) for part in Path(name).parts]
        if ".complete" in parts or ".moving" in parts:
            return "moving the result"
        if parts:
            return "writing"
        return "at work" if self.output.is_dir() else "starting"  # the folder is reserved at the start of the work

    def _problem_after_kill(self, before: dict[str, bytes]) -> str | None:
        if self.name == "launch":
            return self._outlived()
        pairs = {"register": [self.output], "pairs": [self.output / "case0", self.output / "case1"]}
        for folder in pairs.get(self.name, []):
            now = content(folder)
            if "summary.json" in now and now != before and not is_whole(folder):
                return "a summary without a whole result"
            moves = any((folder / hidden).is_dir() for hidden in (".complete", ".moving"))
            if before and "summary.json" not in now and not moves:
                return "the old result is lost"
        return None

    def _outlived(self) -> str | None:
        """Whether a run of a killed launcher is still there."""
        processes = [line.split()[1] for line in self._starts.read_text().splitlines()] if self._starts.exists() else []
        end = time.monotonic() + SECONDS_TO_END
        while alive := [process for process in processes if is_alive(process)]:
            if time.monotonic() > end:
                return f"{len(alive)} runs outlived their launcher"
            time.sleep(0.05)
        return None

    def problem_at_end(self) -> str | None:
        """What is wrong after the command ran to its end."""
        if left := leftovers(self.output):
            return f"leftovers: {', '.join(left[:5])}"
        now = content(self.output)
        if differing := [name for name in self.reference.keys() | now.keys() if not self._same(name, now)]:
            return f"differs from a run without a kill: {', '.join(sorted(differing)[:5])}"
        return None

    def _same(self, name: str, now: dict[str, bytes]) -> bool:
        if name.startswith(OF_AN_ATTEMPT):
            return True
        both = name in now and name in self.reference
        return both and (Path(name).name in OF_THE_RUN or now[name] == self.reference[name])


def arguments_of(name: str, folder: Path, output: Path) -> list[object]:
    """The command line of a command by its name."""
    data = {"data.root": folder / "phantoms"}
    config = [f"--config.{key}={value}" for key, value in (TINY | data).items()]
    register = ["register", f"--output={output}", *QUICK]
    if name == "register":
        return [*register, f"--fixed={folder / 'mr_0.nii.gz'}", f"--moving={folder / 'ct_0.nii.gz'}"]
    if name == "pairs":
        return [*register, f"--pairs={folder}"]
    if name == "main":
        return ["main", f"--config={ROOT / 'configs' / 'mrb.py'}", f"--workdir={output}", *config]
    config = [setting for setting in config if not setting.startswith("--config.model")]
    sweep = ["lambda_sweep", ROOT / "configs" / "mrb.py", "--lambdas=0.5,1,2", "--jobs=2", f"--output={output}"]
    return ["launch", *sweep, *config]


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder at any depth by their path, those with hidden parts left out."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path: path.relative_to(folder) for path in files}
    return {str(name): path.read_bytes() for path, name in names.items() if not str(name).startswith(".")}


def leftovers(folder: Path) -> list[str]:
    """Paths of temporary files and folders at any depth."""
    found = [path for path in folder.rglob("*") if path.name.startswith(HIDDEN) or "orbax-checkpoint-tmp" in path.name]
    return [str(path.relative_to(folder)) for path in found]


def is_whole(folder: Path) -> bool:
    """Whether the result of a registration is complete and its parts belong together."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        warped = nifti.read(folder / "warped.nii.gz")
        field, _ = nifti.read_field(folder / "displacement.nii.gz")
        report = (folder / "report.html").read_text(encoding="utf-8")
    except Exception:
        return False
    return field.shape[:3] == warped.shape and f"{summary['sd_log_jacobian']:.3f}" in report


def is_alive(process: str) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def write_pairs(folder: Path) -> None:
    """Two phantom pairs and their table."""
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    for index in (0, 1):
        case = generate.make_case(3, index, shape=(24, 20, 20), spacing=(12.0,) * 3)
        for name in ("mr", "ct"):
            nifti.write(folder / f"{name}_{index}.nii.gz", getattr(case, name), affine)
    rows = [f"case{index},mr_{index}.nii.gz,ct_{index}.nii.gz" for index in (0, 1)]
    (folder / "pairs.csv").write_text("\n".join(["name,fixed,moving", *rows]) + "\n")


def main() -> int:
    """Runs all rounds and prints a line per command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25, help="per command")
    parser.add_argument("--minutes", type=float, default=math.inf, help="per command at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="register,pairs,main,launch")
    options = parser.parse_args()
    draw, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="kills-") as made:
        folder = Path(made)
        os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "FAKE_RUNS": str(folder), "COMMAND_SERVER_DPI": "40"}
        write_pairs(folder)
        runner = Commands(folder)
        for name in options.commands.split(","):
            command = Command(name, runner, folder)
            if problem := command.prepare():
                print(f"{name}: without a kill: {problem}")
                return 1
            phases: Counter[str] = Counter()
            end, number = time.monotonic() + 60 * options.minutes, 0
            while phases.total() - phases["not killed"] < options.kills and time.monotonic() < end:
                when, problem = command.round(draw, number)
                phases[when] += 1
                number += 1
                if problem:
                    bad += 1
                    print(f"{name}, round {number}: {problem}", flush=True)
            kills = phases.total() - phases.pop("not killed", 0)
            moments = ", ".join(f"{count} {when}" for when, count in phases.most_common())
            print(
                f"{name}: {kills} kills ({moments}), {command.seconds[-1]:.1f} s; {bad} wrong ends so far", flush=True
            )
        runner.close()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
