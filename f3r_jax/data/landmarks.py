"""CSV files: landmarks (points in mm, RAS+), and rows of any table.

Letters: n points.
"""

import csv
from pathlib import Path

import numpy as np

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable


def check_landmarks(one: Path, other: Path) -> None:
    """Raises a UserError unless both files hold equally many points."""
    counts = [len(read_landmarks(file)) for file in (one, other)]
    if counts[0] != counts[1]:
        raise UserError(f"{one}: {counts[0]} landmarks, but {counts[1]} in {other}; they must correspond row by row")


def read_landmarks(path: Path) -> np.ndarray:
    """Reads points (n 3) in mm, RAS+, from a CSV with columns x, y, z."""
    rows = read_rows(path)
    if missing := [axis for axis in "xyz" if axis not in rows[0]]:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected x, y, z in mm")
    try:
        points = np.array([[float(row[axis]) for axis in "xyz"] for row in rows])
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected a number in each of the columns x, y, z") from error
    if not np.isfinite(points).all():
        raise UserError(f"{path}: a coordinate is NaN or infinite; expected finite numbers in mm")
    return points


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV as dictionaries of stripped cells without blank lines; a UserError if it has no rows."""
    check_readable(path, "a CSV")
    try:
        lines = [
            line for line in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if any(map(str.strip, line))
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV ({error}); expected UTF-8 text with commas") from error
    if len(lines) < 2:
        raise UserError(f"{path}: holds no rows; expected a header and one row per entry")
    header = [cell.strip() for cell in lines[0]]
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise UserError(f"{path}: row {number} has {len(line)} cells; the header has {len(header)}")
    return [dict(zip(header, map(str.strip, line), strict=True)) for line in lines[1:]]
