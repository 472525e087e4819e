"""What a benchmark measured, told in Markdown that reads on a terminal too."""

import statistics
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from f3r_jax.common.files import write_text
from f3r_jax.models import LABELS as NETWORKS
from f3r_jax.models.f3rnet import VARIANTS

LABELS = {"jax": "ours", "xla": "XLA", "torch": "PyTorch", "voxelmorph": "VoxelMorph 0.3.4"}
SWEEP_LABELS = {"jax": "as one program", "alone": "one after another"}
HOW = (
    "Medians of {repeats} runs in seconds (minimum to maximum), batch 1. A ratio is our time over the other's, the "
    "median over runs made in turn, in wall-clock and in CPU time; under 1 we are faster."
)


def as_markdown(report: dict, *, what: list[str]) -> str:
    """The whole report as Markdown that is readable on a terminal too."""
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
    """The rows of these passes, or all, with figures."""
    return [row for row in report["measurements"] if "results" in row and (not what or row["what"] in what)]


def heading(report: dict, *, device: str) -> str:
    """Where and how something was measured, of what `environment.environment` tells."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['date']}, commit {report['commit']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, device {device}. {versions}.\n\n`{report['command']}`"
    )


def remarks(report: dict) -> list[str]:
    """Lines on what failed, what doesn't fit into memory, and what ran otherwise than meant."""
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
    """A row of the table of networks; with the device's peaks by type, how near to them ours comes."""
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
    """What ours needs at least, as percent of what the device could do in the time that ours takes."""
    cells = dict.fromkeys(("ours, % of peak FLOP/s", "ours, % of peak bandwidth"), "")
    if "results" not in row:
        return cells
    seconds = statistics.median(row["results"]["jax"]["wall"])
    reached = peaks[row.get("dtype", "float32")]
    shares = (row["cost"][need] / seconds / reached[f"{need}_per_second"] for need in ("flops", "bytes"))
    return {name: f"{100 * share:.0f}" for name, share in zip(cells, shares, strict=True)}


def peak(result: dict) -> float:
    """Peak memory in MiB: the accelerator's own where one was used."""
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
    """Seconds of each subject, and the ratios."""
    results = row["results"].items()
    cells = {f"{label(who, row)}, s": format_range(summary(result["wall"]), 3) for who, result in results}
    for other, ratios in row["ratios"].items():
        cells[f"ratio to {label(other, row)}"] = format_range(ratios["wall"], 2)
        cells[f"CPU ratio to {label(other, row)}"] = format_range(ratios["cpu"], 2)
    return cells


def network(row: dict) -> str:
    """The name of our network, and how it differs from the default."""
    variant = row["variant"]
    name = VARIANTS[variant].label if variant in VARIANTS else NETWORKS[variant]
    return name + ", bf16" * (row.get("dtype") == "bfloat16") + ", remat" * row.get("remat", False)


def label(who: str, row: dict) -> str:
    """The name of a subject in a row of such a kind."""
    return (SWEEP_LABELS if row["what"] == "sweep" else LABELS)[who]


def format_range(values: dict[str, float], digits: int) -> str:
    """As in 1.25 (1.20-1.31)."""
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


def format_tables(rows: list[dict[str, str]]) -> list[str]:
    """A table for each run of rows with the same keys."""
    return [table(list(alike)) for _, alike in groupby(rows, key=tuple)]


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table with aligned columns, for rows of the same keys."""
    lines = [list(rows[0]), *[list(row.values()) for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def device(report: dict) -> str:
    """What the networks ran on."""
    return next((row["results"]["jax"]["device"] for row in done(report)), "cpu")


def section_name(report: dict) -> str:
    """The shape and the device."""
    return f"{' x '.join(map(str, report['shape']))} on {device(report)}"


def replace_section(path: Path, text: str, *, name: str) -> None:
    """Puts the text into the file in place of the section of that name, or at the end."""
    begin, end = f"<!-- benchmark {name}: generated -->", f"<!-- end of benchmark {name} -->"
    old = path.read_text() if path.exists() else "# Benchmarks\n"
    section = f"{begin}\n## {name}\n\n{text}{end}\n"
    before, found, after = old.partition(begin)
    rest = after.partition(f"{end}\n")[2] if found else ""
    write_text(path, (before if found else f"{before.rstrip()}\n\n") + section + rest)


def title(task: dict) -> str:
    """What a group of jobs measures, in words."""
    size = " x ".join(str(size) for size in task["shape"])
    if "variant" in task:
        return f"{network(task)}, {task['what']} at {size}"
    kernel = "x".join(str(size) for size in task["kernel"])
    gradient = ", gradient" * (task["what"] == "conv_gradient")
    return f"conv {kernel}, {task['channels']} channels{gradient} at {size}"


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
