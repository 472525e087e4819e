"""The tables of the suite's sections. A report is what `suite` measured of one section."""

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
    "Our training at this size, loading of data not included. The paper names no number of steps; 40,000 are 1,000 "
    "rounds of 40 cases."
)
SETTINGS = {  # by whether it is a GPU
    False: "PyTorch runs in float32 without torch.compile, the same network channels last, VoxelMorph's as its package "
    "has it.",
    True: "PyTorch gets channels last, torch.compile, cuDNN's own search for the fastest algorithms and, for rows in "
    "bf16, autocast; float32 is TF32 in products and convolutions of both, JAX's default on a GPU.",
}
NO_MEMORY = "does not fit"


def networks(report: dict) -> list[str]:
    """Time, ratios, distance to the bounds and memory of each network; then how long a training takes."""
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
    """What the percentages refer to."""
    reached = " and ".join(f"{each['flops_per_second'] / 1e9:,.0f} GFLOP/s in {name}" for name, each in peaks.items())
    moved = peaks["float32"]["bytes_per_second"] / 1e9
    return (
        f"Measured on this device: {reached} (product of large matrices), {moved:,.0f} GB/s (a = a / 2 + b). "
        "Percent of these: what the network needs at least (`f3r_jax/benchmark/roofline.py`) over what the device "
        "could do then."
    )


def training(row: dict) -> dict[str, str]:
    """How long steps of training take."""
    seconds = statistics.median(row["results"]["jax"]["wall"])
    cells = {"network": network(row), "steps a second": f"{1 / seconds:.3g}"}
    return cells | {f"hours for {steps:,} steps": f"{steps * seconds / 3600:.1f}" for steps in STEPS}


def scaling(report: dict) -> list[str]:
    """For each pass a table with a row a size: seconds, seconds per million voxels and peak memory."""
    if not report["measurements"]:
        return []
    found = {(row["what"], tuple(row["shape"]), row["who"][0]): row for row in report["measurements"]}
    subjects = dict.fromkeys(who for *_, who in found)
    lines = [
        f"{network(report['measurements'][0])}. Medians of {report['repeats']} runs (minimum to maximum), batch 1, "
        f"each subject alone in memory, so that this table has no ratio. {SETTINGS[report['device'] != 'cpu']}",
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
    """One subject at one size."""
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
    """A row a network, size and pass; a column a mode."""
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
    of = "of the device" if gpu else "imports and compilation included"
    return [
        f"Peak memory in MiB of one run at batch 1, in a process of its own, {of}.",
        table([
            dict(zip(("network", "size", "pass"), key, strict=True)) | {mode: cells.get(mode, "") for mode in modes}
            for key, cells in rows.items()
        ]),
        *([] if gpu else ["A CPU has no bf16 in hardware, so bf16 wasn't measured here."]),
    ]  # fmt: skip


def options_of(row: dict) -> dict:
    """The options of the network."""
    return {name: row[name] for name in ("remat", "dtype") if name in row}


def memory_cell(row: dict) -> str:
    """Peak memory, or why there is none."""
    if "results" in row:
        return f"{peak(row['results']['jax']):.0f}"
    return NO_MEMORY if "no_memory" in row else "failed"


def rows_of(make: Callable[[dict], dict[str, str]]) -> Callable[[dict], list[str]]:
    """The tables of a section whose rows one function makes."""

    def told(report: dict) -> list[str]:
        rows = done(report)
        return [HOW.format(**report), *format_tables([make(row) for row in rows])]

    return told


convolutions, sweeps = rows_of(conv_row), rows_of(sweep_row)
