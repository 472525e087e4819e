"""Runs of a study: what is planned and how each run stands, read off its folder.

A run is `python -m f3r_jax.main` with a config, settings and a folder of its own. A study's folder holds

  NAME/            one run, named after its settings, such as mrb_lam0.5_ct_to_mr_seed0
  logs/NAME.log    what it printed, attempt after attempt
  report/          the report over all of them
  compiled/        programs that JAX compiled, shared by the runs of one network
  slurm/           what submitit keeps
"""

import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from f3r_jax.common import cli
from f3r_jax.common.errors import UserError
from f3r_jax.config import flatten, is_trained
from f3r_jax.workdir.metadata import CONFIG_FILE, check_same_run

ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = (sys.executable, "-m", "f3r_jax.main")
FINISHED, CUT_OFF, NOT_BEGUN, FAILED = "finished", "cut off", "not begun", "failed"
LOGS, REPORT, COMPILED, SLURM, LOCK = "logs", "report", "compiled", "slurm", ".lock"
PARTIAL_SECTIONS = ("loss", "optim", "train", "syn")  # of the configs: not all have them
LAMBDA = "loss.lam"
TAIL_BYTES = 1 << 16  # of a log or of metrics.jsonl; holds the last lines whole
_STARTED, _ENDED = "== started ", "== exit status "


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the main job. `spec` is a config file with an optional `:option`."""

    name: str
    output: Path
    spec: str
    settings: tuple[str, ...]  # KEY=VALUE, later ones win
    config: ConfigDict = dataclasses.field(compare=False, repr=False)
    together: tuple[float, ...] = ()  # the lambdas that are trained as one program with this run's; empty: alone

    @property
    def workdir(self) -> Path:
        """The run's own folder."""
        return self.output / self.name

    @property
    def log(self) -> Path:
        """What the run prints goes here: its own folder has to be empty at the start."""
        return self.output / LOGS / f"{self.program}.log"

    @property
    def program(self) -> str:
        """The name of the process: the run's own, or that of all lambdas which it trains."""
        return self._for_lambda("+".join(f"{lam:g}" for lam in self.together)) if self.together else self.name

    @property
    def command(self) -> list[str]:
        """The command line of the process; given again, it goes on where it was cut off."""
        if not self.together:
            settings = (f"--config.{setting}" for setting in self.settings)
            return [*MAIN, f"--config={self.spec}", f"--workdir={self.workdir}", *settings]
        settings = (f"--config.{setting}" for setting in self.settings if not setting.startswith(f"{LAMBDA}="))
        workdir, lams = self.output / self._for_lambda("{lam}"), ",".join(f"{lam:g}" for lam in self.together)
        return [*MAIN, f"--config={self.spec}", f"--workdir={workdir}", f"--lambdas={lams}", *settings]

    def _for_lambda(self, text: str) -> str:
        return self.name.replace(f"_lam{self.config.loss.lam:g}_", f"_lam{text}_")


# The plan


def config_path(name: str) -> str:
    """The project's config of that name, relative to the current folder where it lies below it."""
    path = ROOT / "configs" / f"{name}.py"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def make_run(output: Path, spec: str, settings: Iterable[str], **varied: object) -> Run:
    """A run of a config with settings `KEY=VALUE`; what the study varies comes as `lam`, `direction` and `seed`.

    Raises:
      UserError: no such config, or a setting that it doesn't have or can't take.
    """
    keys = {"lam": LAMBDA, "direction": "data.direction", "seed": "seed"}
    settings = (*settings, *(f"{keys[key]}={value}" for key, value in varied.items() if value is not None))
    # Settings of the training say nothing to SyN, nor SyN's to a network.
    absent = {section for section in PARTIAL_SECTIONS if section not in load_config(spec, ())}
    settings = tuple(setting for setting in settings if setting.partition(".")[0] not in absent)
    config = load_config(spec, settings)
    file, _, option = spec.partition(":")
    parts = [Path(file).stem, option, f"lam{config.loss.lam:g}" if is_trained(config) else ""]
    name = "_".join(filter(None, [*parts, config.data.direction, f"seed{config.seed}"]))
    return Run(name, output, spec, settings, config)


def load_config(spec: str, settings: Sequence[str]) -> ConfigDict:
    """The config as the main job will see it."""
    file = Path(spec.partition(":")[0])
    if not file.is_file():
        raise UserError(f"{file}: no such file, expected a config such as configs/mrb.py")
    arguments = ["launch", f"--config={spec}", *(f"--config.{setting}" for setting in settings)]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments, lock_config=True)
    try:
        values(arguments)
    except cli.CONFIG_ERRORS as error:
        text = cli.one_line(error)
        raise UserError(text if cli.QUOTED in str(error) else f"{spec}: {text}") from error
    return holder.value


def unique(plan: Iterable[Run]) -> list[Run]:
    """The plan with runs that several studies share done once; UserError for two runs that would share a folder."""
    runs: dict[str, Run] = {}
    for run in plan:
        other = runs.setdefault(run.name, run)
        if other.config.to_json() != run.config.to_json() or Path(other.spec).name != Path(run.spec).name:
            raise UserError(f"{other.spec} and {run.spec}: both make a run {run.name}; rename one of the files")
    return list(runs.values())


def together(plan: Sequence[Run], finished: Collection[str] = ()) -> list[Run]:
    """The same plan, where runs that differ in lambda alone and are not finished are done by one program."""

    def apart_from_lambda(run: Run) -> tuple:
        values = flatten(run.config.to_dict())
        return run.spec, tuple(sorted((key, repr(value)) for key, value in values.items() if key != LAMBDA))

    groups: dict[tuple, list[Run]] = {}
    for run in plan:
        if is_trained(run.config) and run.name not in finished:
            groups.setdefault(apart_from_lambda(run), []).append(run)
    lams = {
        run.name: tuple(sorted(each.config.loss.lam for each in group))
        for group in groups.values()
        if len(group) > 1
        for run in group
    }
    return [dataclasses.replace(run, together=lams.get(run.name, ())) for run in plan]


def programs(runs: Sequence[Run]) -> dict[Run, list[Run]]:
    """One run of each process, with all runs that the process does."""
    of_process: dict[str, list[Run]] = {}
    for run in runs:
        of_process.setdefault(run.program, []).append(run)
    return {group[0]: group for group in of_process.values()}


# How things stand


def state_of(run: Run) -> tuple[str, str]:
    """(finished, cut off, not begun or failed; a remark: the last step, or the error)."""
    if finished_step(run) is not None:
        return FINISHED, ""
    error = error_of(run)
    if error:
        return FAILED, error
    if not (run.workdir / CONFIG_FILE).exists():
        return NOT_BEGUN, ""
    if not is_trained(run.config):
        return CUT_OFF, ""
    return CUT_OFF, f"step {last_row(run.workdir).get('step', 0)}/{run.config.train.steps}"


def finished_step(run: Run) -> int | None:
    """The step that was evaluated, if it is the run's last one; 0 for what isn't trained."""
    try:
        summary = json.loads((run.workdir / "evaluation" / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    last = run.config.train.steps if is_trained(run.config) else 0
    return last if last == 0 or summary.get("step") == last else None


def last_row(workdir: Path) -> dict:
    """The last row of a training step in `metrics.jsonl`; empty before there is one."""
    for line in reversed(tail(workdir / "metrics.jsonl")):
        try:
            row = json.loads(line)
        except ValueError:  # cut off by a kill, or by where the tail begins
            continue
        if isinstance(row, dict) and row.get("kind") == "train":
            return row
    return {}


def tail(path: Path) -> list[str]:
    """The last lines of a text file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def mark_start(log: Path, command: Sequence[str]) -> None:
    """Begins a new attempt in a run's log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(f"{_STARTED}{time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(command)}\n")


def mark_end(log: Path, status: int) -> None:
    """Writes how the attempt ended. One that was told to end is cut off, not failed, and leaves no such line."""
    if status != -signal.SIGTERM:
        with log.open("a") as file:
            file.write(f"{_ENDED}{status}\n")


def error_of(run: Run) -> str:
    """The error that ended the last attempt, in one line; empty if none did."""
    lines = tail(run.log)
    starts = [number for number, line in enumerate(lines) if line.startswith(_STARTED)]
    lines = [line for line in lines[starts[-1] + 1 if starts else 0 :] if line.strip()]
    if not lines or not lines[-1].startswith(_ENDED):
        return ""
    status = int(lines.pop().removeprefix(_ENDED))
    if status == 0:
        return "" if finished_step(run) is not None else "ended without an evaluation"
    if status == -signal.SIGKILL:
        return "killed by signal 9; out of memory, or by hand"
    if status < 0:
        return f"killed by signal {-status}"
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {status}"])[-1].strip()


def check_output(output: Path, plan: Sequence[Run]) -> None:
    """Raises a UserError if the study's folder holds what is none of ours, or runs of other settings."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, expected a folder for the study")
    ours = {LOGS, REPORT, COMPILED, SLURM, LOCK, *(run.name for run in plan)}
    for path in sorted(output.iterdir()) if output.is_dir() else ():
        if path.name not in ours and not (path / CONFIG_FILE).exists():
            raise UserError(f"{path}: is neither a run nor part of a study; expected an empty --output or a study's")
    for run in plan:
        try:
            check_same_run(run.config, run.workdir)
        except UserError as error:
            raise UserError(str(error).replace("--workdir", "--output")) from error


def environment(output: Path) -> dict[str, str]:
    """What the runs find in their environment: programs that one has compiled are there for the others."""
    compiled = {
        "JAX_COMPILATION_CACHE_DIR": str((output / COMPILED).absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
    }
    return compiled | os.environ
