"""Trains the network of a config, then evaluates it: the main job.

  python -m f3r_jax.main --config=configs/mrb.py --workdir=runs/mrb

Started again with the same config and folder, it goes on from the newest checkpoint.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from f3r_jax import cli, models
from f3r_jax.data.datasets import Dataset, open_dataset
from f3r_jax.errors import UserError
from f3r_jax.evaluate import evaluate, report
from f3r_jax.progress import Progress
from f3r_jax.train import TrainingError, check_settings, train

CONFIG_FILE = "config.json"

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, e.g. configs/mrb.py", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, metrics and evaluation.")


def main(argv: Sequence[str]) -> int:
    """Trains and evaluates; returns the exit status."""
    if argv[1:]:
        raise UserError(
            f"unknown argument {argv[1]!r}, expected --config=FILE --workdir=FOLDER [--config.KEY=VALUE ...]"
        )
    if _CONFIG.value is None or _WORKDIR.value is None:
        raise UserError(
            "--config=FILE and --workdir=FOLDER are required, for example --config=configs/mrb.py --workdir=runs/mrb"
        )
    config, workdir = _CONFIG.value, Path(_WORKDIR.value)
    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])
    if not file.is_file():
        raise UserError(f"{file}: no such file, expected a config such as configs/mrb.py")
    if config.data.root is None:
        raise UserError("data.root is not set, expected the folder of the data: --config.data.root=FOLDER")
    # Everything that can be wrong is looked at before anything is written.
    network = models.build(config.model)
    check_settings(config)
    dataset = open_dataset(config.data, seed=config.seed)
    models.check_shape(config.data.shape, "data.shape")
    check_same_run(config, workdir)
    read_all(dataset)
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(config, workdir)
    try:
        train(network, dataset, config, workdir)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(evaluate(workdir, dataset=dataset), workdir)
    return 0


def read_all(dataset: Dataset) -> None:
    """Reads every case once, so that a voxel unfit for use shows before the run writes anything."""
    with Progress("reading cases", len(dataset.makers)) as progress:
        for name in dataset.makers:
            dataset.load(name)
            progress.advance()


def check_same_run(config: ConfigDict, workdir: Path) -> None:
    """Raises a UserError if the folder holds a run of another config, or something that is no run."""
    path = workdir / CONFIG_FILE
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir}: is a file, expected a folder for the run")
    if not path.exists():
        # A run killed while it wrote its config leaves that half-written file alone.
        if workdir.is_dir() and any(file.name != f"{CONFIG_FILE}.tmp" for file in workdir.iterdir()):
            raise UserError(
                f"{workdir}: holds files but no {CONFIG_FILE}, expected an empty folder or that of a run to go on with"
            )
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}), expected the config of a run") from error
    found, wanted = (_flat(value) for value in (found, json.loads(config.to_json())))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{workdir}: holds a run of another config: {key} is {found.get(key, 'absent')!r} there and "
                f"{wanted.get(key, 'absent')!r} here; give another --workdir"
            )


def write_config(config: ConfigDict, workdir: Path) -> None:
    """Writes the config beside the run, for people and for `check_same_run`."""
    beside = workdir / f"{CONFIG_FILE}.tmp"
    beside.write_text(json.dumps(json.loads(config.to_json()), indent=2) + "\n")
    os.replace(beside, workdir / CONFIG_FILE)


def _flat(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


if __name__ == "__main__":
    cli.run(main)
