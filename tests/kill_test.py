"""Kills commands at random moments and checks how they end; run it by hand, it is not part of the tests.

  python tests/kill_test.py [--rounds=25] [--seed=0] [--commands=register,pairs,main]

Each round starts a command, sends SIGKILL after a random time, and checks what is left: the old result or the new one
is whole. Then the same command runs to its end, and the folder must hold a whole result and no leftovers. With
`register` every other round replaces an older result (--overwrite). The phantom pair has 24 x 20 x 20 voxels.
"""

import argparse
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from conftest import Commands  # noqa: E402
from f3r_jax.data import nifti  # noqa: E402
from f3r_jax.data.phantom import generate  # noqa: E402

QUICK = ("--affine=none", "--spacing=12", "--iterations=5", "--mind=mind_ssc_near")
TINY = {
    "model.name": "tiny",
    "data.shape": "16,16,16",
    "data.spacing": "20.0,20.0,16.0",
    "data.cases": 6,
    "data.validation_cases": 1,
    "data.test_cases": 2,
    "train.steps": 60,
    "train.crop": "0,0,0",
    "train.validate_every": 20,
    "train.checkpoint_every": 10,
    "optim.warmup_steps": 2,
    "loss.mind": "mind_ssc",
}
LEFTOVERS = (".writing-", ".complete", ".moving", ".out-", ".validation", ".predictions")


class Command:
    """A command, the folder that it writes, and the processes that run it."""

    def __init__(self, runner: Commands, arguments: list[str], output: Path) -> None:
        self.runner, self.arguments, self.output = runner, arguments, output

    def killed_after(self, seconds: float, *more: str, writing: bool) -> int:
        """Runs the command, kills it after so many seconds, and returns its status; -9 if it was killed.

        With `writing` the seconds are counted from the moment when a temporary folder appears.
        """
        end = [math.inf if writing else time.monotonic() + seconds]

        def is_time() -> bool:
            if end[0] == math.inf and leftovers(self.output):
                end[0] = time.monotonic() + seconds
            return time.monotonic() > end[0]

        return self.runner.run(*self.arguments, *more, kill_when=is_time).status

    def run(self, *more: str) -> str | None:
        """Runs the command to its end; returns what was wrong."""
        result = self.runner.run(*self.arguments, *more)
        if result.status != 0:
            return f"ended with {result.status}: {result.err.strip()[-300:]}"
        return f"standard error: {result.err.strip()[:300]}" if result.err else None


def content(folder: Path) -> dict[str, bytes]:
    """The files of a folder, hidden ones left out."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}


def leftovers(folder: Path) -> list[str]:
    """Names of temporary files and folders at any depth."""
    return [str(path.relative_to(folder)) for path in folder.glob("**/.*") if path.name.startswith(LEFTOVERS)]


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


def check_pair_folder(folder: Path, before: dict[str, bytes]) -> str | None:
    """What is wrong with a killed registration's folder: the summary stands for a whole result."""
    now = content(folder)
    if "summary.json" in now and now != before and not is_whole(folder):
        return "a summary without a whole result"
    if before and "summary.json" not in now and not any((folder / name).is_dir() for name in (".complete", ".moving")):
        return "the old result is lost"
    return None


def write_pairs(folder: Path) -> None:
    """Two phantom pairs and their table."""
    affine = np.diag([12.0, 12.0, 12.0, 1.0])
    for index in (0, 1):
        case = generate.make_case(3, index, shape=(24, 20, 20), spacing=(12.0,) * 3)
        for name in ("mr", "ct"):
            nifti.write(folder / f"{name}_{index}.nii.gz", getattr(case, name), affine)
    rows = [f"case{index},mr_{index}.nii.gz,ct_{index}.nii.gz" for index in (0, 1)]
    (folder / "pairs.csv").write_text("\n".join(["name,fixed,moving", *rows]) + "\n")


def commands(runner: Commands, folder: Path) -> dict[str, Command]:
    """The commands by name."""
    output = folder / "result"
    register = ["register", f"--fixed={folder / 'mr_0.nii.gz'}", f"--moving={folder / 'ct_0.nii.gz'}"]
    config = [f"--config.{key}={value}" for key, value in (TINY | {"data.root": folder / "phantoms"}).items()]
    return {
        "register": Command(runner, [*register, f"--output={output}", *QUICK], output),
        "pairs": Command(runner, ["register", f"--pairs={folder}", f"--output={output}", *QUICK], output),
        "main": Command(
            runner, ["main", f"--config={ROOT / 'configs' / 'mrb.py'}", f"--workdir={output}", *config], output
        ),
    }


def problem_after_kill(name: str, output: Path, before: dict[str, bytes]) -> str | None:
    """What is wrong right after the kill."""
    if name == "register":
        return check_pair_folder(output, before)
    if name == "pairs":
        return next(filter(None, (check_pair_folder(output / f"case{index}", {}) for index in (0, 1))), None)
    return None


def problem_at_end(name: str, output: Path) -> str | None:
    """What is wrong after the command ran to its end."""
    if left := leftovers(output):
        return f"leftovers: {', '.join(left[:5])}"
    folders = {"register": [output], "pairs": [output / "case0", output / "case1"], "main": []}[name]
    if not all(map(is_whole, folders)):
        return "the result is not whole"
    if name == "main":
        rows = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
        steps = sorted(set(rows))
        if steps[-1] != TINY["train.steps"] or not (output / "evaluation" / "summary.json").exists():
            return "the training is not whole"
        if steps != list(range(steps[0], TINY["train.steps"] + 1)):
            return "steps are missing in metrics.jsonl"
    return None


def main() -> int:
    """Runs all rounds and prints one line for each kind of end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default="register,pairs,main")
    options = parser.parse_args()
    draw, bad = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="kills-") as made:
        folder = Path(made)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        write_pairs(folder)
        runner = Commands(folder)
        for name in options.commands.split(","):
            command = commands(runner, folder)[name]
            for _ in range(2):  # the second time everything is compiled
                shutil.rmtree(command.output, ignore_errors=True)
                start = time.monotonic()
                if problem := command.run():
                    print(f"{name}: without a kill: {problem}")
                    return 1
            seconds, killed, moved = time.monotonic() - start, 0, 0
            for number in range(options.rounds):
                old = content(command.output) if name == "register" and number % 2 else {}
                more = ["--overwrite"] if old else []
                if not old:
                    shutil.rmtree(command.output, ignore_errors=True)
                writing = number % 4 >= 2  # half of the kills are at the end, where the result is written
                moment = draw.choice((0.03, 0.3, 3.0)) * draw.random() if writing else draw.random() * seconds
                status = command.killed_after(moment, *more, writing=writing)
                killed += status == -9
                moved += any((command.output / hidden).is_dir() for hidden in (".complete", ".moving"))
                problem = problem_after_kill(name, command.output, old)
                if problem is None and not (status == 0 and not old and name == "register"):
                    start = time.monotonic()
                    problem = command.run(*more)
                    seconds = time.monotonic() - start if name == "register" else seconds
                problem = problem or problem_at_end(name, command.output)
                if problem:
                    bad += 1
                    when = f"{moment:.2f} s{' of writing' if writing else ''}"
                    print(f"{name}, round {number}, killed after {when}: {problem}", flush=True)
            print(
                f"{name}: {options.rounds} rounds of {seconds:.1f} s, {killed} killed, {moved} of them in the move; "
                f"{bad} wrong ends so far",
                flush=True,
            )
        runner.close()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
