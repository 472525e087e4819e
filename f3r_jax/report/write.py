"""Writes the files of a study's report."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jinja2

import f3r_jax
from f3r_jax.common import result_folder
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import WRITING, write_text
from f3r_jax.common.locks import LOCK_FILE
from f3r_jax.report.contents import Contents, contents
from f3r_jax.report.study_runs import read_study

MANIFEST = "report.json"  # lists the files of a report, so that the next one replaces only these
REPLACED = "replaced"  # key of the files of the earlier report, so that a killed process leaves none of them
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
    with result_folder.reserved(output, _earlier_files(output) or [MANIFEST]):
        earlier = _earlier_files(output)
        with result_folder.staged(output, earlier or [MANIFEST]) as folder:
            found = contents(study, folder)
            for name, text in (found.files | _pages(found)).items():
                write_text(folder / name, text)
            names = sorted([*(path.name for path in folder.iterdir()), MANIFEST])
            write_text(folder / MANIFEST, json.dumps({"files": names, REPLACED: earlier}, indent=1) + "\n")
    return found


def check_output(output: Path) -> None:
    """Raises a UserError if the folder contains anything but an earlier report and what a killed process left."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UserError(f"{output}: is a file, expected a folder for --output")
    own = {*_earlier_files(output), result_folder.COMPLETE, result_folder.MOVING, LOCK_FILE}
    there = sorted(path.name for path in output.iterdir())
    foreign = [name for name in there if name not in own and not name.startswith(WRITING)]
    if foreign:
        names = ", ".join([*foreign[:3], *(["..."] if len(foreign) > 3 else [])])
        raise UserError(
            f"{output}: contains files that no report wrote ({names}); "
            "expected a new or empty folder for --output, or an earlier report"
        )


def _earlier_files(output: Path) -> list[str]:
    """The files of the report in a folder, the manifest last, or nothing.

    A report whose process was killed in the move counts, with the files that it replaces.
    """
    for folder in (output / result_folder.COMPLETE, output / result_folder.MOVING, output):
        try:
            stored = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            names = {*stored["files"], *(stored[REPLACED] if folder.name == result_folder.COMPLETE else ())}
            return [*sorted(name for name in names if name == Path(name).name != MANIFEST), MANIFEST]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []


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
