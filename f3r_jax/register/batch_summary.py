"""Summary of many registrations: one row per pair, as CSV, JSON and text."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from f3r_jax.common import events, files
from f3r_jax.register import verdict

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
COLUMNS = ("name", "status", "verdict", *NUMBERS, "reason")


@dataclass(frozen=True)
class Row:
    """What is known of a pair."""

    name: str
    status: str  # "waiting" | "done" | "failed"
    numbers: Mapping[str, float | None] = field(default_factory=dict)  # the `NUMBERS`; None where there is none
    verdict: str | None = None  # a level of `verdict.LEVELS`; None for pairs that are not done
    reason: str | None = None  # why it failed, or the reasons of the verdict
    traceback: str | None = None  # of an error that is not a user's mistake

    def to_json(self) -> dict[str, Any]:
        """The fields as a dict, without those that are None; the numbers are next to the others."""
        texts = {"verdict": self.verdict, "reason": self.reason, "traceback": self.traceback}
        known = {key: text for key, text in texts.items() if text is not None}
        return {"name": self.name, "status": self.status, **self.numbers, **known}


def waiting(name: str) -> Row:
    """The row of a pair that is not registered yet."""
    return Row(name, "waiting")


def row_of(name: str, summary: Mapping[str, Any]) -> Row:
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
    found = summary.get("verdict") or {"level": None, "reasons": []}  # earlier versions made none
    return Row(name, "done", values, found["level"], "; ".join(found["reasons"]) or None)


def format_row(row: Row) -> str:
    """Formats the main scores of a pair as one line."""
    if row.status == "failed":
        return f"{row.name}: failed: {row.reason}"
    parts = [
        f"{words} {row.numbers[f'{key}_before']:.{digits}f} -> {row.numbers[key]:.{digits}f}{unit}"
        for words, key, digits, unit in SHOWN
        if None not in (row.numbers[f"{key}_before"], row.numbers[key])
    ]
    parts += [f"folding {row.numbers['folding_percent']:.3f} %", f"{row.numbers['seconds']:.1f} s"]
    if row.verdict is not None:
        parts += [verdict.line({"level": row.verdict, "reasons": [row.reason] if row.reason else []})]
    return f"{row.name}: {', '.join(parts)}"


def write(output: Path, rows: Iterable[Row], facts: Mapping[str, Any]) -> None:
    """Writes both summaries; the JSON also contains `facts`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row.to_json() for row in rows)
    files.write_text(output / TABLE, text.getvalue())
    summary = {"mean": _means(rows), "pairs": [row.to_json() for row in rows], **facts}
    files.write_text(output / SUMMARY, json.dumps(files.json_safe(summary), indent=2) + "\n")


def format_totals(rows: Sequence[Row]) -> str:
    """Formats the number of registered pairs and their mean scores for the terminal."""
    failed, done = (sum(row.status == status for row in rows) for status in ("failed", "done"))
    lines = [f"{len(rows)} pair{'s' if len(rows) > 1 else ''}: {done} registered, {failed} failed"]
    counts = {level: sum(row.verdict == level for row in rows) for level in verdict.LEVELS}
    if any(counts.values()):
        lines += ["verdicts: " + ", ".join(f"{count} {level}" for level, count in counts.items())]
    return "\n".join([*lines, format_row(Row("mean", "done", _means(rows)))] if done else lines)


def report(row: Row, folder: Path, text: str | None, emit: Callable[..., None]) -> None:
    """Reports the result of a pair with `emit(event, text, **facts)`, and its verdict.

    In JSON `summary` is the file with everything that is known of a result, and None for a pair that failed.
    """
    summary = folder / SUMMARY if row.status == "done" else None
    facts = row.to_json() | {"of": "pair", "folder": folder, "summary": summary}
    emit(events.RESULT, text, **facts)
    if row.verdict is not None and events.as_json():
        emit(events.VERDICT, None, name=row.name, level=row.verdict, reason=row.reason)


def report_earlier(rows: Iterable[Row], output: Path) -> None:
    """Reports the results of an earlier run in JSON; in text there is nothing to read."""
    for row in rows:
        if row.status == "done" and events.as_json():
            report(row, output / row.name, None, events.emit)


def report_totals(rows: Sequence[Row], output: Path, *, table: bool) -> None:
    """Reports the result of all pairs, and the failed ones as errors; `table` is whether the summaries were written."""
    failed = [row for row in rows if row.status == "failed"]
    place = f"{output}, table: {output / TABLE}" if table else str(output)
    events.emit(
        events.RESULT,
        f"{format_totals(rows)}\nresult: {place}",
        of="pairs",
        folder=output,
        table=output / TABLE if table else None,
        pairs=len(rows),
        done=sum(row.status == "done" for row in rows),
        failed=len(failed),
        verdicts={level: sum(row.verdict == level for row in rows) for level in verdict.LEVELS},
        mean=_means(rows),
    )
    for row in failed:
        events.error(f"{row.name}: {row.reason}", status=1, text=f"failed: {row.name}: {row.reason}", name=row.name)


def _means(rows: Iterable[Row]) -> dict[str, float | None]:
    """The mean of each score over the pairs that have it."""
    known = {key: [value for row in rows if (value := row.numbers.get(key)) is not None] for key in NUMBERS}
    return {key: sum(values) / len(values) if values else None for key, values in known.items()}
