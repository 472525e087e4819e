"""Summary of many registrations: one row per pair, as CSV, JSON and text."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from f3r_jax.common import files

TABLE, SUMMARY = "summary.csv", "summary.json"
NUMBERS = (
    "seconds",
    "similarity_before",
    "similarity",
    "folding_percent",
    "mean_dice_before",
    "mean_dice",
    "tre_mm_before",
    "tre_mm",
)
SHOWN = (  # words, number, digits, unit
    ("Dice", "mean_dice", 1, " %"),
    ("landmarks", "tre_mm", 2, " mm"),
    ("MIND difference", "similarity", 4, ""),
)
COLUMNS = ("name", "status", *NUMBERS, "reason")

Row = dict[str, object]


def waiting(name: str) -> Row:
    """The row of a pair that is not registered yet."""
    return {"name": name, "status": "waiting"}


def row_of(name: str, summary: Mapping) -> Row:
    """The row of a result; None for scores that it does not have."""
    before, similarities = summary["before"], list(summary["similarity"].values())
    values = {
        "seconds": summary["seconds"]["total"],
        "similarity_before": similarities[0],
        "similarity": similarities[-1],
        "folding_percent": summary["folding_percent"],
    }
    for key in ("mean_dice", "tre_mm"):
        values |= {f"{key}_before": before.get(key), key: summary.get(key)}
    return {"name": name, "status": "done"} | values


def format_row(row: Row) -> str:
    """Formats the main scores of a pair as one line."""
    if row["status"] == "failed":
        return f"{row['name']}: failed: {row['reason']}"
    parts = [
        f"{words} {row[f'{key}_before']:.{digits}f} -> {row[key]:.{digits}f}{unit}"
        for words, key, digits, unit in SHOWN
        if None not in (row[f"{key}_before"], row[key])
    ]
    parts += [f"folding {row['folding_percent']:.3f} %", f"{row['seconds']:.1f} s"]
    return f"{row['name']}: {', '.join(parts)}"


def write(output: Path, rows: Iterable[Row], facts: Mapping[str, object]) -> None:
    """Writes both summaries; the JSON also contains `facts`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files.write_text(output / TABLE, text.getvalue())
    summary = {"mean": _means(rows), "pairs": list(rows)} | dict(facts)
    files.write_text(output / SUMMARY, json.dumps(files.json_safe(summary), indent=2) + "\n")


def format_totals(rows: Sequence[Row]) -> str:
    """Formats the number of registered pairs and their mean scores for the terminal."""
    failed, done = (sum(row["status"] == status for row in rows) for status in ("failed", "done"))
    lines = [f"{len(rows)} pair{'s' if len(rows) > 1 else ''}: {done} registered, {failed} failed"]
    return "\n".join([*lines, format_row({"name": "mean", "status": "done"} | _means(rows))] if done else lines)


def _means(rows: Iterable[Row]) -> dict[str, float | None]:
    """The mean of each score over the pairs that have it."""
    known = {key: [row[key] for row in rows if row.get(key) is not None] for key in NUMBERS}
    return {key: sum(values) / len(values) if values else None for key, values in known.items()}
