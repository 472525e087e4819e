"""Runs tests, the benchmark and a long training run on a machine with an NVIDIA GPU, in about 25 minutes.

    python launch/gpu_checks.py [--part=tests|benchmark|train] [--output=runs/gpu_checks]
        [--sections=large,scaling] [--minutes=9]

Needs the package with the extras cuda and dev. With the extra bench, the benchmark also compares with PyTorch and
VoxelMorph. Every step writes its output to a log. A step that has passed leaves its log and is skipped the next time.
An interrupted training run resumes, and so does a benchmark that ran out of time, which counts as failed (status 3).
"""

import argparse
import os
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    *("ops/test_conv", "ops/test_warp", "ops/test_fields", "ops/test_mind", "ops/test_losses"),
    *("models/test_layers", "models/test_models", "train/test_train"),
)
SECTIONS = "large,scaling,convolutions,sweep,small,memory"  # of the benchmark, most important first
CASES = 48
DATA = {"shape": (144, 144, 128), "spacing": (2.0, 2.0, 2.0), "cases": CASES, "validation_cases": 2, "test_cases": 6}
TRIAL_STEPS = 30
SECONDS = 480  # of training in the long run
MAX_STEPS = 10_000
FIND_GPU = "import jax; print(*(device.device_kind for device in jax.devices('gpu')), sep=', ')"


def main() -> int:
    """Runs the requested parts; returns the exit status, 1 if one failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=PARTS, help="run only this part (default: all)")
    parser.add_argument("--sections", default=SECTIONS, help="sections of the benchmark")
    parser.add_argument("--minutes", type=float, default=9, help="minutes after which the benchmark starts nothing new")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu_checks"), help="folder of logs and runs")
    options = parser.parse_args()
    output = options.output.absolute()
    # The tests start several JAX processes, which share the memory of the GPU.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    found = subprocess.run([sys.executable, "-c", FIND_GPU], capture_output=True, text=True, check=False)
    if found.returncode:
        print("error: JAX finds no GPU, expected one and the extra cuda: pip install -e '.[cuda,dev]'", file=sys.stderr)
        return 2
    print(f"GPU: {found.stdout.strip()}; logs in {output}", flush=True)
    output.mkdir(parents=True, exist_ok=True)
    parts = [options.part] if options.part else list(PARTS)
    settings = {"benchmark": {"sections": options.sections, "minutes": options.minutes}}
    passed = {part: PARTS[part](output, **settings.get(part, {})) for part in parts}
    print("\n" + "\n".join(f"{part}: {'passed' if good else 'FAILED'}" for part, good in passed.items()))
    return int(not all(passed.values()))


def run(name: str, command: list[str], output: Path) -> bool:
    """Runs a command, prints its output and saves it in NAME.log or NAME.failed.log; returns whether it passed."""
    log, failed = output / f"{name}.log", output / f"{name}.failed.log"
    if log.exists():
        print(f"\n== {name}: passed before, delete {log} to run it again", flush=True)
        return True
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    with failed.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, text=True, bufsize=1, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for line in process.stdout or ():
            print(line, end="", flush=True)
            file.write(line)
        status = process.wait()
    print(f"== {name}: exit status {status} after {time.monotonic() - start:.0f} s", flush=True)
    if status == 0:
        failed.replace(log)
    return status == 0


def check_tests(output: Path) -> bool:
    """Runs the tests whose result depends on the device."""
    files = [f"tests/{name}.py" for name in TESTS]
    return run("tests", [sys.executable, "-m", "pytest", "-q", "--durations=10", *files], output)


def check_benchmark(output: Path, *, sections: str, minutes: float) -> bool:
    """Measures sections of the suite within the given minutes."""
    flags = [f"--sections={sections}", f"--minutes={minutes}", f"--record={output / 'bench'}"]
    flags += ["--suite", f"--markdown={output / 'BENCHMARKS.md'}"]
    return run(f"benchmark_{sections.replace(',', '_')}", [sys.executable, "-m", "f3r_jax.benchmark", *flags], output)


def check_train(output: Path) -> bool:
    """Trains the default config at 144 x 144 x 128 voxels of 2 mm: a short run to time a step, then a long one."""
    print(f"\n== phantom: {CASES} cases", flush=True)
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        list(pool.map(make_case, range(CASES), [output] * CASES))
    trial = output / "trial"
    if not run("trial", train_command(output, trial, TRIAL_STEPS), output):
        return False
    seconds = seconds_per_step(trial)
    steps = max(100, min(MAX_STEPS, int(SECONDS / seconds) // 100 * 100))
    print(f"\n{seconds:.3f} s per step, so {steps} steps", flush=True)
    return run("train", train_command(output, output / "train", steps), output)


def train_command(output: Path, workdir: Path, steps: int) -> list[str]:
    """Command of a training run at full size."""
    often = max(1, steps // 10)
    settings = {f"data.{key}": value for key, value in DATA.items()} | {"data.root": output / "phantom"}
    settings |= {
        "train.crop": (0, 0, 0),
        "train.steps": steps,
        "train.validate_every": often,
        "train.checkpoint_every": often,
    }
    flags = [*(f"--config.{key}={value}" for key, value in settings.items()), f"--workdir={workdir}"]
    return [sys.executable, "-m", "f3r_jax.main", "--config=configs/mrb.py", *flags]


def make_case(index: int, output: Path) -> None:
    """Generates one phantom case. This runs in parallel; the main job would generate cases one after another."""
    from f3r_jax.data.datasets import open_dataset

    config = runpy.run_path(str(ROOT / "configs" / "mrb.py"))["get_config"]()
    config.data.update(DATA, root=str(output / "phantom"))
    dataset = open_dataset(config.data, seed=config.seed)
    dataset.load(list(dataset.makers)[index])


def seconds_per_step(workdir: Path) -> float:
    """Median seconds per step of a run, from the times in its TensorBoard events."""
    from tensorboardX.proto.event_pb2 import Event

    times = {}
    for path in (workdir / "tensorboard").glob("events*"):
        data, position = path.read_bytes(), 0
        while position < len(data):  # length (8 bytes), its checksum (4), event, its checksum (4)
            length = int.from_bytes(data[position : position + 8], "little")
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length
            if any(value.tag == "train/loss" for value in event.summary.value):
                times[event.step] = event.wall_time
    return statistics.median(times[step] - times[step - 1] for step in times if step - 1 in times)


PARTS: dict[str, Callable[..., bool]] = {"tests": check_tests, "benchmark": check_benchmark, "train": check_train}

if __name__ == "__main__":
    sys.exit(main())
