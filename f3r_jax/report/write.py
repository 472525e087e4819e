"""Writes the files of a study's report."""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jinja2

import f3r_jax
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import WRITING
from f3r_jax.report.contents import Contents, contents
from f3r_jax.report.study_runs import read_study

MANIFEST = "report.json"  # lists the files of a report, so that the next one replaces only these
PAGES = {"index.html": "report.html.jinja", "report.md": "report.md.jinja"}


def write_report(paths: Sequence[Path], output: Path) -> Contents:
    """Writes the report into `output`, and replaces an earlier one there.

    Raises:
      UserError: no run in the folders, or `output` contains files that no report wrote.
    """
    check_output(output)
    study = read_study(paths)
    if not study.folders:
        reasons = "; ".join(f"{what}: {reason}" for what, reason in study.problems)
        raise UserError(f"{reasons}; expected folders of runs, or folders that contain them")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=WRITING) as made:
        folder = Path(made) / "report"
        folder.mkdir()
        found = contents(study, folder)
        for name, text in (found.files | _pages(found)).items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        names = sorted([*(path.name for path in folder.iterdir()), MANIFEST])
        (folder / MANIFEST).write_text(json.dumps({"files": names}, indent=1) + "\n", encoding="utf-8")
        if output.exists():
            os.replace(output, Path(made) / "old")
        os.replace(folder, output)
    return found


def check_output(output: Path) -> None:
    """Raises a UserError if the folder contains anything but an earlier report."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output}: is a file, expected a folder for --output")
    try:
        own = set(json.loads((output / MANIFEST).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        own = set()
    foreign = sorted(path.name for path in output.iterdir() if path.name not in own)
    if foreign:
        names = ", ".join([*foreign[:3], *(["..."] if len(foreign) > 3 else [])])
        raise UserError(
            f"{output}: contains files that no report wrote ({names}); "
            "expected a new or empty folder for --output, or an earlier report"
        )


def _pages(found: Contents) -> dict[str, str]:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("f3r_jax.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    made = {
        "date": datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0"),
        "command": " ".join(["python -m f3r_jax.report", *sys.argv[1:]]),
        "versions": f"f3r_jax {f3r_jax.__version__}, "
        + ", ".join(f"{n} {version(n)}" for n in ("scipy", "matplotlib")),
    }
    return {
        name: environment.get_template(template).render(report=found, made=made) for name, template in PAGES.items()
    }
