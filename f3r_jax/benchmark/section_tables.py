"""Formats the sections of the suite as tables. A report holds the measurements of one section."""

import math
import statistics
from collections.abc import Callable

from f3r_jax.benchmark.tables import (
    HOW,
    LABELS,
    bound_cells,
    conv_row,
    done,
    format_tables,
    network,
    pass_row,
    peak,
    sweep_row,
    table,
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


def networks(report: dict) -> list[str]:
    """Tables of time, ratios, share of the peak performance and memory of each network; then of training times."""
    rows = done(report, *PASSES)
    if not rows:
        return []
    what = ("compile", "memory")
    trained = [row for row in rows if row["what"] == "train" and "voxelmorph" not in row["results"]]
    return [
        f"{HOW.format(**report)} {SETTINGS[report['device'] != 'cpu']}",
        bounds(report["peaks"]),
        *format_tables([pass_row(row, what=what, peaks=report["peaks"]) for row in rows]),
        *([TRAINING, table([training(row) for row in trained])] if trained else []),
    ]


def bounds(peaks: dict[str, dict]) -> str:
    """Text that explains the percentages."""
    reached = " and ".join(f"{each['flops_per_second'] / 1e9:,.0f} GFLOP/s in {name}" for name, each in peaks.items())
    moved = peaks["float32"]["bytes_per_second"] / 1e9
    return (
        f"Peak performance measured on this device: {reached} (product of large matrices), {moved:,.0f} GB/s "
        "(a = a / 2 + b). Percentages are the minimum work of the network (`f3r_jax/benchmark/roofline.py`) divided by "
        "what the device can do at its peak in the measured time."
    )


def training(row: dict) -> dict[str, str]:
    """A row of the table of training times."""
    seconds = statistics.median(row["results"]["jax"]["wall"])
    cells = {"network": network(row), "steps per second": f"{1 / seconds:.3g}"}
    return cells | {f"hours for {steps:,} steps": f"{steps * seconds / 3600:.1f}" for steps in STEPS}


def scaling(report: dict) -> list[str]:
    """A table for each pass, with one row per size: seconds, seconds per million voxels and peak memory."""
    if not report["measurements"]:
        return []
    found = {(row["what"], tuple(row["shape"]), row["who"][0]): row for row in report["measurements"]}
    subjects = dict.fromkeys(who for *_, who in found)
    lines = [
        f"{network(report['measurements'][0])}. Medians of {report['repeats']} runs (minimum to maximum), batch 1, "
        f"each subject alone in memory, so there are no ratios. {SETTINGS[report['device'] != 'cpu']}",
        bounds(report["peaks"]),
    ]
    for what in PASSES:
        shapes = dict.fromkeys(shape for passed, shape, _ in found if passed == what)
        rows = []
        for shape in shapes:
            cells = {"pass": what, "size": " x ".join(map(str, shape))}
            for who in subjects:
                row = found.get((what, shape, who))
                cells |= size_cells(LABELS[who], row, math.prod(shape) / 1e6)
                if who == "jax":
                    cells |= bound_cells(row or {}, report["peaks"])
            rows.append(cells)
        lines += format_tables(rows)
    return lines


def size_cells(name: str, row: dict | None, million_voxels: float) -> dict[str, str]:
    """Cells of one subject at one size."""
    cells = dict.fromkeys((f"{name}, s", f"{name}, s per million voxels", f"{name}, peak MiB"), "")
    if row is None:
        return cells
    if "results" not in row:
        return cells | {f"{name}, s": NO_MEMORY if "no_memory" in row else "failed"}
    (result,) = row["results"].values()
    median, low, high = (f(result["wall"]) for f in (statistics.median, min, max))
    times = (f"{median:.3f} ({low:.3f}-{high:.3f})", f"{median / million_voxels:.3f}", f"{peak(result):.0f}")
    return dict(zip(cells, times, strict=True))


def memory(report: dict) -> list[str]:
    """A table with one row per network, size and pass, and one column per mode."""
    rows, modes = {}, {}
    for row in report["measurements"]:
        mode = next(name for name, options in MODES.items() if options.items() == options_of(row).items())
        name = network({"variant": row["variant"]})
        key = (name, " x ".join(map(str, row["shape"])), {"forward": "inference", "train": "training"}[row["what"]])
        rows.setdefault(key, {})[mode] = memory_cell(row)
        modes[mode] = None
    if not rows:
        return []
    gpu = report["device"] != "cpu"
    of = "memory of the device" if gpu else "with imports and compilation"
    return [
        f"Peak memory in MiB of one run at batch 1, in its own process, {of}.",
        table([
            dict(zip(("network", "size", "pass"), key, strict=True)) | {mode: cells.get(mode, "") for mode in modes}
            for key, cells in rows.items()
        ]),
        *([] if gpu else ["A CPU has no bf16 in hardware, so bf16 was not measured."]),
    ]  # fmt: skip


def options_of(row: dict) -> dict:
    """The network options of a row."""
    return {name: row[name] for name in ("remat", "dtype") if name in row}


def memory_cell(row: dict) -> str:
    """Peak memory in MiB, or the reason why it is missing."""
    if "results" in row:
        return f"{peak(row['results']['jax']):.0f}"
    return NO_MEMORY if "no_memory" in row else "failed"


def rows_of(make: Callable[[dict], dict[str, str]]) -> Callable[[dict], list[str]]:
    """A function that formats a section whose rows are all made by `make`."""

    def tables(report: dict) -> list[str]:
        rows = done(report)
        return [HOW.format(**report), *format_tables([make(row) for row in rows])]

    return tables


convolutions, sweeps = rows_of(conv_row), rows_of(sweep_row)
