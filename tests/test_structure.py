"""Rules of the code base, read off its sources: imports run one way, and what is imported or named where."""

import ast
import re
from pathlib import Path

import pytest

from extras import MODULES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "f3r_jax"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(path for folder in ("launch", "docs") for path in (ROOT / folder).rglob("*.py"))
IGNORED = ("__pycache__", "py.typed")

# A package imports from the floors below its own, never from its neighbours or from above.
FLOORS = (
    {"common", "ops"},
    {"config", "data", "models"},
    {"workdir"},
    {"evaluate"},
    {"train", "register", "report"},
    {"main", "apply", "benchmark"},
)
LONG = {  # files of more than MOST_LINES, and why
    "f3r_jax/data/phantom/anatomy.py": "a list of organs",
    "f3r_jax/ops/conv_cpu.py": "the forms of one operation",
}
MOST_LINES = 250
# A library that one module alone may import.
KEEPERS = {
    "orbax": {"f3r_jax/workdir/checkpoints.py"},
    "nibabel": {"f3r_jax/data/nifti.py", "f3r_jax/data/nifti_images.py", "f3r_jax/data/mgh.py"},
    "torch": {
        "f3r_jax/evaluate/classical.py",
        "f3r_jax/benchmark/torch_f3rnet.py",
        "f3r_jax/benchmark/torch_jobs.py",
        "f3r_jax/benchmark/torch_voxelmorph.py",
    },
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


def _names(node):
    """What a statement of a module imports, by dotted name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) else []


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def floor(part):
    return next((n for n, parts in enumerate(FLOORS) if part in parts), None)


def is_entry_point(path):
    return path.name == "__main__.py" or (path.parent == PACKAGE and path.stem in ("main", "apply"))


def test_there_are_sources_to_read():
    assert PACKAGE / "ops" / "conv.py" in SOURCES
    assert "f3r_jax.ops.shapes.Features" in imports(PACKAGE / "ops" / "conv.py")


def test_the_package_has_an_entry_for_each_part():
    entries = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name not in IGNORED}
    assert entries == {"__init__"}.union(*FLOORS)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_down(path):
    part = part_of(path)
    for name in imports(path):
        assert not name.endswith(".__main__"), f"{name_of(path)} imports {name}"
        if not name.startswith("f3r_jax.") or (other := name.split(".")[1]) == part or other == "__version__":
            continue
        if part == "__init__":  # only the Python interface, inside of functions
            assert name.startswith("f3r_jax.register.api"), f"{name_of(path)} imports {name}"
            continue
        assert floor(other) is not None, f"{other} has no place in FLOORS"
        assert floor(other) < floor(part), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("package", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_imports_inside_a_package_form_no_circle(package):
    modules = {dotted(path): path for path in (PACKAGE / package).rglob("*.py")}
    uses = {}
    for module, path in modules.items():
        named = {name if name in modules else name.rpartition(".")[0] for name in imports(path)}
        uses[module] = (named & modules.keys()) - {module}
    while done := {module for module, named in uses.items() if not named}:
        uses = {module: named - done for module, named in uses.items() if module not in done}
    assert not uses, f"import each other: {', '.join(sorted(uses))}"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name == "__init__.py"], ids=name_of)
def test_a_package_itself_holds_only_its_description(path):
    if path.parent == PACKAGE:  # holds the Python interface; its import has to be quick
        imported = {name.split(".")[0] for node in ast.parse(path.read_text()).body for name in _names(node)}
        assert imported == {"importlib", "types", "typing"}
    elif path.parent.name != "models":
        body = [node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr)]
        assert [ast.unparse(node).split(" ")[0] for node in body] == []


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=name_of)
def test_a_file_is_read_at_one_sitting(path):
    assert name_of(path) in LONG or len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("library", KEEPERS)
def test_library_is_imported_by_its_keeper_alone(library):
    users = {name_of(path) for path in SOURCES if any(name.split(".")[0] == library for name in imports(path))}
    assert users <= KEEPERS[library]


def test_metrics_need_no_jax():
    for path in (PACKAGE / "evaluate" / "metrics.py", PACKAGE / "common" / "arrays.py"):
        for name in imports(path):
            assert name.split(".")[0] not in ("jax", "flax", "optax")
            assert not name.startswith("f3r_jax.") or name.startswith("f3r_jax.common.arrays.")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_flags_are_defined_in_entry_points_alone(path):
    if not is_entry_point(path):
        assert not re.findall(r"\bDEFINE_\w+", path.read_text())
        assert name_of(path) == "f3r_jax/common/cli.py" or not any(
            name.split(".")[0] == "absl" for name in imports(path)
        )


def published():
    """What a reader of the project opens: sources, configs, scripts and the files next to them."""
    names = ("f3r_jax", "configs", "launch", "docs/mkdocs", ".ci")
    folders = [path for folder in names for path in (ROOT / folder).rglob("*")]
    others = [ROOT / name for name in ("README.md", "Makefile", "pyproject.toml", ".gitignore")]
    return [path for path in folders + others if path.is_file() and path.suffix not in (".pyc", ".gz", ".npz")]


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


TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.name != "extras.py")


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_packages_of_extras_come_from_their_fixtures_alone(path):
    """A test that imports one by itself, or skips without it, has no marker: it fails without extras or never runs."""
    for name in imports(path):
        assert name.split(".")[0] not in MODULES and not name.startswith("f3r_jax.benchmark.torch_"), f"import {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            assert called not in ("importorskip", "find_spec", "import_module"), f"line {node.lineno}: {called}"
            assert called not in ("skip", "skipif") or "install" not in ast.unparse(node), (
                f"line {node.lineno}: {called}"
            )
