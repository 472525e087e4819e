"""Packages of the extras as fixtures, which mark the test with `extras` and skip it where the package is not installed.

`make test` runs in an environment without extras, and `make test EXTRAS=... ARGS="-m extras"` runs the marked tests.
A test that needs a package in other ways than through a fixture names it: `@pytest.mark.extras("ants")`.
"""

import importlib
import importlib.util
from collections.abc import Callable

import pytest

MODULES = {  # name as it is imported: extra that installs it
    "SimpleITK": "formats",
    "pydicom": "formats",
    "ants": "baselines",
    "surface_distance": "baselines",
    "torch": "bench",
    "voxelmorph": "bench",
    "picsl_greedy": "peers",
    "convexAdam": "peers",
    "submitit": "slurm",
    "mkdocs": "docs",
    "nbclient": "docs",
}


@pytest.hookimpl(tryfirst=True)  # before pytest selects by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that use a package of an extra, directly or through another fixture; skips them without it."""
    missing = {module for module in MODULES if importlib.util.find_spec(module) is None}
    for item in items:
        if used := sorted(MODULES.keys() & set(item.fixturenames)):
            item.add_marker(pytest.mark.extras(*used))
        needed = {module for marker in item.iter_markers("extras") for module in marker.args}
        if not needed <= MODULES.keys():
            raise pytest.UsageError(f"{item.nodeid}: extras{(*needed,)}, expected names of {', '.join(MODULES)}")
        if absent := sorted(needed & missing):
            extras = ",".join(sorted({MODULES[module] for module in absent}))
            reason = f"needs {', '.join(absent)}: make test EXTRAS={extras}"
            item.add_marker(pytest.mark.skipif(True, reason=reason), append=False)  # reported before the test's own


def package(name: str) -> Callable:
    """A fixture with the name of a module, which it imports."""

    @pytest.fixture(scope="session", name=name)
    def imported():
        return importlib.import_module(name)

    return imported


SimpleITK, pydicom, ants, surface_distance, voxelmorph, picsl_greedy, submitit, mkdocs, nbclient = map(
    package,
    (
        *("SimpleITK", "pydicom", "ants", "surface_distance", "voxelmorph", "picsl_greedy", "submitit"),
        *("mkdocs", "nbclient"),
    ),
)


@pytest.fixture
def sitk(SimpleITK):
    """SimpleITK by its usual short name."""
    return SimpleITK


@pytest.fixture
def torch():
    """PyTorch on one thread: on arrays this small a second one only waits for the first on a busy machine."""
    module = importlib.import_module("torch")
    threads = module.get_num_threads()
    module.set_num_threads(1)
    yield module
    module.set_num_threads(threads)


@pytest.fixture
def flop_counter(torch):
    """PyTorch's count of floating-point operations, which `import torch` leaves out."""
    return importlib.import_module("torch.utils.flop_counter")


@pytest.fixture
def torch_f3rnet(torch):
    """F3RNet in PyTorch."""
    return importlib.import_module("f3r_jax.benchmark.torch_f3rnet")


@pytest.fixture
def torch_jobs(torch):
    """The jobs of a benchmark in PyTorch."""
    return importlib.import_module("f3r_jax.benchmark.torch_jobs")


@pytest.fixture
def torch_voxelmorph(torch, voxelmorph):
    """VoxelMorph's own network."""
    return importlib.import_module("f3r_jax.benchmark.torch_voxelmorph")
