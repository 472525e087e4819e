"""Rules of the code base, read off its sources: imports run one way, and what is imported or named where."""

import ast
import re
from pathlib import Path

import pytest
from extras import MODULES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "f3r_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# A module imports from the layers above its own line only; a folder's modules also import each other.
LAYERS = (
    {"errors", "memory", "programs", "prepared", "progress", "shapes", "torch_f3rnet"},
    {"defaults"},
    {"ops", "checkpoints", "cli", "devices", "torch_voxelmorph", "workdir"},
    {"models", "losses", "machine", "metrics", "data"},
    {"predict", "controls", "augment", "slices", "benchmark_tables", "costs", "learn2reg", "peers", "plans"},
    {"pictures", "predictions", "suite_tables", "batches"},
    {"validation"},
    {"record"},
    {"results", "train", "refine", "syn", "submissions", "networks"},
    {"instance"},
    {"method", "results_table", "scored"},
    {"evaluate", "jax_jobs", "registration", "timing", "torch_jobs"},
    {"measurements", "reporting", "registration_job"},
    {"outcome", "registration_benchmark"},
    {"suite", "task", "tally"},
    {"folder"},
    {"main", "register", "apply", "report", "benchmark"},
)
ENTRY_POINTS = {"main", "evaluate", "register", "apply", "report", "benchmark"}
# A library that one module alone may import.
KEEPERS = {
    "orbax": {"f3r_jax/checkpoints.py"},
    "nibabel": {"f3r_jax/data/nifti.py"},
    "torch": {"f3r_jax/peers.py", "f3r_jax/torch_f3rnet.py", "f3r_jax/torch_jobs.py", "f3r_jax/torch_voxelmorph.py"},
}


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def part_of(path):
    """The module, or the folder that holds it, directly below f3r_jax."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """All that a file imports, at any depth, as dotted names: `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(part):
    return next((n for n, parts in enumerate(LAYERS) if part in parts), None)


def inner_modules():
    return [path for path in SOURCES if path != PACKAGE / "__init__.py"]


def test_there_are_sources_to_read():
    assert PACKAGE / "ops" / "conv.py" in SOURCES
    assert "f3r_jax.shapes.Features" in imports(PACKAGE / "ops" / "conv.py")


@pytest.mark.parametrize("path", inner_modules(), ids=name_of)
def test_imports_run_one_way(path):
    part = part_of(path)
    assert layer(part) is not None, f"{name_of(path)} has no place in LAYERS"
    for name in imports(path):
        if name.startswith("f3r_jax.") and (other := name.split(".")[1]) != part:
            assert layer(other) is not None, f"{other} has no place in LAYERS"
            assert layer(other) < layer(part), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("library", KEEPERS)
def test_library_is_imported_by_its_keeper_alone(library):
    users = {name_of(path) for path in SOURCES if any(name.split(".")[0] == library for name in imports(path))}
    assert users <= KEEPERS[library]


def test_metrics_need_no_jax():
    libraries = {name.split(".")[0] for name in imports(PACKAGE / "metrics.py")}
    assert not libraries & {"jax", "flax", "optax", "f3r_jax"}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_flags_are_defined_in_entry_points_alone(path):
    defined = re.findall(r"\bDEFINE_\w+", path.read_text())
    assert not defined or part_of(path) in ENTRY_POINTS
    if part_of(path) not in ENTRY_POINTS | {"cli"}:
        assert not any(name.split(".")[0] == "absl" for name in imports(path))


def published():
    """What a reader of the project opens: sources, configs, scripts and the files beside them."""
    folders = [path for folder in ("f3r_jax", "configs", "launch", ".ci") for path in (ROOT / folder).rglob("*")]
    beside = [ROOT / name for name in ("README.md", "Makefile", "pyproject.toml", ".gitignore")]
    return [path for path in folders + beside if path.is_file() and path.suffix != ".pyc"]


def test_no_file_names_a_path_of_one_machine():
    pattern = re.compile(r"(?<![\w./])/(work|tmp|home|root|Users|mnt)\b")
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in published()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if pattern.search(line)
    ]
    assert not found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_config_keys_are_read_without_a_default(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "get_ref"):
            owner = ast.unparse(node.func.value)
            assert not re.search(r"\b(config|cfg|model|loss|optim)\b", owner), f"line {node.lineno}: {owner}.get"


TESTS = sorted(path for path in (ROOT / "tests").glob("*.py") if path.name != "extras.py")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_packages_of_extras_come_from_their_fixtures_alone(path):
    """A test that imports one by itself, or skips without it, has no marker: it fails without extras or never runs."""
    for name in imports(path):
        assert name.split(".")[0] not in MODULES and not name.startswith("f3r_jax.torch_"), f"import {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            assert called not in ("importorskip", "find_spec", "import_module"), f"line {node.lineno}: {called}"
            assert called not in ("skip", "skipif") or "install" not in ast.unparse(node), (
                f"line {node.lineno}: {called}"
            )
