"""Tables of `launch/placements.py`: its columns, and the share of cases that end near the ground truth."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from f3r_jax.register import verdict

RIGHT = 10.0  # mm
CONTROLS, STAGES = ("headers", "centres", "bodies", "placement"), ("affine", "end", "best")
POINTS = ("body", "organs")
ERRORS = tuple(f"{stage}_{points}" for stage in (*CONTROLS, *STAGES) for points in POINTS)
DRAWN = ("cut", "shift_mm", "scale", "rotation", "axis")  # of the placement
REQUIRED = ("seed", "case", "method", *DRAWN, *ERRORS, "level", "seconds", "reasons")
KIDNEYS = ("kidneys_mm", "kidneys_dice")  # columns that earlier tables lack
COLUMNS = (*REQUIRED, *KIDNEYS)
Row = dict[str, str]
Kind = Callable[[Row], bool]


def kinds() -> dict[str, Kind]:
    """The groups of cases of a table."""

    def rotation(low: int) -> Kind:
        return lambda row: low <= float(row["rotation"]) < low + 5 or float(row["rotation"]) == low + 5 == 20

    return {
        "all": lambda row: True,
        "both fields of view whole": lambda row: row["cut"] == "neither",
        "fixed one cut": lambda row: row["cut"].startswith("fixed"),
        "moving one cut": lambda row: row["cut"].startswith("moving"),
        **{f"turned by {low} to {low + 5} degrees": rotation(low) for low in (0, 5, 10, 15)},
    }


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """One Markdown table for each method and kind of points."""
    for method in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == method]
        for points in POINTS:
            lines = [
                f"{method}, error over the {points}",
                "",
                f"| cases | number | within {RIGHT:g} mm: headers, centres, bodies, true placement | affine step | end "
                "| end, mm: median | 95th percentile | flagged of the others | flagged of those within | s per case |",
                "|---|---|---|---|---|---|---|---|---|---|",
            ]
            groups = ((words, [row for row in here if kind(row)]) for words, kind in kinds().items())
            yield "\n".join(lines + [table_row(words, group, points) for words, group in groups if group])


def table_row(words: str, rows: Sequence[Row], points: str) -> str:
    """One line of a table."""

    rows = [row for row in rows if np.isfinite(float(row[f"headers_{points}"]))]  # there may be no organ in both views

    def values(stage: str) -> np.ndarray:
        return np.nan_to_num([float(row[f"{stage}_{points}"]) for row in rows], nan=np.inf)  # greedy can diverge

    def share(stage: str) -> str:
        found = values(stage)
        return f"{100 * np.mean(found <= RIGHT):.1f}" if len(found) else "-"

    def flagged(*, right: bool) -> str:
        of = [row for row in rows if (float(row[f"end_{points}"]) <= RIGHT) == right and row["level"]]
        return f"{sum(row['level'] != verdict.OK for row in of)} of {len(of)}"

    end, seconds = values("end"), np.median([float(row["seconds"]) for row in rows]) if rows else np.nan
    middle, most = np.percentile(end, [50, 95], method="nearest") if len(end) else (np.nan, np.nan)
    cells = [words, str(len(rows)), ", ".join(map(share, CONTROLS)), share("affine"), share("end")]
    cells += [f"{middle:.1f}", f"{most:.1f}", flagged(right=False), flagged(right=True), f"{seconds:.0f}"]
    return f"| {' | '.join(cells)} |"
