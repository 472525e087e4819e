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


@pytest.mark.parametrize("extra", ["", "dev", "bench", "baselines", "formats", "peers", "slurm", "docs"])
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
    for target in ("run", "paper", "test", "lint", "bench", "docs", "help"):
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


def test_console_scripts_lead_to_the_entry_points():
    names = {"register": "register.__main__", "apply": "apply", "train": "main"}
    names |= {name: f"{name}.__main__" for name in ("evaluate", "report")}
    assert PROJECT["scripts"] == {f"f3r-{name}": f"f3r_jax.{module}:console" for name, module in names.items()}


@pytest.mark.parametrize("module", ["f3r_jax.register.__main__", "f3r_jax.apply"])
def test_a_console_script_prints_the_help_of_its_command(module):
    script = f"import sys; sys.argv = ['f3r', '--help']; from {module} import console; console()"
    finished = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert finished.stderr == "" and finished.stdout.startswith(("Registers a moving scan", "Applies a registration"))
    assert "--output=VALUE" in finished.stdout


def test_the_container_copies_what_the_wheel_needs_and_runs_as_a_normal_user():
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]}
    licences = {name.split("/")[0] for name in PROJECT["license-files"]}
    needed = {"pyproject.toml", "constraints.txt", "f3r_jax", PROJECT["readme"], *licences}
    assert needed == copied and all((ROOT / name).exists() for name in copied)
    assert lines.index("USER 1000") > max(index for index, line in enumerate(lines) if line.startswith("RUN "))
    (extra,) = [line.split("=")[1] for line in lines if line.startswith("ARG EXTRAS")]
    (entry,) = [line.split('"')[1] for line in lines if line.startswith("ENTRYPOINT")]
    assert extra in PROJECT["optional-dependencies"] and entry in PROJECT["scripts"]


def test_every_file_that_is_not_python_is_package_data():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folders = {name: ROOT / name.replace(".", "/") for name in patterns}
    packed = {path for name, given in patterns.items() for each in given for path in folders[name].glob(each)}
    others = [path for path in (ROOT / "f3r_jax").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert set(others) == packed and ROOT / "f3r_jax/register/niivue/LICENSE" in packed
