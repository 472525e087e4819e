"""What a benchmark measured, told in Markdown that reads on a terminal too."""

import statistics
from pathlib import Path

from f3r_jax.models.f3rnet import VARIANTS
from f3r_jax.workdir import write_text

LABELS = {"jax": "ours", "xla": "XLA", "torch": "PyTorch"}
SWEEP_LABELS = {"jax": "as one program", "alone": "one after another"}


def as_markdown(report: dict, *, what: list[str]) -> str:
    """The whole report as Markdown that is readable on a terminal too."""
    done = [row for row in report["measurements"] if "error" not in row]
    lines = [heading(report, device=device(report))]
    if report["parameters"]:
        lines.append(table([{"network": name, "parameters": f"{n:,}"} for name, n in report["parameters"].items()]))
    if done:
        lines.append(
            f"Medians of {report['repeats']} runs in seconds (minimum to maximum), batch 1. A ratio is our time over "
            "the other's, the median over runs made in turn, in wall-clock and in CPU time; under 1 we are faster."
        )
    lines += [table(rows) for rows in (
        [pass_row(row, what=what) for row in done if row["what"] in ("forward", "train")],
        [sweep_row(row) for row in done if row["what"] == "sweep"],
        [conv_row(row) for row in done if "kernel" in row],
    ) if rows]  # fmt: skip
    lines += [f"Failed: {title(row)}: {row['error']}." for row in report["measurements"] if "error" in row]
    return "\n\n".join(lines) + "\n"


def heading(report: dict, *, device: str) -> str:
    """Where and how something was measured, of what `benchmark.environment` tells."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        f"{report['date']}, commit {report['commit']}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, device {device}. {versions}.\n\n`{report['command']}`"
    )


def pass_row(row: dict, *, what: list[str]) -> dict[str, str]:
    """A row of the table of networks."""
    results = row["results"]
    cells = {"network": VARIANTS[row["variant"]].label, "pass": row["what"]}
    if "compile" in what:
        cells["compile, s"] = f"{results['jax']['compile']['wall']:.1f}"
    cells |= time_cells(row)
    if "memory" in what:
        for who, result in results.items():
            peak = result["device_peak_mib"] or result["peak_mib"]
            cells[f"{LABELS[who]}, peak MiB (imports)"] = f"{peak:.0f} ({result['imported_mib']:.0f})"
    return cells


def sweep_row(row: dict) -> dict[str, str]:
    """A row of the table of sweeps over lambda."""
    return {"network": VARIANTS[row["variant"]].label, "pass": "train, three lambdas"} | time_cells(row, SWEEP_LABELS)


def conv_row(row: dict) -> dict[str, str]:
    """A row of the table of convolutions."""
    kernel, size = ("x".join(map(str, row[key])) for key in ("kernel", "shape"))
    direction = {"conv": "forward", "conv_gradient": "gradient"}[row["what"]]
    return {"kernel": kernel, "channels": str(row["channels"]), "size": size, "pass": direction} | time_cells(row)


def time_cells(row: dict, labels: dict[str, str] = LABELS) -> dict[str, str]:
    """Seconds of each subject, and the ratios."""
    cells = {f"{labels[who]}, s": spread(summary(result["wall"]), 3) for who, result in row["results"].items()}
    for other, ratios in row["ratios"].items():
        cells[f"ratio to {labels[other]}"] = spread(ratios["wall"], 2)
        cells[f"CPU ratio to {labels[other]}"] = spread(ratios["cpu"], 2)
    return cells


def spread(values: dict[str, float], digits: int) -> str:
    """As in 1.25 (1.20-1.31)."""
    median, low, high = (f"{values[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low}-{high})"


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
    done = [row["results"]["jax"]["device"] for row in report["measurements"] if "results" in row]
    return done[0] if done else "cpu"


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
        return f"{VARIANTS[task['variant']].label}, {task['what']} at {size}"
    kernel = "x".join(str(size) for size in task["kernel"])
    gradient = ", gradient" * (task["what"] == "conv_gradient")
    return f"conv {kernel}, {task['channels']} channels{gradient} at {size}"


def summary(values: list[float]) -> dict[str, float]:
    """Median and spread."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
