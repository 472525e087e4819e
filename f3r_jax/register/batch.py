"""Registers every pair of a table, each to its own folder, on all devices of this machine.

  NAME/          the result of one pair; `f3r_jax/register/output_files.py` lists its files
  summary.csv    one row per pair
  summary.json   the same, with means, settings, command and versions

All pairs are checked before anything is written. A folder with a `summary.json` holds a complete result. A run that was
killed registers only the remaining pairs when it is started again.

Several processes can register different rows of one table in one folder. They write no summaries; `launch/cohort.py`
starts them and writes the summaries at the end.
"""

import dataclasses
import functools
import glob
import shutil
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import jax

from f3r_jax.common import provenance, result_folder
from f3r_jax.common.errors import UserError, explained
from f3r_jax.common.progress import Progress
from f3r_jax.data.pair_files import PairFiles, ScanFiles
from f3r_jax.data.pairs import check_pair, list_pairs
from f3r_jax.register import batch_checks, batch_summary, output_files, pair_spec
from f3r_jax.register.batch_summary import Row
from f3r_jax.register.device_pool import register_on_devices
from f3r_jax.register.pair_spec import Files, PairSpec
from f3r_jax.workdir.trained_network import Network


def register_pairs(
    source: Path,
    output: Path,
    template: Callable[[Files, Files], PairSpec],
    *,
    network: Network | None,
    overwrite: bool,
    command: str,
    unoriented: str | None = None,
    rows: range | None = None,
    dry_run: bool = False,
) -> list[Row]:
    """Registers the pairs that have no result in `output` yet.

    Args:
      source: a folder or table that `data/pairs.py` reads.
      output: the folder for all results.
      template: makes the task of the fixed and the moving files.
      network: the network of the settings' checkpoint.
      overwrite: whether results of other settings may be replaced.
      command: the command line, for the summaries.
      unoriented: the axes of volumes without orientation codes.
      rows: only these rows of the table, from 0. Other processes may then write to `output`.
      dry_run: whether all is checked that needs no voxels, and nothing is written.

    Returns:
      One row per pair, with a `reason` if it failed.

    Raises:
      UserError: a mistake in the table, the settings or a file, a result of other settings, or another process that
        writes to `output`. Nothing is written in this case.
    """
    pairs = _pairs(source, rows)
    for pair in pairs:
        check_pair(pair, unoriented=unoriented)
    tasks = {pair.name: _task(pair, template) for pair in pairs}
    batch_checks.check_output(output, tasks)
    if dry_run:
        stored_row = functools.partial(batch_checks.stored_row, output, network=network, overwrite=overwrite)
        known = {name: stored_row(name, each) for name, each in tasks.items()}
        for each in _waiting(tasks, known).values():
            pair_spec.check_pair(each, network)
        return list(known.values())
    with result_folder.reserved(output, shared=rows is not None):
        return _register_waiting(
            tasks, output, network=network, overwrite=overwrite, command=command, alone=rows is None
        )


def _pairs(source: Path, rows: range | None) -> list[PairFiles]:
    """The pairs of a table or of some of its rows; raises a UserError for rows that it does not have."""
    pairs = list_pairs(source)
    if rows is None:
        return pairs
    if rows.stop > len(pairs):
        raise UserError(f"--rows is {rows.start + 1}-{rows.stop}, but {source} has {len(pairs)} rows; expected these")
    return pairs[rows.start : rows.stop]


def _waiting(tasks: Mapping[str, PairSpec], rows: Mapping[str, Row]) -> dict[str, PairSpec]:
    return {name: each for name, each in tasks.items() if rows[name].status == "waiting"}


def _register_waiting(
    tasks: Mapping[str, PairSpec],
    output: Path,
    *,
    network: Network | None,
    overwrite: bool,
    command: str,
    alone: bool,
) -> list[Row]:
    """Registers the pairs without a result in a reserved folder; returns the rows of all pairs.

    Only a process that is `alone` writes the summaries.
    """
    for name in tasks:
        if (output / name).is_dir():
            with result_folder.reserved(output / name, output_files.FILES):  # completes the move of a killed run
                pass
    stored_row = functools.partial(batch_checks.stored_row, output, network=network, overwrite=overwrite)
    rows = {name: stored_row(name, each) for name, each in tasks.items()}
    waiting = _waiting(tasks, rows)
    batch_checks.check_pairs(waiting, network)
    settings = pair_spec.recorded(next(iter(tasks.values())), network)
    shared = {key: value for key, value in settings.items() if not key.startswith(pair_spec.SIDES)}
    facts = {"settings": shared, "command": command, "versions": provenance.versions()}

    def save() -> None:
        if alone:
            batch_summary.write(output, rows.values(), facts)

    save()
    devices = jax.local_devices()
    register = functools.partial(_register, output=output, command=command)
    with Progress("registering", len(tasks), done=len(tasks) - len(waiting)) as progress:
        progress.note(_plan(len(tasks), len(waiting), devices))
        batch_summary.report_earlier(rows.values(), output)
        for line in dict.fromkeys(line for each in waiting.values() for line in pair_spec.notes_on(each)):
            progress.note(f"note: {line}")
        try:
            # Close at once on an interrupt: left to the garbage collector, the generator would register all pairs.
            with closing(register_on_devices(waiting, devices, network, register, progress.note)) as done:
                for row in done:
                    rows[row.name] = row
                    save()
                    text = batch_summary.format_row(row)
                    batch_summary.report(row, output / row.name, text, progress.report)
                    progress.advance()
        except KeyboardInterrupt:
            rows |= {name: stored_row(name, each) for name, each in _waiting(tasks, rows).items()}
            save()
            raise KeyboardInterrupt("run the same command again to register the remaining pairs") from None
    return list(rows.values())


def _task(pair: PairFiles, template: Callable[[Files, Files], PairSpec]) -> PairSpec:
    """The task of a table row, with the row's own choice of labels that drive."""
    task = template(_files(pair.fixed), _files(pair.moving))
    if pair.labels_drive is None:
        return task
    guidance = dataclasses.replace(task.settings.guidance, labels_drive=pair.labels_drive)
    return dataclasses.replace(task, settings=dataclasses.replace(task.settings, guidance=guidance))


def _files(scan: ScanFiles) -> Files:
    """The files of one scan of a table row. A modality that the table omits is None."""

    def text(file: Path | None) -> str | None:
        return str(file) if file else None

    return Files(
        str(scan.image),
        scan.modality if scan.stated else None,
        mask=text(scan.mask),
        labels=text(scan.labels),
        landmarks=text(scan.landmarks),
        exclude=text(scan.exclude),
        rigid=text(scan.rigid),
        preserve=text(scan.preserve),
        extra=tuple(map(str, scan.extra)),
    )


def _plan(count: int, waiting: int, devices: Sequence[jax.Device]) -> str:
    kind = "CPU" if devices[0].platform == "cpu" else devices[0].device_kind
    on = kind if len(devices) == 1 else f"{len(devices)} x {kind}"
    return f"{count} pair{'s' if count > 1 else ''}, {count - waiting} finished before; on {on}"


def _register(name: str, each: PairSpec, network: Network | None, *, output: Path, command: str) -> Row:
    """Registers one pair; any error is recorded in its row."""
    for leftover in output.glob(f".{glob.escape(name)}-????????"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        with result_folder.reserved(output / name, output_files.FILES):
            summary = pair_spec.register_pair(each, output / name, network=network, command=command)
        return batch_summary.row_of(name, summary)
    except UserError as error:
        return Row(name, "failed", reason=" ".join(str(error).split()))
    except Exception as error:
        if line := explained(error):
            return Row(name, "failed", reason=line)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(name, "failed", reason=reason, traceback=traceback.format_exc())
