"""Formats the sections of the suite as tables."""

import math
import statistics
from collections.abc import Callable, Mapping

from f3r_jax.benchmark.measurement import Measurement, Measurements, Range
from f3r_jax.benchmark.roofline import Peaks
from f3r_jax.benchmark.tables import (
    HOW,
    LABELS,
    bound_cells,
    conv_row,
    format_range,
    format_tables,
    network,
    pass_row,
    sweep_row,
    table,
    variant_label,
)
from f3r_jax.benchmark.workloads import MODES, PASSES

STEPS = (1_000, 40_000)
TRAINING = (
    "Training time of f3r_jax at this size, without loading of data. The paper gives no number of steps; 40,000 steps "
    "are 1,000 epochs of 40 cases."
)
SETTINGS = {  # by whether the device is a GPU
    False: "PyTorch runs in float32 without torch.compile. The same network uses channels last; VoxelMorph uses the "
    "memory format of its package.",
    True: "PyTorch uses channels last, torch.compile, cuDNN's search for the fastest algorithms and, for rows in bf16, "
    "autocast. Both compute float32 products and convolutions in TF32, JAX's default on a GPU.",
}
NO_MEMORY = "does not fit"


def networks(found: Measurements) -> list[str]:
    """Tables of time, ratios, share of the peak performance and memory of each network; then of training times."""
    rows = found.done(*PASSES)
    if not rows:
        return []
    what = ("compile", "memory")
    trained = [row for row in rows if row.job.what == "train" and "voxelmorph" not in row.results]
    return [
        f"{HOW.format(repeats=found.repeats)} {SETTINGS[found.device != 'cpu']}",
        bounds(found.peaks),
        *format_tables([pass_row(row, what=what, peaks=found.peaks) for row in rows]),
        *([TRAINING, table([training(row) for row in trained])] if trained else []),
    ]


def bounds(peaks: Mapping[str, Peaks]) -> str:
    """Text that explains the percentages."""
    reached = " and ".join(f"{each.flops_per_second / 1e9:,.0f} GFLOP/s in {name}" for name, each in peaks.items())
    moved = peaks["float32"].bytes_per_second / 1e9
    return (
        f"Peak performance measured on this device: {reached} (product of large matrices), {moved:,.0f} GB/s "
        "(a = a / 2 + b). Percentages are the minimum work of the network (`f3r_jax/benchmark/roofline.py`) divided by "
        "what the device can do at its peak in the measured time."
    )


def training(row: Measurement) -> dict[str, str]:
    """A row of the table of training times."""
    seconds = statistics.median(row.results["jax"].wall)
    cells = {"network": network(row.job), "steps per second": f"{1 / seconds:.3g}"}
    return cells | {f"hours for {steps:,} steps": f"{steps * seconds / 3600:.1f}" for steps in STEPS}


def scaling(found: Measurements) -> list[str]:
    """A table for each pass, with one row per size: seconds, seconds per million voxels and peak memory."""
    if not found.rows:
        return []
    by_job = {(row.job.what, row.job.shape, row.job.who): row for row in found.rows}
    subjects = dict.fromkeys(who for *_, who in by_job)
    lines = [
        f"{network(found.rows[0].job)}. Medians of {found.repeats} runs (minimum to maximum), batch 1, "
        f"each subject alone in memory, so there are no ratios. {SETTINGS[found.device != 'cpu']}",
        bounds(found.peaks),
    ]
    for what in PASSES:
        rows = []
        for shape in dict.fromkeys(shape for passed, shape, _ in by_job if passed == what):
            cells = {"pass": what, "size": " x ".join(map(str, shape))}
            for who in subjects:
                row = by_job.get((what, shape, who))
                cells |= size_cells(LABELS[who], row, math.prod(shape) / 1e6)
                if who == "jax":
                    cells |= bound_cells(row, found.peaks)
            rows.append(cells)
        lines += format_tables(rows)
    return lines


def size_cells(name: str, row: Measurement | None, million_voxels: float) -> dict[str, str]:
    """Cells of one subject at one size."""
    cells = dict.fromkeys((f"{name}, s", f"{name}, s per million voxels", f"{name}, peak MiB"), "")
    if row is None:
        return cells
    if not row.results:
        return cells | {f"{name}, s": without_results(row)}
    (result,) = row.results.values()
    seconds = Range.of(result.wall)
    times = (format_range(seconds, 3), f"{seconds.median / million_voxels:.3f}", f"{result.peak:.0f}")
    return dict(zip(cells, times, strict=True))


def memory(found: Measurements) -> list[str]:
    """A table with one row per network, size and pass, and one column per mode."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in found.rows:
        job = row.job
        size, direction = " x ".join(map(str, job.shape)), {"forward": "inference", "train": "training"}[job.what]
        mode = next(name for name, mode in MODES.items() if mode == (job.remat, job.dtype))
        cell = f"{row.results['jax'].peak:.0f}" if row.results else without_results(row)
        rows.setdefault((variant_label(job.variant), size, direction), {})[mode] = cell
    if not rows:
        return []
    modes = dict.fromkeys(mode for cells in rows.values() for mode in cells)
    gpu = found.device != "cpu"
    of = "memory of the device" if gpu else "with imports and compilation"
    return [
        f"Peak memory in MiB of one run at batch 1, in its own process, {of}.",
        table([
            dict(zip(("network", "size", "pass"), key, strict=True)) | {mode: cells.get(mode, "") for mode in modes}
            for key, cells in rows.items()
        ]),
        *([] if gpu else ["A CPU has no bf16 in hardware, so bf16 was not measured."]),
    ]  # fmt: skip


def without_results(row: Measurement) -> str:
    """The cell of a measurement without results."""
    return "failed" if row.no_memory is None else NO_MEMORY


def rows_of(make: Callable[[Measurement], dict[str, str]]) -> Callable[[Measurements], list[str]]:
    """A function that formats a section whose rows are all made by `make`."""

    def tables(found: Measurements) -> list[str]:
        return [HOW.format(repeats=found.repeats), *format_tables([make(row) for row in found.done()])]

    return tables


convolutions, sweeps = rows_of(conv_row), rows_of(sweep_row)
