"""Stands in for `register --pairs --json`, and starts launch/cohort.py with it: `fake_register.py launch ARGS...`.

The environment variable FAKE_COHORT names a folder: `starts` there gets a line per process that registers. A file named
after a pair tells what happens to it: "fail", "hold" (waits until the file is gone), "crash" (ends the process).
"""

import csv
import json
import os
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NUMBERS = {"similarity_before": 0.2, "similarity": 0.1, "folding_percent": 0.0, "mean_dice_before": 50.0}
NUMBERS |= {"mean_dice": 80.0, "tre_mm_before": None, "tre_mm": None}


def emit(event: str, **facts: object) -> None:
    """Prints an event."""
    print(json.dumps({"event": event, **facts}), flush=True)


def result(name: str, seconds: float) -> None:
    """The event of a finished pair; pair number 2 has a failed verdict."""
    level = {"verdict": "failed", "reason": "it is wrong"} if name == "case2" else {"verdict": "ok"}
    emit("result", of="pair", name=name, status="done", seconds=seconds, **NUMBERS, **level)


def register(arguments: list[str]) -> int:
    """The fake `f3r_jax.register`."""
    given = dict((argument.removeprefix("--") + "=").split("=", 1) for argument in arguments)
    given = {name: value.removesuffix("=") for name, value in given.items()}
    folder, output, lam = Path(os.environ["FAKE_COHORT"]), Path(given["output"]), given.get("lam", "0.2")
    emit("start", command="register", version="0", arguments=arguments)
    if lam == "bad":
        emit("error", message="--lam is bad, expected a number", status=2)
        return 2
    with open(given["pairs"]) as file:
        names = [row["name"] for row in csv.DictReader(file)]
    if "rows" in given:
        first, last = map(int, given["rows"].split("-"))
        names = names[first - 1 : last]
        with (folder / "starts").open("a") as file:
            file.write(f"{given['rows']} {os.getpid()}\n")
    failed = 0
    for name in names:
        path, behaviour = output / name / "summary.json", folder / name
        if path.exists() and json.loads(path.read_text())["settings"]["lam"] == lam:
            result(name, json.loads(path.read_text())["seconds"])
            continue
        if "dry_run" in given:
            continue
        while behaviour.exists() and behaviour.read_text() == "hold":
            time.sleep(0.01)
        does = behaviour.read_text() if behaviour.exists() else ""
        if does == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if does == "fail":
            failed += 1
            emit("result", of="pair", name=name, status="failed", reason="not a scan", folder="", summary=None)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {"fixed": f"{name}.nii.gz", "lam": lam}
        path.write_text(json.dumps({"settings": settings, "seconds": 1.5}))
        result(name, 1.5)
    return int(failed > 0)


def launch(arguments: list[str]) -> None:
    """launch/cohort.py with the fake."""
    sys.path.insert(0, str(ROOT / "launch"))
    import cohort
    from study import cohort_view, launcher

    cohort.REGISTER = command("register")
    launcher.SECONDS_BETWEEN_LOOKS = cohort_view.SECONDS_BETWEEN_LOOKS = 0.05
    sys.argv = [cohort.__file__, *arguments]
    launcher.run_launcher(cohort.main)


def command(part: str) -> tuple[str, ...]:
    """How a part of this file is started."""
    return (sys.executable, str(Path(__file__).resolve()), part)


if __name__ == "__main__":
    sys.exit({"register": register, "launch": launch}[sys.argv[1]](sys.argv[2:]))
