"""Trains the network of a config, then evaluates it: the main job. SyN, which learns nothing, is evaluated only.

  python -m f3r_jax.main --config=configs/mrb.py --workdir=runs/mrb

Started again with the same config and folder, it goes on from the newest checkpoint.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from f3r_jax import cli, models, syn
from f3r_jax.data.datasets import Dataset, open_dataset
from f3r_jax.defaults import trains
from f3r_jax.errors import UserError
from f3r_jax.evaluate import evaluate, report
from f3r_jax.progress import Progress
from f3r_jax.train import TrainingError, check_settings, train
from f3r_jax.workdir import check_same_run, write_config, write_origin

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
    if trains(config):
        network = models.build(config.model)
        check_settings(config)
    else:
        syn.check()
    dataset = open_dataset(config.data, seed=config.seed)
    models.check_shape(config.data.shape, "data.shape")
    check_same_run(config, workdir)
    read_all(dataset)
    workdir.mkdir(parents=True, exist_ok=True)
    write_config(config, workdir)
    write_origin(workdir, argv=sys.argv)
    if trains(config):
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


if __name__ == "__main__":
    cli.run(main)
