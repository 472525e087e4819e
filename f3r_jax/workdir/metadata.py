"""Config and origin of a run, in its folder. The origin is the command, the package versions and the commit."""

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import WRITING, write_text
from f3r_jax.common.locks import LOCK_FILE
from f3r_jax.common.provenance import commit, versions
from f3r_jax.config import flatten, upgraded

CONFIG_FILE = "config.json"
ORIGIN_FILE = "origin.json"


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises a UserError if the folder holds a run of another config, or other files."""
    path = workdir / CONFIG_FILE
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir}: is a file, expected a folder for the run")
    if not path.exists():
        # A run that was killed while it wrote its config leaves only this incomplete file.
        if workdir.is_dir() and not all(file.name == LOCK_FILE or _unfinished(file) for file in workdir.iterdir()):
            raise UserError(
                f"{workdir}: holds files but no {CONFIG_FILE}, expected an empty folder or that of a run to resume; "
                "choose another with --workdir=FOLDER"
            )
        return
    found, wanted = (flatten(json.loads(each.to_json())) for each in (read_config(workdir), config))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{workdir}: holds a run of another config: {key} is {found.get(key, 'absent')!r} there and "
                f"{wanted.get(key, 'absent')!r} here; choose another folder with --workdir=FOLDER"
            )


def _unfinished(file: Path) -> bool:
    """Whether a killed process left this file while it wrote the config; earlier versions wrote config.json.tmp."""
    return file.name == f"{CONFIG_FILE}.tmp" or file.name.startswith(WRITING)


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the config to the folder of the run, for readers and for `check_same_run`."""
    for file in filter(_unfinished, workdir.iterdir()):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    _write(workdir / CONFIG_FILE, json.loads(config.to_json()))


def read_config(workdir: Path) -> ConfigDict:
    """The config of a run, completed by the keys that were added later.

    Raises:
      UserError: the folder does not exist or has no valid config.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{workdir}: no {CONFIG_FILE} found, expected the --workdir of a run")
    try:
        return upgraded(ConfigDict(_read(path)))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the config of a run ({error})") from error


def write_origin(workdir: Path, argv: Sequence[str]) -> None:
    """Writes command, versions and, if the sources are in git, the commit, so that the run can be repeated."""
    command = shlex.join(["python", "-m", "f3r_jax.main", *argv[1:]])
    _write(workdir / ORIGIN_FILE, {"command": command, "versions": versions(), "commit": commit()})


def read_origin(workdir: Path) -> dict:
    """The origin that `write_origin` wrote; empty if the file does not exist."""
    path = workdir / ORIGIN_FILE
    return _read(path) if path.is_file() else {}


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}), expected what a run writes") from error


def _write(path: Path, value: dict) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
