"""Files of points in mm: CSV and TSV, and 3D Slicer's .fcsv and .mrk.json.

Points in memory are in RAS+. A CSV has the columns x, y, z in RAS+. 3D Slicer's files name their frame, RAS or LPS. All
other columns are kept as text. Letters: n points.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable, write_text
from f3r_jax.data.tables import read_rows

SUFFIXES = (".csv", ".tsv", ".fcsv", ".mrk.json")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LPS = np.array([-1.0, -1.0, 1.0])
FRAMES = {"RAS": 1.0, "0": 1.0, "LPS": LPS, "1": LPS}  # as in 3D Slicer's files: factors to RAS
FCSV = ("id", "x", "y", "z", "ow", "ox", "oy", "oz", "vis", "sel", "lock", "label", "desc", "associatedNodeID")
SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"


@dataclasses.dataclass(frozen=True)
class PointSet:
    """Points, and the row of each with all columns of its file as text."""

    points: Float64[np.ndarray, "n 3"]  # mm, RAS+
    rows: tuple[dict[str, str], ...]

    def labels(self) -> list[str]:
        """The name of each point: column `label` or `name`, or its number."""
        return [row.get("label") or row.get("name") or str(number) for number, row in enumerate(self.rows, start=1)]


def read_points(path: Path) -> PointSet:
    """Reads points of any of the formats.

    Raises:
      UserError: a file that is not readable, without a column x, y or z, or with coordinates that are not finite.
    """
    name = path.name.lower()
    read = _read_fcsv if name.endswith(".fcsv") else _read_json if name.endswith(".json") else _read_table
    rows, factors = read(path)
    try:
        points = np.array([[_number(row[axis]) for axis in "xyz"] for row in rows]) * factors
    except ValueError as error:
        raise UserError(f"{path}: {error}; expected a number in each of the columns x, y, z") from error
    if not np.isfinite(points).all():
        raise UserError(f"{path}: a coordinate is NaN or infinite; expected finite numbers in mm")
    return PointSet(points, tuple(rows))


def write_points(path: Path, points: Float64[np.ndarray, "n 3"], like: PointSet | None = None) -> None:
    """Writes points in the format of the file's name, with the other columns of the points `like` them."""
    check_name(path)
    rows = like.rows if like else tuple({} for _ in points)
    cells = [dict(zip("xyz", (f"{value:.4f}" for value in point), strict=True)) for point in points]
    rows = tuple({**row, **xyz} if "x" in row else {**xyz, **row} for row, xyz in zip(rows, cells, strict=True))
    made = PointSet(points, rows)
    if path.name.lower().endswith(".json"):
        text = _json_text(made)
    elif path.suffix.lower() == ".fcsv":
        text = _fcsv_text(made)
    else:
        text = _table_text(rows, DELIMITERS[path.suffix.lower()])
    write_text(path, text)


def check_name(path: Path) -> None:
    """Raises a UserError for a name of no format of points."""
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{path}: expected a name ending in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")


def _number(cell: str) -> float:
    return float(cell.replace(",", "."))  # a decimal comma, where the delimiter is another


def _read_table(path: Path) -> tuple[list[dict[str, str]], object]:
    rows = read_rows(path)
    if missing := [axis for axis in "xyz" if axis not in rows[0]]:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected x, y, z in mm")
    return rows, 1.0


def _read_fcsv(path: Path) -> tuple[list[dict[str, str]], object]:
    check_readable(path, "a list of fiducials of 3D Slicer")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        cells = list(csv.reader(line for line in lines if line.strip() and not line.startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable ({error}); expected 3D Slicer's .fcsv") from error
    stated = dict(line[1:].split("=", 1) for line in lines if line.startswith("#") and "=" in line)
    settings = {key.strip(): value.strip() for key, value in stated.items()}
    columns = [name.strip() for name in settings.get("columns", ",".join(FCSV)).split(",")]
    if not cells or not {"x", "y", "z"} <= set(columns) or any(len(row) < len(columns[:4]) for row in cells):
        raise UserError(f"{path}: no points in columns x, y, z; expected 3D Slicer's .fcsv")
    return [dict(zip(columns, row, strict=False)) for row in cells], _factors(path, settings.get("CoordinateSystem"))


def _read_json(path: Path) -> tuple[list[dict[str, str]], object]:
    check_readable(path, "a markups file of 3D Slicer")
    try:
        (markup,) = json.loads(path.read_text(encoding="utf-8-sig"))["markups"]
        points = markup["controlPoints"]
        rows = []
        for number, point in enumerate(points, start=1):
            if point.get("positionStatus", "defined") != "defined":
                raise UserError(f"{path}: point {number} is not placed; expected a position for every point")
            x, y, z = (str(float(value)) for value in point["position"])
            rows.append({"x": x, "y": y, "z": z, "label": str(point.get("label", ""))})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not one list of points ({' '.join(str(error).split())[:80]}); expected 3D Slicer's .mrk.json"
        ) from error
    if not rows:
        raise UserError(f"{path}: holds no points; expected 3D Slicer's .mrk.json")
    return rows, _factors(path, markup.get("coordinateSystem", "LPS"))


def _factors(path: Path, frame: str | None) -> object:
    """The factors to RAS of a frame; files of old versions of 3D Slicer without one are in RAS."""
    if (frame or "RAS") not in FRAMES:
        raise UserError(f"{path}: coordinate system {frame}; expected RAS or LPS")
    return FRAMES[frame or "RAS"]


def _table_text(rows: Sequence[dict[str, str]], delimiter: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _fcsv_text(made: PointSet) -> str:
    lines = [
        "# Markups fiducial file version = 4.11",
        "# CoordinateSystem = LPS",
        f"# columns = {','.join(FCSV)}",
    ]
    for number, (point, row, label) in enumerate(zip(made.points * LPS, made.rows, made.labels(), strict=True), 1):
        default = {"id": str(number), "ow": "1", "vis": "1", "sel": "1", "lock": "0", "label": label}
        xyz = dict(zip("xyz", (f"{value:.4f}" for value in point), strict=True))
        values = {"ox": "0", "oy": "0", "oz": "0"} | default | {key: row[key] for key in FCSV if row.get(key)} | xyz
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow([values.get(key, "") for key in FCSV])
        lines.append(text.getvalue())
    return "\n".join(lines) + "\n"


def _json_text(made: PointSet) -> str:
    points = [
        {"id": str(number), "label": label, "position": [round(float(value), 4) for value in point]}
        | {"positionStatus": "defined"}
        for number, (point, label) in enumerate(zip(made.points * LPS, made.labels(), strict=True), start=1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    return json.dumps({"@schema": SCHEMA, "markups": [markup]}, indent=2) + "\n"
