import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import f3r_jax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def make(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("extra", ["", "dev", "bench", "baselines", "formats", "peers", "slurm"])
def test_constraints_pin_every_dependency_within_its_bounds(extra):
    pinned = pins()
    for line in PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]:
        wanted = Requirement(line)
        (pin,) = pinned[canonicalize_name(wanted.name)].specifier
        assert pin.operator == "=="
        assert wanted.specifier.contains(pin.version), line


def test_version_is_that_of_the_installed_package():
    assert f3r_jax.__version__ == importlib.metadata.version("f3r_jax")


def test_make_alone_lists_the_targets():
    listed = make().stdout
    for target in ("run", "paper", "test", "lint", "bench", "help"):
        assert f"\n  {target} " in listed


def test_make_knows_the_extras_of_the_package_and_no_others():
    finished = make("help", "EXTRAS=gpu")
    assert finished.returncode == 2
    assert f"EXTRAS: unknown gpu; known are {' '.join(sorted(PROJECT['optional-dependencies']))}" in finished.stderr


def test_gpu_checks_without_a_gpu_say_so_and_write_nothing(tmp_path):
    command = [sys.executable, ROOT / "launch" / "gpu_checks.py", f"--output={tmp_path / 'out'}"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: JAX finds no GPU") and finished.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
