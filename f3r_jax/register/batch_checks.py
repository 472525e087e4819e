"""Checks of many pairs before any is registered: the folder, the results that are there, the files."""

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from f3r_jax.common.errors import UserError
from f3r_jax.common.progress import Progress
from f3r_jax.data import preprocess, volumes
from f3r_jax.register import batch_summary, output_files, pair_spec
from f3r_jax.register.batch_summary import SUMMARY, TABLE, Row
from f3r_jax.register.pair_spec import PairSpec
from f3r_jax.workdir.trained_network import Network


def check_output(output: Path, names: Iterable[str]) -> None:
    """Raises a UserError for a folder that cannot hold the results of pairs of these names."""
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


def stored_row(output: Path, name: str, each: PairSpec, *, network: Network | None, overwrite: bool) -> Row:
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


def check_pairs(tasks: Mapping[str, PairSpec], network: Network | None) -> None:
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
