"""Runs of a study: the plan, and the state of each run, which is read from its folder.

A run is `python -m f3r_jax.main` with a config, settings and its own folder. A study's folder holds

  NAME/            one run, named after its settings, such as mrb_lam0.5_ct_to_mr_seed0
  logs/NAME.log    the output of the run, attempt after attempt
  report/          the report on all runs
  engine.md        the table of `engine_ablation.py`
  compiled/        functions that JAX compiled, shared by the runs of one network
  slurm/           files of submitit
"""

import dataclasses
import json
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from f3r_jax.common import cli
from f3r_jax.common.errors import UserError
from f3r_jax.common.locks import LOCK_FILE
from f3r_jax.config import flatten, is_trained
from f3r_jax.workdir.metadata import CONFIG_FILE, check_same_run
from study.logs import killed, last_attempt, tail

ROOT = Path(__file__).resolve().parent.parent.parent
MAIN = (sys.executable, "-m", "f3r_jax.main")
FINISHED, CUT_OFF, NOT_BEGUN, FAILED = "finished", "cut off", "not begun", "failed"
LOGS, REPORT, COMPILED, SLURM = "logs", "report", "compiled", "slurm"
TABLE = "engine.md"
PARTIAL_SECTIONS = ("loss", "optim", "train", "syn")  # sections that only some configs have
LAMBDA = "loss.lam"


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the main job. `spec` is a config file with an optional `:option`."""

    name: str
    output: Path
    spec: str
    settings: tuple[str, ...]  # KEY=VALUE; later ones override earlier ones
    config: ConfigDict = dataclasses.field(compare=False, repr=False)
    together: tuple[float, ...] = ()  # lambdas of the runs that are trained in one process; empty: only this run
    part: str = ""  # of the name: what tells apart runs of one config that differ in other settings

    @property
    def workdir(self) -> Path:
        """The run's own folder."""
        return self.output / self.name

    @property
    def log(self) -> Path:
        """The file for the run's output. It is not in the run's folder, which must be empty at the start."""
        return self.output / LOGS / f"{self.program}.log"

    @property
    def program(self) -> str:
        """Name of the process: the name of the run, or one with all lambdas that the process trains."""
        return self._for_lambda("+".join(f"{lam:g}" for lam in self.together)) if self.together else self.name

    @property
    def command(self) -> list[str]:
        """Command line of the process. The same command resumes an interrupted run."""
        if not self.together:
            settings = (f"--config.{setting}" for setting in self.settings)
            return [*MAIN, f"--config={self.spec}", f"--workdir={self.workdir}", *settings]
        settings = (f"--config.{setting}" for setting in self.settings if not setting.startswith(f"{LAMBDA}="))
        workdir, lams = self.output / self._for_lambda("{lam}"), ",".join(f"{lam:g}" for lam in self.together)
        return [*MAIN, f"--config={self.spec}", f"--workdir={workdir}", f"--lambdas={lams}", *settings]

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the process; the runs of a study share their compiled functions."""
        compiled = {
            "JAX_COMPILATION_CACHE_DIR": str((self.output / COMPILED).absolute()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1",
        }
        return compiled | os.environ

    def _for_lambda(self, text: str) -> str:
        return self.name.replace(f"_lam{self.config.loss.lam:g}_", f"_lam{text}_")


# The plan


def config_path(name: str) -> str:
    """Path of the project's config of that name, relative to the current folder if it is inside."""
    path = ROOT / "configs" / f"{name}.py"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def make_run(output: Path, spec: str, settings: Iterable[str], *, part: str = "", **varied: object) -> Run:
    """A run of a config with settings `KEY=VALUE`; a study varies `lam`, `direction` and `seed`.

    `part` becomes a part of its name.

    Raises:
      UserError: no such config, or an unknown or invalid setting.
    """
    keys = {"lam": LAMBDA, "direction": "data.direction", "seed": "seed"}
    settings = (*settings, *(f"{keys[key]}={value}" for key, value in varied.items() if value is not None))
    # SyN has no training settings, and a network has no settings of SyN.
    absent = {section for section in PARTIAL_SECTIONS if section not in load_config(spec, ())}
    settings = tuple(setting for setting in settings if setting.partition(".")[0] not in absent)
    config = load_config(spec, settings)
    file, _, option = spec.partition(":")
    parts = [Path(file).stem, option, part, f"lam{config.loss.lam:g}" if is_trained(config) else ""]
    name = "_".join(filter(None, [*parts, config.data.direction, f"seed{config.seed}"]))
    return Run(name, output, spec, settings, config, part=part)


def load_config(spec: str, settings: Sequence[str]) -> ConfigDict:
    """Loads the config as the main job will."""
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
    """The plan without duplicate runs; raises a UserError if two different runs would share a folder."""
    runs: dict[str, Run] = {}
    for run in plan:
        other = runs.setdefault(run.name, run)
        if other.config.to_json() != run.config.to_json() or Path(other.spec).name != Path(run.spec).name:
            raise UserError(f"{other.spec} and {run.spec}: both make a run {run.name}; rename one of the files")
    return list(runs.values())


def together(plan: Sequence[Run], finished: Collection[str] = ()) -> list[Run]:
    """The same plan, where one process trains all unfinished runs that only differ in lambda."""

    def all_but_lambda(run: Run) -> tuple:
        values = flatten(run.config.to_dict())
        return run.spec, tuple(sorted((key, repr(value)) for key, value in values.items() if key != LAMBDA))

    groups: dict[tuple, list[Run]] = {}
    for run in plan:
        if is_trained(run.config) and run.name not in finished:
            groups.setdefault(all_but_lambda(run), []).append(run)
    lams = {
        run.name: tuple(sorted(each.config.loss.lam for each in group))
        for group in groups.values()
        if len(group) > 1
        for run in group
    }
    return [dataclasses.replace(run, together=lams.get(run.name, ())) for run in plan]


def programs(runs: Sequence[Run]) -> dict[Run, list[Run]]:
    """The runs of each process, by the first of them."""
    of_process: dict[str, list[Run]] = {}
    for run in runs:
        of_process.setdefault(run.program, []).append(run)
    return {group[0]: group for group in of_process.values()}


# The state of runs


def state_of(run: Run) -> tuple[str, str]:
    """(state, remark): finished, cut off, not begun or failed; the remark is the last step or the error."""
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
    """The evaluated step if it is the last one of the run, else None; 0 for a method without training."""
    try:
        summary = json.loads((run.workdir / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    last = run.config.train.steps if is_trained(run.config) else 0
    return last if last == 0 or summary.get("step") == last else None


def last_row(workdir: Path) -> dict:
    """The last row of a train step in `metrics.jsonl`, or {} if there is none."""
    for line in reversed(tail(workdir / "metrics.jsonl")):
        try:
            row = json.loads(line)
        except ValueError:  # incomplete: the run was killed, or the tail begins inside the line
            continue
        if isinstance(row, dict) and row.get("kind") == "train":
            return row
    return {}


def error_of(run: Run) -> str:
    """The error that ended the last attempt, in one line; empty if there was none."""
    lines, status = last_attempt(run.log)
    if status is None:
        return ""
    if status == 0:
        return "" if finished_step(run) is not None else "ended without an evaluation"
    if status < 0:
        return killed(status)
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit status {status}"])[-1].strip()


def check_output(output: Path, plan: Sequence[Run]) -> None:
    """Raises a UserError if the study's folder holds foreign files or runs with other settings."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output}: is a file, expected a folder for the study")
    known = {LOGS, REPORT, TABLE, COMPILED, SLURM, LOCK_FILE, *(run.name for run in plan)}
    for path in sorted(output.iterdir()) if output.is_dir() else ():
        if path.name not in known and not (path / CONFIG_FILE).exists():
            raise UserError(f"{path}: is not part of a study; expected --output to be empty or the folder of a study")
    for run in plan:
        try:
            check_same_run(run.config, run.workdir)
        except UserError as error:
            raise UserError(str(error).replace("--workdir", "--output")) from error
