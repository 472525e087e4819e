"""The work of `python -m f3r_jax.register`, whose flags are in `register/__main__.py`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from f3r_jax.common import events, result_folder
from f3r_jax.common.compilation_cache import keep_compiled_programs
from f3r_jax.register import batch, batch_summary, output_files, pair_spec, pipeline, verdict
from f3r_jax.register.pair_spec import Files, PairSpec

NOTHING = "all checks passed, nothing is registered (--dry_run)"


@dataclasses.dataclass(frozen=True)
class Options:
    """What does not change a result.

    Attributes:
      line: the command line.
      overwrite: whether an older result is replaced.
      strict: whether a failed verdict is an exit status.
      dry_run: whether all is checked that needs no voxels, and nothing is written.
    """

    line: str
    overwrite: bool
    strict: bool
    dry_run: bool


def register_one(pair: PairSpec, output: Path, options: Options) -> int:
    """Registers one pair and prints its scores; returns the exit status."""
    keep_compiled_programs()
    network = pair_spec.network_of(pair.settings)
    pair_spec.check_pair(pair, network)
    if options.dry_run:
        output_files.check_folder(output, overwrite=options.overwrite)
        events.line(f"{output}: {NOTHING}")
        return 0
    with result_folder.reserved(output, output_files.FILES, size=pair_spec.least_size(pair)) as completed:
        summary = None
        if completed and not options.overwrite:
            summary = output_files.stored_summary(output, pair_spec.recorded(pair, network))
            events.line(f"{output}: the result of a run that was killed was whole; it is in place now")
        if summary is None:
            output_files.check_folder(output, overwrite=options.overwrite)
            summary = pair_spec.register_pair(pair, output, network=network, command=options.line, note=events.line)
    text = f"{output_files.table(summary)}\nresult: {output}, report: {output / 'report.html'}"
    batch_summary.report(batch_summary.row_of(output.absolute().name, summary), output, text, events.emit)
    return verdict.exit_status(summary["verdict"]["level"], strict=options.strict)


def register_all(
    source: Path,
    output: Path,
    template: Callable[[Files, Files], PairSpec],
    settings: pipeline.Settings,
    options: Options,
    *,
    unoriented: str | None,
    rows: range | None,
) -> int:
    """Registers the pairs of a table; returns 1 if a pair failed, 4 for a strict verdict, else 0."""
    keep_compiled_programs()
    network = pair_spec.network_of(settings)
    found = batch.register_pairs(
        source,
        output,
        template,
        network=network,
        overwrite=options.overwrite,
        command=options.line,
        unoriented=unoriented,
        rows=rows,
        dry_run=options.dry_run,
    )
    if options.dry_run:
        batch_summary.report_earlier(found, output)
        done = sum(row.status == "done" for row in found)
        events.line(f"{output}: {len(found)} pairs, {done} finished before; {NOTHING}")
        return 0
    batch_summary.report_totals(found, output, table=rows is None)
    if any(row.status == "failed" for row in found):
        return 1
    return max((verdict.exit_status(row.verdict, strict=options.strict) for row in found), default=0)
