"""Writes a study's report: the paper's tables and figures from finished runs, as one HTML page and as Markdown.

  python -m f3r_jax.report RUNS... --output=report

RUNS are run folders, or folders with runs at any depth. The output contains index.html, which needs no other file,
report.md, and the tables and figures as CSV, PNG and SVG. All numbers come from the runs' evaluations. Everything that
can't be read is listed in the report. The exit status is 0 if all was read, otherwise 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.errors import UserError

_OUTPUT = flags.DEFINE_string("output", "report", "Folder of the report; an earlier report there is replaced.")
GROUPS = {"Output": ("output",)}


def main(argv: Sequence[str]) -> int:
    """Reads the flags, writes the report and prints what could not be read."""
    if not argv[1:]:
        raise UserError("expected RUNS... [--output=FOLDER]: folders of runs, or folders that contain them")
    from f3r_jax.report.wording import count
    from f3r_jax.report.write import write_report

    output = Path(_OUTPUT.value)
    found = write_report([Path(name) for name in argv[1:]], output)
    for what, reason in found.problems:
        print(f"not read: {what}: {reason}", file=sys.stderr)
    print(f"report: {output / 'index.html'} ({count(len(found.runs), 'run')})")
    return int(bool(found.problems))


def console() -> None:
    """The console script."""
    cli.run_main(main, GROUPS)


if __name__ == "__main__":
    console()
