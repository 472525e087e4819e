"""Stands in for the main job and the report, and starts a launcher with them: `fake_runs.py launch MODULE ARGS...`.

The fake main job does a row of metrics.jsonl a step, goes on after the last row, and writes a summary at the end. The
environment variable FAKE_RUNS names a folder: `starts` there gets a line a start, and a file named after a run says how
it behaves: "fail", "hold" (waits at step 2 until the file is gone), or "silent" (ends well without an evaluation).
"""

import json
import os
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

ROOT = Path(__file__).resolve().parent.parent
STEPS = 6


def main(arguments: list[str]) -> int:
    """The fake `f3r_jax.main`."""
    sys.path.insert(0, str(ROOT / "launch"))
    from study import runs

    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    workdir, spec, lams = given.pop("workdir"), given.pop("config"), given.pop("lambdas", None)
    settings = [f"{key.removeprefix('config.')}={value}" for key, value in given.items()]
    folder, cores = Path(os.environ["FAKE_RUNS"]), len(os.sched_getaffinity(0))
    with (folder / "starts").open("a") as file:
        file.write(f"{Path(workdir).name} {os.getpid()} {cores}\n")
    print("some words", flush=True)
    if lams is None:
        return do(Path(workdir), runs.load_config(spec, settings), folder)
    for lam in lams.split(","):
        status = do(Path(workdir.format(lam=lam)), runs.load_config(spec, [*settings, f"loss.lam={lam}"]), folder)
        if status:
            return status
    return 0


def do(workdir: Path, config: ConfigDict, folder: Path) -> int:
    """One run."""
    from study import runs

    behaviour = folder / workdir.name
    if behaviour.exists() and behaviour.read_text() == "fail":
        print("error: the loss is not finite at step 3", flush=True)
        print("last words", flush=True)
        return 1
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(json.loads(config.to_json())))
    if runs.is_trained(config):
        for step in range(runs.last_row(workdir).get("step", 0) + 1, config.train.steps + 1):
            while step == 3 and behaviour.exists() and behaviour.read_text() == "hold":
                time.sleep(0.01)
            with (workdir / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"kind": "train", "step": step, "loss": 1 / step}) + "\n")
            time.sleep(0.02)
    if behaviour.exists() and behaviour.read_text() == "silent":
        return 0
    (workdir / "evaluation").mkdir(exist_ok=True)
    summary = {"step": config.train.steps if runs.is_trained(config) else 0}
    (workdir / "evaluation" / "summary.json").write_text(json.dumps(summary))
    return 0


def report(arguments: list[str]) -> int:
    """The fake `f3r_jax.report`."""
    folder, flag, output = arguments
    assert flag == "--output"
    Path(output).mkdir(exist_ok=True)
    print(f"report over {folder}")
    return int((Path(os.environ["FAKE_RUNS"]) / "report").exists())


def launch(arguments: list[str]) -> int:
    """A launcher of launch/ with the fakes."""
    sys.path.insert(0, str(ROOT / "launch"))
    from study import launcher, runs

    runs.MAIN, launcher.REPORT_COMMAND = command("main"), command("report")
    launcher.SECONDS_BETWEEN_LOOKS = 0.05
    module = __import__(arguments.pop(0))
    sys.argv = [module.__file__, *arguments]
    launcher.run_launcher(module.main)


def command(part: str) -> tuple[str, ...]:
    """How a part of this file is started."""
    return (sys.executable, str(Path(__file__).resolve()), part)


if __name__ == "__main__":
    sys.exit({"main": main, "report": report, "launch": launch}[sys.argv[1]](sys.argv[2:]))
