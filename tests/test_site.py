"""The documentation site and its notebook; `make docs` builds the site."""

import html
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from conftest import REPOSITORY

FOLDER = REPOSITORY / "docs" / "mkdocs"
NOTEBOOK = REPOSITORY / "docs" / "notebook.ipynb"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
COMMANDS = ("register", "apply", "main", "evaluate", "report", "benchmark")


@pytest.fixture(scope="module")
def site(mkdocs, tmp_path_factory):
    """The folder of the site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", FOLDER / "mkdocs.yml", "-d", folder]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "1"}
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder


def words(page):
    """The text of a page without tags."""
    return html.unescape(re.sub(r"<[^>]*>", "", page.read_text()))


def test_the_site_loads_nothing_from_other_servers(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=[\"']?([^\"'\s>]+)", page.read_text())
        assert loaded and not [url for url in loaded if re.match(r"(?:https?:)?//", url)], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//|@import", sheet.read_text()), sheet.name


def test_commands_have_their_flags(site, commands):
    text = " ".join(words(site / "commands.html").split())
    for name in COMMANDS:
        printed = commands.run(name, "--help").out
        flags = re.findall(r"^  (--\S+)$", printed, re.MULTILINE)
        assert flags, name
        for flag in flags:
            assert flag in text, f"{name} {flag}"
        assert " ".join(printed.splitlines()[0].split()) in text


def test_the_python_interface_has_its_docstrings(site):
    text = words(site / "api.html")
    for part in (
        "Registers a moving scan to a fixed scan.",
        "progress",
        "map_points",
        "overwrite",
        "UserError",
        "mind_l1",
    ):
        assert part in text, part


def test_benchmarks_weights_and_the_notebook_are_pages(site):
    first = (REPOSITORY / "BENCHMARKS.md").read_text().splitlines()[0].lstrip("# ")
    assert first in words(site / "benchmarks.html")
    assert (site / "weights" / "mrb_phantom_28000.npz").stat().st_size > 1e6
    assert "f3r_jax.register(" in words(site / "notebook.html") and (site / "notebook_1.png").exists()
    assert 'href="benchmarks.html"' in (site / "study.html").read_text()


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def printed(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"] if output.get("name") == "stdout")


def test_the_stored_notebook_is_complete():
    cells = code_cells(NOTEBOOK)
    assert 8 <= len(cells) <= 12
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"]) == 2
    assert NOTEBOOK.stat().st_size < 150_000


@pytest.mark.slow
def test_the_notebook_gives_what_is_stored(nbclient, tmp_path):
    """Numbers may differ between machines: rounding grows in a training."""
    output = tmp_path / "executed.ipynb"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    command = [sys.executable, FOLDER / "execute_notebook.py", output]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    for new, stored in zip(code_cells(output), code_cells(NOTEBOOK), strict=True):
        kinds = [[sorted(output.get("data", {"text": 0})) for output in cell["outputs"]] for cell in (new, stored)]
        assert kinds[0] == kinds[1]
        texts = [printed(cell) for cell in (new, stored)]
        assert NUMBER.sub("", texts[0]) == NUMBER.sub("", texts[1])
        values = [np.array(NUMBER.findall(text), float) for text in texts]
        np.testing.assert_allclose(*values, rtol=0.1, atol=1.5)
