"""Registers every pair of a table, each to its own folder, on all devices of this machine.

  NAME/          the result of one pair; `f3r_jax/register/output_files.py` lists its files
  summary.csv    one row per pair
  summary.json   the same, with means, settings, command and versions

All pairs are checked before anything is written. A folder with a `summary.json` holds a complete result. A run that was
killed registers only the remaining pairs when it is started again.
"""

import dataclasses
import functools
import glob
import json
import shutil
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import jax

from f3r_jax.common import events, provenance, result_folder
from f3r_jax.common.errors import UserError, explained
from f3r_jax.common.progress import Progress
from f3r_jax.data import preprocess, volumes
from f3r_jax.data.pair_files import PairFiles, ScanFiles
from f3r_jax.data.pairs import read_pairs
from f3r_jax.register import batch_summary, output_files, pair_spec
from f3r_jax.register.batch_summary import SUMMARY, TABLE, Row
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

    Returns:
      One row per pair, with a `reason` if it failed.

    Raises:
      UserError: a mistake in the table, the settings or a file, a result of other settings, or another process that
        writes to `output`. Nothing is written in this case.
    """
    tasks = {pair.name: _task(pair, template) for pair in read_pairs(source, unoriented=unoriented)}
    _check_output(output, tasks)
    with result_folder.reserved(output):
        return _register_waiting(tasks, output, network=network, overwrite=overwrite, command=command)


def _register_waiting(
    tasks: Mapping[str, PairSpec], output: Path, *, network: Network | None, overwrite: bool, command: str
) -> list[Row]:
    """Registers the pairs without a result in a reserved folder; returns the rows of all pairs."""
    for name in tasks:
        if (output / name).is_dir():
            with result_folder.reserved(output / name, output_files.FILES):  # completes the move of a killed run
                pass
    stored_row = functools.partial(_stored_row, output, network=network, overwrite=overwrite)
    rows = {name: stored_row(name, each) for name, each in tasks.items()}
    waiting = {name: each for name, each in tasks.items() if rows[name].status == "waiting"}
    _check_pairs(waiting, network)
    settings = pair_spec.recorded(next(iter(tasks.values())), network)
    shared = {key: value for key, value in settings.items() if not key.startswith(pair_spec.SIDES)}
    facts = {"settings": shared, "command": command, "versions": provenance.versions()}
    batch_summary.write(output, rows.values(), facts)
    devices = jax.local_devices()
    register = functools.partial(_register, output=output, command=command)
    with Progress("registering", len(tasks), done=len(tasks) - len(waiting)) as progress:
        progress.note(_plan(len(tasks), len(waiting), devices))
        for row in (row for row in rows.values() if row.status == "done" and events.as_json()):
            batch_summary.report(row, output / row.name, None, events.emit)
        for line in dict.fromkeys(line for each in waiting.values() for line in pair_spec.notes_on(each)):
            progress.note(f"note: {line}")
        try:
            # Close at once on an interrupt: left to the garbage collector, the generator would register all pairs.
            with closing(register_on_devices(waiting, devices, network, register, progress.note)) as done:
                for row in done:
                    rows[row.name] = row
                    batch_summary.write(output, rows.values(), facts)
                    text = batch_summary.format_row(row)
                    batch_summary.report(row, output / row.name, text, progress.report)
                    progress.advance()
        except KeyboardInterrupt:
            left = {name: each for name, each in tasks.items() if rows[name].status == "waiting"}
            rows |= {name: stored_row(name, each) for name, each in left.items()}
            batch_summary.write(output, rows.values(), facts)
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


def _check_output(output: Path, names: Iterable[str]) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, expected a folder for the results")
    if there := [name for name in output_files.FILES if name != SUMMARY and (output / name).exists()]:
        raise UserError(
            f"{output}: holds the result of one pair ({there[0]}), expected a new folder, or one of --pairs"
        )
    for name in names:
        if name in (TABLE, SUMMARY):
            raise UserError(f"a pair is named {name}, which is the name of an output file; expected another name")
        output_files.check_folder(output / name, overwrite=True)


def _stored_row(output: Path, name: str, each: PairSpec, *, network: Network | None, overwrite: bool) -> Row:
    """The row of a pair: read from a complete result of the same settings, else a waiting row.

    Raises:
      UserError: the result has other settings and may not be replaced.
    """
    path = output / name / output_files.SUMMARY
    if not path.is_file():
        return batch_summary.waiting(name)
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        found = dict(summary["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the summary of a registration; expected one, or an empty folder") from error
    wanted = pair_spec.recorded(each, network)
    keys = dict.fromkeys((*wanted, *pair_spec.OPTIONS))
    differing = [key for key in keys if _shown(found, key) != _shown(wanted, key)]
    if not differing:
        return batch_summary.row_of(name, summary)
    if overwrite:
        return batch_summary.waiting(name)
    words = ", ".join(f"{key} is {_shown(found, key)} there and {_shown(wanted, key)} here" for key in differing)
    raise UserError(
        f"{output / name}: holds a result of other settings: {words}; expected another --output, or --overwrite"
    )


def _shown(settings: Mapping, key: str) -> str:
    return json.dumps(settings[key]) if key in settings else "absent"


def _check_pairs(tasks: Mapping[str, PairSpec], network: Network | None) -> None:
    """Checks every pair before any work starts; missing modalities are detected from the intensities.

    Raises:
      UserError: the first mistake.
    """

    @functools.cache  # the same atlas may be in every pair
    def detected(path: str, unoriented: str | None) -> str:
        return preprocess.recognise_modality(volumes.read(path, unoriented=unoriented))

    unknown = sum(None in (each.fixed.modality, each.moving.modality) for each in tasks.values())
    with Progress("detecting modalities", unknown) if unknown else nullcontext() as progress:
        for each in tasks.values():
            known = {}
            for side in pair_spec.SIDES:
                files = getattr(each, side)
                modality = files.modality or detected(files.path, files.unoriented)
                known[side] = dataclasses.replace(files, modality=modality)
            pair_spec.check_pair(dataclasses.replace(each, **known), network)
            if progress is not None and None in (each.fixed.modality, each.moving.modality):
                progress.advance()


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
