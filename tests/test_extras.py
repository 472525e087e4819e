"""The marker `extras`: who gets it, and what happens where a package is missing."""

import tomllib
from pathlib import Path

import pytest

from extras import MODULES

pytest_plugins = ("pytester",)

CONFTEST = """
import extras
import pytest

pytest_plugins = ("extras",)
extras.MODULES |= {"json": "bench", "no_such_module": "peers"}
there, missing = extras.package("json"), extras.package("no_such_module")

@pytest.fixture
def through(no_such_module):
    return no_such_module
"""
TESTS = """
import pytest

def test_there(json): assert json.dumps(1) == "1"
def test_missing(no_such_module): ...
def test_through(through): ...
@pytest.mark.extras("json", "no_such_module")
def test_marked(): ...
def test_plain(): ...
"""


def test_every_module_comes_with_an_extra():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(MODULES.values()) <= project["optional-dependencies"].keys()


@pytest.fixture
def inner(pytester, monkeypatch):
    """A folder of tests that use one module that is installed and one that is not."""
    monkeypatch.setitem(MODULES, "json", "bench")  # undone at the end, as are the changes that CONFTEST makes
    monkeypatch.setitem(MODULES, "no_such_module", "peers")
    pytester.makeini("[pytest]\nmarkers = extras")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    return pytester


def test_tests_with_a_package_are_marked_and_skip_without_it(inner):
    result = inner.runpytest("-m", "extras", "-rs", "--strict-markers")
    result.assert_outcomes(passed=1, skipped=3, deselected=1)
    result.stdout.fnmatch_lines(["SKIPPED *: needs no_such_module: make test EXTRAS=peers"])
    inner.runpytest("-m", "not extras").assert_outcomes(passed=1, deselected=4)


def test_a_marker_has_to_name_a_module(inner):
    inner.makepyfile("import pytest\n@pytest.mark.extras('antspyx')\ndef test(): ...")
    result = inner.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*extras('antspyx',), expected names of SimpleITK, pydicom, ants*"])
