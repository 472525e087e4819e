"""Formats benchmark results as aligned Markdown tables."""

import statistics
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from f3r_jax.common.files import write_text
from f3r_jax.models import LABELS as NETWORKS
from f3r_jax.models.f3rnet import VARIANTS

LABELS = {"jax": "f3r_jax", "xla": "XLA", "torch": "PyTorch", "voxelmorph": "VoxelMorph 0.3.4"}
SWEEP_LABELS = {"jax": "together", "alone": "one after another"}
HOW = (
    "Medians of {repeats} runs in seconds (minimum to maximum), batch 1. A ratio is the first time of a row divided by "
    "the named one, the median over alternating runs, for wall-clock and for CPU time; below 1 the first is faster."
)


def as_markdown(report: dict, *, what: list[str]) -> str:
    """The whole report as Markdown."""
    lines = [heading(report, device=device(report))]
    if report["parameters"]:
        lines.append(table([{"network": name, "parameters": f"{n:,}"} for name, n in report["parameters"].items()]))
    if done(report):
        lines.append(HOW.format(**report))
    rows = [pass_row(row, what=what) for row in done(report, "forward", "train")]
    rows += [sweep_row(row) for row in done(report, "sweep")]
    rows += [conv_row(row) for row in done(report, "conv", "conv_gradient")]
    return "\n\n".join([*lines, *format_tables(rows), *remarks(report)]) + "\n"


def done(report: dict, *what: str) -> list[dict]:
    """The rows with results, of the given passes or of all."""
    return [row for row in report["measurements"] if "results" in row and (not what or row["what"] in what)]


def heading(report: dict, *, device: str) -> str:
    """Text on date, machine, versions and command, from `environment.environment`."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['date']}, commit {report['commit']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, device {device}. {versions}.\n\n`{report['command']}`"
    )


def remarks(report: dict) -> list[str]:
    """Lines on failures, on lack of memory, and on runs with other settings than planned."""
    lines = []
    for row in report["measurements"]:
        if "error" in row:
            lines.append(f"Failed: {title(row)}: {row['error']}.")
        if "no_memory" in row:
            who, why = row["no_memory"]
            lines.append(f"Does not fit into memory: {title(row)}, {label(who, row)}: {why}.")
        notes = {who: result["note"] for who, result in row.get("results", {}).items() if "note" in result}
        lines += [f"{title(row)}, {label(who, row)}: {note}." for who, note in notes.items()]
    return lines


def pass_row(row: dict, *, what: Iterable[str], peaks: dict[str, dict] | None = None) -> dict[str, str]:
    """A row of the table of networks; `peaks`, by dtype, adds the share of the device's peak performance."""
    results = row["results"]
    cells = {"network": network(row), "pass": row["what"]}
    if "voxelmorph" in results:
        cells |= {f"{LABELS[who]}, parameters": f"{result['parameters']:,}" for who, result in results.items()}
    if "compile" in what:
        cells["compile, s"] = f"{results['jax']['compile']['wall']:.1f}"
    cells |= time_cells(row)
    if peaks:
        cells |= bound_cells(row, peaks)
    if "memory" in what:
        for who, result in results.items():
            cells[f"{LABELS[who]}, peak MiB (imports)"] = f"{peak(result):.0f} ({result['imported_mib']:.0f})"
    return cells


def bound_cells(row: dict, peaks: dict[str, dict]) -> dict[str, str]:
    """Minimum work of the f3r_jax network, in percent of what the device can do in the measured time."""
    cells = dict.fromkeys(("f3r_jax, % of peak FLOP/s", "f3r_jax, % of peak bandwidth"), "")
    if "results" not in row:
        return cells
    seconds = statistics.median(row["results"]["jax"]["wall"])
    reached = peaks[row.get("dtype", "float32")]
    shares = (row["cost"][need] / seconds / reached[f"{need}_per_second"] for need in ("flops", "bytes"))
    return {name: f"{100 * share:.0f}" for name, share in zip(cells, shares, strict=True)}


def peak(result: dict) -> float:
    """Peak memory in MiB; with an accelerator, that of its own memory."""
    return result["device_peak_mib"] or result["peak_mib"]


def sweep_row(row: dict) -> dict[str, str]:
    """A row of the table of sweeps over lambda."""
    return {"network": network(row), "pass": "train, three lambdas"} | time_cells(row)


def conv_row(row: dict) -> dict[str, str]:
    """A row of the table of convolutions."""
    kernel, size = ("x".join(map(str, row[key])) for key in ("kernel", "shape"))
    direction = {"conv": "forward", "conv_gradient": "gradient"}[row["what"]]
    return {"kernel": kernel, "channels": str(row["channels"]), "size": size, "pass": direction} | time_cells(row)


def time_cells(row: dict) -> dict[str, str]:
    """Cells with the seconds of each subject and the ratios."""
    results = row["results"].items()
    cells = {f"{label(who, row)}, s": format_range(summary(result["wall"]), 3) for who, result in results}
    for other, ratios in row["ratios"].items():
        cells[f"ratio to {label(other, row)}"] = format_range(ratios["wall"], 2)
        cells[f"CPU ratio to {label(other, row)}"] = format_range(ratios["cpu"], 2)
    return cells


def network(row: dict) -> str:
    """Name of the f3r_jax network, with the options that differ from the defaults."""
    variant = row["variant"]
    name = VARIANTS[variant].label if variant in VARIANTS else NETWORKS[variant]
    options = [("bf16", row.get("dtype") == "bfloat16"), ("remat", row.get("remat", False))]
    return ", ".join([name, *(option for option, on in options if on)])


def label(who: str, row: dict) -> str:
    """Name of a subject in this kind of row."""
    return (SWEEP_LABELS if row["what"] == "sweep" else LABELS)[who]


def format_range(values: dict[str, float], digits: int) -> str:
    """Median, minimum and maximum as in 1.25 (1.20-1.31)."""
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def format_tables(rows: list[dict[str, str]]) -> list[str]:
    """One table for each sequence of rows with the same keys."""
    return [table(list(alike)) for _, alike in groupby(rows, key=tuple)]


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table with aligned columns; all rows have the same keys."""
    lines = [list(rows[0]), *[list(row.values()) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def device(report: dict) -> str:
    """Name of the device that the networks ran on."""
    return next((row["results"]["jax"]["device"] for row in done(report)), "cpu")


def section_name(report: dict) -> str:
    """Name of a section: shape and device."""
    return f"{' x '.join(map(str, report['shape']))} on {device(report)}"


def replace_section(path: Path, text: str, *, name: str) -> None:
    """Replaces the section of that name in the file, or appends it."""
    begin, end = f"<!-- benchmark {name}: generated -->", f"<!-- end of benchmark {name} -->"
    old = path.read_text() if path.exists() else "# Benchmarks\n"
    section = f"{begin}\n## {name}\n\n{text}{end}\n"
    before, found, after = old.partition(begin)
    rest = after.partition(f"{end}\n")[2] if found else ""
    write_text(path, (before if found else f"{before.rstrip()}\n\n") + section + rest)


def title(task: dict) -> str:
    """Display name of a group of jobs."""
    size = " x ".join(str(size) for size in task["shape"])
    if "variant" in task:
        return f"{network(task)}, {task['what']} at {size}"
    kernel = "x".join(str(size) for size in task["kernel"])
    gradient = ", gradient" if task["what"] == "conv_gradient" else ""
    return f"conv {kernel}, {task['channels']} channels{gradient} at {size}"


def summary(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
