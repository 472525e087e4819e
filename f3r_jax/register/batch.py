"""Registers every pair of a table, each into a folder of its own, on all devices of this machine at once.

  NAME/          of each pair: what `f3r_jax/register/output_files.py` lists
  summary.csv    a row a pair
  summary.json   the same, with means, settings, command and versions

Nothing is written before all pairs were looked at. A folder whose `summary.json` stands holds a whole result: a run
that was killed goes on with the other pairs when it is started again.
"""

import dataclasses
import functools
import glob
import json
import os
import queue
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import closing, nullcontext
from pathlib import Path

import jax

from f3r_jax.common import provenance
from f3r_jax.common.errors import EXIT_INTERRUPTED, UserError
from f3r_jax.common.progress import Progress
from f3r_jax.data import nifti, preprocess
from f3r_jax.data.pairs import PairFiles, read_pairs
from f3r_jax.register import batch_summary, output_files, pair_spec
from f3r_jax.register.batch_summary import SUMMARY, TABLE, Row
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
) -> list[Row]:
    """Registers the pairs that `output` doesn't hold yet; returns a row for each, with a `reason` where it failed.

    Args:
      source: a folder or table that `data/pairs.py` reads.
      output: the folder for all results.
      template: from fixed and moving files to the task.
      network: that of the settings' checkpoint.
      overwrite: whether results of other settings may be replaced.
      command: what was typed, for the summaries.

    Raises:
      UserError: a mistake in the table, the settings or a file; a result of other settings. Nothing is written then.
    """
    tasks = {pair.name: template(*_sides(pair)) for pair in read_pairs(source)}
    _check_output(output, tasks)
    there = functools.partial(_row_there, output, network=network, overwrite=overwrite)
    rows = {name: there(name, each) for name, each in tasks.items()}
    waiting = {name: each for name, each in tasks.items() if rows[name]["status"] == "waiting"}
    _look(waiting, network)
    output.mkdir(parents=True, exist_ok=True)
    settings = pair_spec.recorded(next(iter(tasks.values())), network)
    shared = {key: value for key, value in settings.items() if not key.startswith(pair_spec.SIDES)}
    facts = {"settings": shared, "command": command, "versions": provenance.versions()}
    batch_summary.write(output, rows.values(), facts)
    devices = jax.local_devices()
    register = functools.partial(_register, output=output, command=command)
    with Progress("registering", len(tasks), done=len(tasks) - len(waiting)) as progress:
        progress.note(_plan(len(tasks), len(waiting), devices))
        try:
            # Closed at once when this loop is interrupted: left to the garbage collector it would go on with all pairs.
            with closing(_on_devices(waiting, devices, network, register, progress.note)) as done:
                for row in done:
                    rows[row["name"]] = row
                    batch_summary.write(output, rows.values(), facts)
                    progress.note(batch_summary.format_row(row))
                    progress.advance()
        except KeyboardInterrupt:
            rows |= {name: there(name, each) for name, each in tasks.items() if rows[name]["status"] == "waiting"}
            batch_summary.write(output, rows.values(), facts)
            raise KeyboardInterrupt("the same command goes on with the pairs that are left") from None
    return list(rows.values())


def _sides(pair: PairFiles) -> tuple[Files, Files]:
    """Fixed and moving, as the table has them; a modality that it leaves open is told by the intensities."""
    both = (pair.mr, pair.ct) if pair.fixed == "mr" else (pair.ct, pair.mr)
    return tuple(
        Files(
            str(scan.image),
            scan.modality if scan.stated else None,
            labels=str(scan.labels) if scan.labels else None,
            landmarks=str(scan.landmarks) if scan.landmarks else None,
        )
        for scan in both
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
            raise UserError(f"a pair has the name {name}, which is that of a file beside the pairs; expected another")
        output_files.check_folder(output / name, overwrite=True)


def _row_there(output: Path, name: str, each: PairSpec, *, network: Network | None, overwrite: bool) -> Row:
    """The row of a pair: that of its result in the folder, if it is whole and of the same settings, or an empty one.

    Raises:
      UserError: a result of other settings, unless it may be replaced.
    """
    path = output / name / output_files.SUMMARY
    if not path.is_file():
        return batch_summary.waiting(name)
    try:
        summary = json.loads(path.read_text())
        found = summary["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not what a registration writes; expected a result, or an empty folder") from error
    wanted = pair_spec.recorded(each, network)
    differing = [key for key in wanted if key not in found or found[key] != wanted[key]]
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


def _look(tasks: Mapping[str, PairSpec], network: Network | None) -> None:
    """Raises a UserError for the first mistake in any pair. Where no modality is given that takes its intensities."""

    @functools.cache  # one atlas may be in every pair
    def recognised(path: str) -> str:
        return preprocess.recognise_modality(nifti.read(path))

    open_ones = sum(None in (each.fixed.modality, each.moving.modality) for each in tasks.values())
    with Progress("telling CT from MR", open_ones) if open_ones else nullcontext() as progress:
        for each in tasks.values():
            known = {}
            for side in pair_spec.SIDES:
                files = getattr(each, side)
                known[side] = dataclasses.replace(files, modality=files.modality or recognised(files.path))
            pair_spec.check_pair(dataclasses.replace(each, **known), network)
            if None in (each.fixed.modality, each.moving.modality):
                progress.advance()


def _plan(count: int, waiting: int, devices: Sequence[jax.Device]) -> str:
    kind = "CPU" if devices[0].platform == "cpu" else devices[0].device_kind
    on = kind if len(devices) == 1 else f"{len(devices)} x {kind}"
    return f"{count} pair{'s' * (count > 1)}, {count - waiting} finished before; on {on}"


def _on_devices(
    tasks: Mapping[str, PairSpec],
    devices: Sequence[jax.Device],
    network: Network | None,
    register: Callable[[str, PairSpec, Network | None], Row],
    say: Callable[[str], None],
) -> Iterator[Row]:
    """The rows as pairs end, each device at work on one pair; a single one in this thread, so that Ctrl-C ends it.

    With several, Ctrl-C waits for the pairs at work, which keep their results; a second one doesn't.
    """
    free = queue.SimpleQueue()
    for device in devices:
        free.put((device, network and network.on(device)))

    def work(name: str) -> Row:
        device, own = free.get()
        try:
            with jax.default_device(device):
                return register(name, tasks[name], own)
        finally:
            free.put((device, own))

    if len(devices) == 1:
        yield from map(work, tasks)
        return
    pool = ThreadPoolExecutor(len(devices))
    futures = [pool.submit(work, name) for name in tasks]
    try:
        for done in as_completed(futures):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _wait_for([future for future in futures if not future.done()], say)


def _wait_for(futures: Sequence[Future], say: Callable[[str], None]) -> None:
    if not futures:
        return
    try:
        say(f"waiting for {len(futures)} at work; Ctrl-C again gives them up")
        wait(futures)
    except KeyboardInterrupt:
        os._exit(EXIT_INTERRUPTED)  # threads can't be ended; what they leave is cleared away when the command goes on


def _register(name: str, each: PairSpec, network: Network | None, *, output: Path, command: str) -> Row:
    """Registers one pair; whatever goes wrong in it stays in its row."""
    for left in output.glob(f".{glob.escape(name)}-????????"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        return batch_summary.row_of(
            name, pair_spec.register_pair(each, output / name, network=network, command=command)
        )
    except UserError as error:
        return {"name": name, "status": "failed", "reason": " ".join(str(error).split())}
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return {"name": name, "status": "failed", "reason": reason, "traceback": traceback.format_exc()}
