"""Rows of tables: CSV with commas, semicolons or tabs."""

import csv
from pathlib import Path

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable

DELIMITERS = (",", ";", "\t")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV as dictionaries of stripped cells without blank lines; a UserError if it has no rows.

    The delimiter is the one of comma, semicolon and tab that is most frequent in the header.
    """
    check_readable(path, "a CSV")
    try:
        text = path.read_text(encoding="utf-8-sig").splitlines()
        first = next((line for line in text if line.strip()), "")
        delimiter = max(DELIMITERS, key=first.count)
        lines = [line for line in csv.reader(text, delimiter=delimiter) if any(map(str.strip, line))]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path}: not readable as CSV ({error}); expected UTF-8 text with commas, semicolons or tabs"
        ) from error
    if len(lines) < 2:
        raise UserError(f"{path}: holds no rows; expected a header and one row per entry")
    header = [cell.strip() for cell in lines[0]]
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise UserError(f"{path}: row {number} has {len(line)} cells; the header has {len(header)}")
    return [dict(zip(header, map(str.strip, line), strict=True)) for line in lines[1:]]
