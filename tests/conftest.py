"""Tiny data, a network that compiles in a second, and the entry points as child processes."""

import contextlib
import dataclasses
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import command_server
from f3r_jax import models
from f3r_jax.data import nifti
from f3r_jax.data.affine import search
from f3r_jax.data.cases import Case
from f3r_jax.data.datasets import Dataset

pytest_plugins = ("extras",)
REPOSITORY = Path(__file__).parent.parent
SHAPE = (16, 16, 16)
TINY_DATA = {
    "data.shape": SHAPE,
    "data.spacing": (20.0, 20.0, 16.0),
    "data.cases": 6,
    "data.validation_cases": 1,
    "data.test_cases": 2,
}
TINY_CONFIG = TINY_DATA | {
    "train.steps": 6,
    "train.crop": (0, 0, 0),
    "train.validate_every": 3,
    "train.checkpoint_every": 2,
    "optim.learning_rate": 1e-2,
    "optim.warmup_steps": 2,
    "optim.decay": "constant",
    "model.name": "tiny",
    "loss.lam": 1.0,
    "loss.mind": "mind_ssc",
    "loss.second_after": 0.66,
}


def pytest_configure(config: pytest.Config) -> None:
    """Functions compiled once serve the whole session: all workers, and the processes that tests start."""
    config.compiled = None
    if hasattr(config, "workerinput"):  # a worker inherits the folder from the process that started it
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"]
    else:
        config.compiled = tempfile.TemporaryDirectory(prefix="compiled-")
        folder = config.compiled.name
    for option, value in (
        ("jax_compilation_cache_dir", folder),
        ("jax_persistent_cache_min_compile_time_secs", 0),
        ("jax_persistent_cache_min_entry_size_bytes", -1),
    ):
        jax.config.update(option, value)
        os.environ[option.upper()] = str(value)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Drops the compiled functions."""
    if config.compiled is not None:
        config.compiled.cleanup()


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Looks until the condition holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended; a negative status is the signal that ended it."""

    status: int
    out: str
    err: str


class Commands:
    """`python -m f3r_jax.<module> <arguments>` in the repository, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._server = subprocess.Popen(
            [sys.executable, str(Path(command_server.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )

    def run(
        self,
        module: str,
        *arguments: object,
        kill_when: Callable[[], bool] | None = None,
        env: dict[str, str] | None = None,
        cwd: Path = REPOSITORY,
    ) -> Result:
        """Runs one command, in a folder and an environment with changes; sends it SIGKILL once `kill_when` holds."""
        out, err = self._folder / "out", self._folder / "err"
        command = {"module": module, "arguments": [str(a) for a in arguments], "out": str(out), "err": str(err)}
        command |= {"env": env or {}, "cwd": str(cwd)}
        self._server.stdin.write(json.dumps(command) + "\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        if kill_when is not None:
            with contextlib.suppress(ProcessLookupError):  # it may end before that
                while not kill_when():
                    os.kill(child, 0)
                    time.sleep(0.001)
                os.kill(child, signal.SIGKILL)
        return Result(int(self._server.stdout.readline()), out.read_text(), err.read_text())

    def close(self) -> None:
        """Ends the server."""
        self._server.stdin.close()
        self._server.wait()


@pytest.fixture(scope="session")
def commands(tmp_path_factory):
    started = Commands(tmp_path_factory.mktemp("commands"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """Where the tiny phantom is kept; it is generated once."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture
def tiny_network(monkeypatch):
    """Makes `model.name=tiny` a network in this process."""
    for table in ("NETWORKS", "LABELS"):
        monkeypatch.setattr(models, table, dict(getattr(models, table)))
    command_server.register_tiny()


@pytest.fixture
def arguments(phantoms, tmp_path):
    """A function: the arguments of `main` for a tiny run in tmp_path/run, with changes to the config."""

    def make(changes: dict | None = None, *, workdir: Path | None = tmp_path / "run", config: str = "configs/mrb.py"):
        values = TINY_CONFIG | {"data.root": phantoms} | (changes or {})
        folder = [] if workdir is None else [f"--workdir={workdir}"]
        return [f"--config={config}", *folder, *(f"--config.{key}={values[key]}" for key in values)]

    return make


@pytest.fixture(scope="session")
def finished(commands, phantoms, tmp_path_factory):
    """The folder and the result of a tiny run that ended; copy the folder before changing it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    values = TINY_CONFIG | {"data.root": phantoms}
    changes = [f"--config.{key}={value}" for key, value in values.items()]
    return workdir, commands.run("main", "--config=configs/mrb.py", f"--workdir={workdir}", *changes)


@pytest.fixture
def config() -> ConfigDict:
    """The default config at the tiny size."""
    made = runpy.run_path(str(REPOSITORY / "configs" / "mrb.py"))["get_config"]()
    made.update_from_flattened_dict(TINY_CONFIG)
    return made


def data_settings(root: Path, **changes: object) -> dict:
    """The section `data` of a config for NIfTI pairs, of which none is held out; shape and spacing are to be given."""
    return {
        "source": "nifti",
        "root": str(root),
        "direction": "ct_to_mr",
        "cases": 0,
        "validation_cases": 0,
        "test_cases": 0,
        "initialisation": "header",
        "unoriented": "",
        "check_modality": True,
        "ct_window": (-160.0, 240.0),
        "mr_percentiles": (1.0, 99.0),
    } | changes


def blob(centre: float, *, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """A smooth ball with a core, in [0, 1]."""
    axes = np.ogrid[tuple(slice(0, size) for size in shape)]
    radius = sum((axis - size / 2 - centre) ** 2 for axis, size in zip(axes, shape, strict=True)) / min(shape) ** 2
    return (np.exp(-8 * radius) - 0.5 * np.exp(-40 * radius)).astype(np.float32)


def make_case(name: str, shift: float) -> Case:
    """A ball and the same ball, `shift` voxels away along each axis."""
    fixed, moving = blob(0.0), blob(shift)
    return Case(
        name=name,
        fixed=fixed,
        moving=moving,
        fixed_labels=(fixed > 0.3).astype(np.uint8),
        moving_labels=(moving > 0.3).astype(np.uint8),
        displacement=np.full((*SHAPE, 3), shift, np.float32),
        spacing=np.array([2.0, 2.0, 3.0]),
        affine=np.diag([2.0, 2.0, 3.0, 1.0]),
        moving_affine=np.diag([2.0, 2.0, 3.0, 1.0]),
    )


@pytest.fixture
def balls() -> Dataset:
    """Five cases in memory: three to train on, one to validate, one to test."""
    names = [f"ball_{index}" for index in range(5)]
    makers = {name: (lambda name=name, index=index: make_case(name, 0.5 * index)) for index, name in enumerate(names)}
    return Dataset({"train": tuple(names[:3]), "validation": (names[3],), "test": (names[4],)}, makers)


@pytest.fixture
def few(monkeypatch):
    """Makes a search for the position return three placements, which are enough where only one is right."""
    monkeypatch.setattr(search, "COUNT", 3)


@pytest.fixture
def pairs_folder(tmp_path):
    """A folder with four NIfTI pairs of balls, ct_0.nii.gz, mr_0.nii.gz and so on, and their pairs.csv."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    affine = np.diag([20.0, 20.0, 16.0, 1.0])
    rows = ["fixed,moving,split"]
    for index, split in enumerate(("train", "train", "validation", "test")):
        nifti.write(folder / f"mr_{index}.nii.gz", 500 * blob(0.0), affine)
        nifti.write(folder / f"ct_{index}.nii.gz", 600 * blob(0.5 * index) - 150, affine)
        rows.append(f"mr_{index}.nii.gz,ct_{index}.nii.gz,{split}")
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def builtin_network():
    """The network in the package."""
    from f3r_jax.workdir import trained_network, weights

    return trained_network.load(Path(weights.BUILTIN))


@pytest.fixture(scope="session")
def phantom_pair():
    """A CT and an MR of a phantom in one frame, as scans, and the labels of both."""
    from f3r_jax.config import CT_WINDOW, MR_PERCENTILES
    from f3r_jax.data import preprocess
    from f3r_jax.data.nifti import Image
    from f3r_jax.data.phantom import generate
    from f3r_jax.register.scans import Scan

    case = generate.make_case(7, 0, shape=(64, 48, 48), spacing=(4.8,) * 3)
    affine = np.diag([4.8, 4.8, 4.8, 1.0])
    scans = {}
    for modality in ("ct", "mr"):
        image = Image(getattr(case, modality), affine, modality)
        normalised = preprocess.normalise(image, modality, ct_window=CT_WINDOW, mr_percentiles=MR_PERCENTILES)
        labels = Image(getattr(case, f"{modality}_labels"), affine, f"labels of the {modality}")
        scans[modality] = Scan(image, normalised, modality, image.grid, labels=labels)
    return scans
