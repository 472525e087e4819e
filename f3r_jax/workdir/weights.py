"""Parameters of a network in one file: an `.npz` without pickle, with the config and the step of the run.

A parameter has the key `params/<layer>/<name>`. The config is JSON text. The optimiser state is left out.
The package contains such a file, `BUILTIN_FILE`. `BUILTIN` names it wherever a run or a file of weights is expected.
"""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.common.files import replacing
from f3r_jax.config import upgraded

SUFFIX = ".npz"
BUILTIN = "builtin"
BUILTIN_FILE = Path(__file__).parents[1] / "models" / "builtin.npz"
_PREFIX = "params/"


def write(file: Path, params: dict, config: ConfigDict, step: int) -> None:
    """Writes parameters, float32, with the config and the step of their run. An existing file is replaced at once."""
    arrays: dict[str, Any] = {"config": np.array(config.to_json()), "step": np.array(step)}
    arrays |= {_PREFIX + name: np.asarray(value, np.float32) for name, value in flatten_dict(params, sep="/").items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    with replacing(file) as unfinished:
        unfinished.write_bytes(buffer.getvalue())


def read(file: Path) -> tuple[dict, ConfigDict, int]:
    """(parameters, config, step) of a file of `write`; the config is completed by the keys that were added later.

    Raises:
      UserError: the file does not exist or was not written by `write`.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            params = {name.removeprefix(_PREFIX): arrays[name] for name in arrays if name.startswith(_PREFIX)}
            config, step = json.loads(str(arrays["config"])), int(arrays["step"])
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file, expected weights ({SUFFIX})") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: not a file of weights of this package ({type(error).__name__})") from error
    if not params:
        raise UserError(f"{file}: has no parameters, expected a file of weights of this package")
    return unflatten_dict(params, sep="/"), upgraded(ConfigDict(config)), step


def check_architecture(source: Path, stored: dict, expected: dict) -> None:
    """Raises a UserError that names the first parameter of another shape than the network's.

    Args:
      source: the checkpoint or file, for the message.
      stored: its parameters, or arrays that have their shapes.
      expected: those of the network.
    """
    found, wanted = _shapes(stored), _shapes(expected)
    differing = sorted({name for name, _ in set(found.items()) ^ set(wanted.items())})
    if differing:
        name = differing[0]
        raise UserError(
            f"{source}: checkpoint of another architecture: {name} is {found.get(name, 'absent')}, "
            f"expected {wanted.get(name, 'absent')} ({len(differing)} parameters differ)"
        )


def _shapes(tree: dict) -> dict[str, tuple[int, ...]]:
    return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
