"""Trains the network of a config, then evaluates it. SyN and instance optimisation are only evaluated.

  python -m f3r_jax.main --config=configs/mrb.py

The run is written to runs/mrb, that of configs/mrb.py:paper to runs/mrb_paper. --workdir=FOLDER sets another folder.
The same command resumes an interrupted run from its newest checkpoint. Several values of lambda can be trained
together, in runs/mrb_lam0.25 and so on:

  python -m f3r_jax.main --config=configs/mrb.py --lambdas=0.25,0.5,1

All devices of the machine share a batch. On several machines, start one process per machine; the folders must be on a
shared file system:

  srun python -m f3r_jax.main --config=configs/mrb.py --config.train.batch_size=8 --distributed
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from f3r_jax.common import cli, events
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable
from f3r_jax.config import check_seed, is_trained

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, e.g. configs/mrb.py", lock_config=True)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run: checkpoints, metrics and evaluation; by default runs/<config>[_<option>]."
)
_LAMBDAS = flags.DEFINE_list(
    "lambdas", None, "Trains one run per value of loss.lam, all together; --workdir, if given, must contain {lam}."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "This is one of several processes of one training; a launcher such as srun numbers them."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "With --distributed and without such a launcher: host:port of process 0."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "With --coordinator: the number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "With --coordinator: number of this process, from 0.", lower_bound=0)
flags.DEFINE_bool("json", False, cli.JSON_HELP)
USAGE = "expected --config=FILE [--workdir=FOLDER] [--lambdas=A,B,...] [--config.KEY=VALUE ...]"
GROUPS = {
    "Run": ("config", "workdir", "lambdas", "json"),
    "Several processes": ("distributed", "coordinator", "processes", "process"),
}


def main(argv: Sequence[str]) -> int:
    """Trains and evaluates; returns the exit status."""
    if argv[1:]:
        raise UserError(f"unknown argument {argv[1]!r}, {USAGE}")
    if _CONFIG.value is None:
        raise UserError("--config=FILE is required, for example --config=configs/mrb.py")
    spec = config_flags.get_config_filename(flags.FLAGS["config"])
    file = Path(spec.partition(":")[0])
    check_readable(file, "a config such as configs/mrb.py")
    check_processes()
    from f3r_jax.common.compilation_cache import keep_compiled_programs
    from f3r_jax.train import devices
    from f3r_jax.train.jobs import train_and_evaluate

    keep_compiled_programs()
    config = _CONFIG.value
    check_seed(config)
    if config.data.root is None:
        raise UserError("data.root is not set, expected the folder of the data: --config.data.root=FOLDER")
    workdir = _WORKDIR.value
    if workdir is None:
        workdir = default_workdir(spec, several=_LAMBDAS.value is not None)
    runs = {Path(workdir): config} if _LAMBDAS.value is None else runs_by_lambda(config, workdir)
    note = f"no --workdir given, writing to {', '.join(map(str, runs))}" if _WORKDIR.value is None else None
    run_all = partial(train_and_evaluate, runs, argv=sys.argv, note=note, evaluates=not _DISTRIBUTED.value)
    if not _DISTRIBUTED.value:
        return run_all()
    devices.join_processes(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    with contextlib.ExitStack() as stack:
        stack.enter_context(devices.exit_on_failure())
        if not devices.is_main():  # only process 0 prints; errors of the others are text
            events.use_json(False)
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        status = run_all()
        is_main = devices.is_main()
        devices.leave_processes()
    if is_main and status == 0:
        # The same command without --distributed finds the training done and evaluates it in this process alone.
        sys.stdout.flush()
        os.execv(sys.executable, [*sys.orig_argv, "--nodistributed"])
    return status


def default_workdir(spec: str, *, several: bool) -> str:
    """The default folder of a run: runs/mrb_paper for configs/mrb.py:paper, with {lam} for several lambdas."""
    file, _, option = spec.partition(":")
    return "runs/" + "_".join(filter(None, (Path(file).stem, option, "lam{lam}" if several else "")))


def check_processes() -> None:
    """Raises a UserError if the flags about processes are incomplete or contradict each other."""
    given = {"coordinator": _COORDINATOR.value, "processes": _PROCESSES.value, "process": _PROCESS.value}
    named = [name for name, value in given.items() if value is not None]
    if named and not _DISTRIBUTED.present:
        raise UserError(f"--{named[0]} is given, expected --distributed with it")
    if named and len(named) < len(given):
        absent = next(name for name, value in given.items() if value is None)
        raise UserError(f"--{absent} is missing, expected it with --{named[0]}")
    process, processes = _PROCESS.value, _PROCESSES.value
    if process is not None and processes is not None and process >= processes:
        raise UserError(f"--process is {process}, expected 0 to {processes - 1} with --processes")


def runs_by_lambda(config: ConfigDict, workdir: str) -> dict[Path, ConfigDict]:
    """The config of one run per lambda, by its folder."""
    if not is_trained(config):
        raise UserError("--lambdas: this config is not trained and has no lambda")
    if "{lam}" not in workdir:
        raise UserError(f"--workdir is {workdir}, expected {{lam}} in it with --lambdas, such as runs/mrb_lam{{lam}}")
    try:
        lams = sorted({float(text) for text in _LAMBDAS.value or ()})
    except ValueError as error:
        raise UserError(f"--lambdas: {error}, expected numbers such as 0.25,0.5,1") from error
    if not lams:
        raise UserError("--lambdas is empty, expected numbers such as 0.25,0.5,1")
    runs = {}
    for lam in lams:
        run = config.copy_and_resolve_references()
        run.loss.lam = lam
        runs[Path(workdir.replace("{lam}", f"{lam:g}"))] = run
    return runs


def console() -> None:
    """The console script."""
    cli.run_main(main, GROUPS)


if __name__ == "__main__":
    console()
