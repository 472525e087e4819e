"""Formats benchmark results as aligned Markdown tables."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from f3r_jax.benchmark.environment import Environment
from f3r_jax.benchmark.job import Job
from f3r_jax.benchmark.measurement import Measurement, Measurements, Range
from f3r_jax.benchmark.roofline import Peaks
from f3r_jax.common.files import write_text
from f3r_jax.models import LABELS as NETWORKS
from f3r_jax.models.f3rnet import VARIANTS

LABELS = {"jax": "f3r_jax", "xla": "XLA", "torch": "PyTorch", "voxelmorph": "VoxelMorph 0.3.4"}
SWEEP_LABELS = {"jax": "together", "alone": "one after another"}
HOW = (
    "Medians of {repeats} runs in seconds (minimum to maximum), batch 1. A ratio is the first time of a row divided by "
    "the named one, the median over alternating runs, for wall-clock and for CPU time; below 1 the first is faster."
)


def as_markdown(found: Measurements, *, what: Sequence[str], parameters: Mapping[str, int]) -> str:
    """Everything that a command measured as Markdown."""
    lines = [heading(found.environment, device=found.device)]
    if parameters:
        lines.append(table([{"network": name, "parameters": f"{n:,}"} for name, n in parameters.items()]))
    if found.done():
        lines.append(HOW.format(repeats=found.repeats))
    rows = [pass_row(row, what=what) for row in found.done("forward", "train")]
    rows += [sweep_row(row) for row in found.done("sweep")]
    rows += [conv_row(row) for row in found.done("conv", "conv_gradient")]
    return "\n\n".join([*lines, *format_tables(rows), *remarks(found.rows)]) + "\n"


def heading(environment: Environment, *, device: str) -> str:
    """Text on date, machine, versions and command."""
    machine = environment.machine
    memory = "unknown memory" if machine.memory_gib is None else f"{machine.memory_gib} GiB"
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    return (
        f"{environment.date}, commit {environment.commit}, {machine.cpu}, {machine.cores} cores, "
        f"{memory}, device {device}. {versions}.\n\n`{environment.command}`"
    )


def remarks(rows: Iterable[Measurement]) -> list[str]:
    """Lines on failures, on lack of memory, and on runs with other settings than planned."""
    lines = []
    for row in rows:
        name = title(row.job)
        if row.error is not None:
            lines.append(f"Failed: {name}: {row.error}.")
        if row.no_memory is not None:
            who, why = row.no_memory
            lines.append(f"Does not fit into memory: {name}, {label(who, row)}: {why}.")
        notes = {who: result.set_up.note for who, result in row.results.items() if result.set_up.note is not None}
        lines += [f"{name}, {label(who, row)}: {note}." for who, note in notes.items()]
    return lines


def pass_row(row: Measurement, *, what: Iterable[str], peaks: Mapping[str, Peaks] | None = None) -> dict[str, str]:
    """A row of the table of networks; `peaks`, by dtype, adds the share of the device's peak performance."""
    cells = {"network": network(row.job), "pass": row.job.what}
    if "voxelmorph" in row.results:
        cells |= {f"{LABELS[who]}, parameters": f"{result.set_up.parameters:,}" for who, result in row.results.items()}
    if "compile" in what and (compiled := row.results["jax"].set_up.compile):
        cells["compile, s"] = f"{compiled.wall:.1f}"
    cells |= time_cells(row)
    if peaks:
        cells |= bound_cells(row, peaks)
    if "memory" in what:
        for who, result in row.results.items():
            cells[f"{LABELS[who]}, peak MiB (imports)"] = f"{result.peak:.0f} ({result.set_up.imported_mib:.0f})"
    return cells


def bound_cells(row: Measurement | None, peaks: Mapping[str, Peaks]) -> dict[str, str]:
    """Minimum work of the f3r_jax network, in percent of what the device can do in the measured time."""
    flops = moved = ""
    if row is not None and row.results and row.cost is not None:
        seconds, peak = statistics.median(row.results["jax"].wall), peaks[row.job.dtype]
        flops = f"{100 * row.cost.flops / seconds / peak.flops_per_second:.0f}"
        moved = f"{100 * row.cost.bytes / seconds / peak.bytes_per_second:.0f}"
    return {"f3r_jax, % of peak FLOP/s": flops, "f3r_jax, % of peak bandwidth": moved}


def sweep_row(row: Measurement) -> dict[str, str]:
    """A row of the table of sweeps over lambda."""
    return {"network": network(row.job), "pass": "train, three lambdas"} | time_cells(row)


def conv_row(row: Measurement) -> dict[str, str]:
    """A row of the table of convolutions."""
    kernel, size = ("x".join(map(str, sizes)) for sizes in (row.job.kernel, row.job.shape))
    direction = {"conv": "forward", "conv_gradient": "gradient"}[row.job.what]
    return {"kernel": kernel, "channels": str(row.job.channels), "size": size, "pass": direction} | time_cells(row)


def time_cells(row: Measurement) -> dict[str, str]:
    """Cells with the seconds of each subject and the ratios."""
    cells = {f"{label(who, row)}, s": format_range(Range.of(result.wall), 3) for who, result in row.results.items()}
    for other, ratio in row.ratios.items():
        cells[f"ratio to {label(other, row)}"] = format_range(ratio.wall, 2)
        cells[f"CPU ratio to {label(other, row)}"] = format_range(ratio.cpu, 2)
    return cells


def variant_label(variant: str) -> str:
    """Name of an f3r_jax network."""
    return VARIANTS[variant].label if variant in VARIANTS else NETWORKS[variant]


def network(job: Job) -> str:
    """Name of the f3r_jax network, with the options that differ from the defaults."""
    options = [("bf16", job.dtype == "bfloat16"), ("remat", job.remat)]
    return ", ".join([variant_label(job.variant), *(option for option, on in options if on)])


def label(who: str, row: Measurement) -> str:
    """Name of a subject in this kind of row."""
    return (SWEEP_LABELS if row.job.what == "sweep" else LABELS)[who]


def format_range(values: Range, digits: int) -> str:
    """Median, minimum and maximum as in 1.25 (1.20-1.31)."""
    return f"{values.median:.{digits}f} ({values.min:.{digits}f}-{values.max:.{digits}f})"


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


def section_name(shape: Sequence[int], device: str) -> str:
    """Name of a section: shape and device."""
    return f"{' x '.join(map(str, shape))} on {device}"


def replace_section(path: Path, text: str, *, name: str) -> None:
    """Replaces the section of that name in the file, or appends it."""
    begin, end = f"<!-- benchmark {name}: generated -->", f"<!-- end of benchmark {name} -->"
    old = path.read_text() if path.exists() else "# Benchmarks\n"
    section = f"{begin}\n## {name}\n\n{text}{end}\n"
    before, found, after = old.partition(begin)
    rest = after.partition(f"{end}\n")[2] if found else ""
    write_text(path, (before if found else f"{before.rstrip()}\n\n") + section + rest)


def title(job: Job) -> str:
    """Display name of the workload of a job."""
    size = " x ".join(map(str, job.shape))
    if job.variant:
        return f"{network(job)}, {job.what} at {size}"
    gradient = ", gradient" if job.what == "conv_gradient" else ""
    return f"conv {'x'.join(map(str, job.kernel))}, {job.channels} channels{gradient} at {size}"
