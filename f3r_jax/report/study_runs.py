"""Reads the runs of a study, and lists what could not be read.

A run is a folder with a `config.json`, as training or evaluation leaves it. Its numbers come from its evaluation,
`evaluation/cases.csv` and `summary.json`.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.config import flatten, is_trained
from f3r_jax.evaluate.evaluation import FOLDER
from f3r_jax.evaluate.summary import Summary
from f3r_jax.report import paper_results, run_scores
from f3r_jax.report.run_scores import CaseKey, Scores, UnreadableRun
from f3r_jax.workdir import checkpoints
from f3r_jax.workdir.log import read_rows

# Settings that change neither the trained network nor the cases.
NO_RECIPE = ("seed", "data.root", "train.checkpoint_every", "train.keep_checkpoints", "train.validate_every")


class Setting(NamedTuple):
    """What runs must share to be in one table."""

    direction: str
    source: str
    root: str  # of NIfTI pairs; empty for a phantom, whose root is only its location
    shape: tuple[int, ...]
    spacing: tuple[float, ...]  # mm


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The folder of a run and its config."""

    path: Path
    config: ConfigDict

    @property
    def trained(self) -> bool:
        """Whether it is a network, with training steps and a lambda."""
        return is_trained(self.config)

    @property
    def system(self) -> str:
        """Its name in `paper_results`: the variant of an F3RNet, otherwise the network's name."""
        model = self.config.model
        return model.variant if model.name == "f3rnet" else model.name

    @property
    def lam(self) -> float | None:
        """The weight of the gradient penalty; None if nothing is trained."""
        return float(self.config.loss.lam) if self.trained else None

    @property
    def setting(self) -> Setting:
        """The data that it was trained and tested on."""
        data = self.config.data
        root = str(data.root) if data.source == "nifti" else ""
        return Setting(data.direction, data.source, root, tuple(data.shape), tuple(map(float, data.spacing)))

    @property
    def recipe(self) -> dict[str, object]:
        """Every setting that its numbers depend on, except the seed, as a flat dict."""
        keys = flatten(json.loads(self.config.to_json()))
        if not self.trained:
            keys = {key: value for key, value in keys.items() if not key.startswith(("loss.", "optim.", "train."))}
        return {key: value for key, value in sorted(keys.items()) if key not in NO_RECIPE}


@dataclasses.dataclass(frozen=True)
class Run(RunFolder):
    """A run that was read."""

    summary: Summary
    cases: dict[CaseKey, Scores]
    rows: list[dict[str, Any]]  # of metrics.jsonl; none for a method that isn't trained


class Problem(NamedTuple):
    """Something that could not be read, and why."""

    what: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Study:
    """The runs that were read, and what could not be."""

    runs: list[Run]
    problems: list[Problem]
    folders: int  # number of folders with a run, readable or not


def read_study(paths: Sequence[Path]) -> Study:
    """Reads all runs in the given folders. Each folder is a run, or contains runs at any depth."""
    runs, problems, seen = [], [], set()
    for path in paths:
        if not path.is_dir():
            problems.append(Problem(str(path), "no such folder"))
            continue
        folders = list(_run_folders(path))
        if not folders:
            problems.append(Problem(str(path), "holds no run: no config.json in it or below it"))
        for folder in folders:
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            try:
                runs.append(read_run(folder))
            except UnreadableRun as error:
                problems.append(Problem(str(folder), str(error)))
    return Study(runs, problems, len(seen))


def read_run(folder: Path) -> Run:
    """Reads one run.

    Raises:
      UnreadableRun: it is half-finished, not evaluated or broken.
    """
    config = ConfigDict(_with_tuples(run_scores.read_json(folder / "config.json")))
    try:
        found = RunFolder(folder, config)
        _ = found.system, found.lam, found.recipe, config.seed
        if found.setting.direction not in paper_results.DIRECTIONS:
            raise ValueError(f"data.direction is {found.setting.direction!r}")
        wanted = config.train.steps if found.trained else 0
    except (AttributeError, TypeError, ValueError) as error:
        raise UnreadableRun(f"config.json: not that of a run ({_one_line(error)})") from error
    try:
        rows = read_rows(folder / "metrics.jsonl") if found.trained else []
        trained_rows = [row["step"] for row in rows if row["kind"] == "train"]
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UnreadableRun(f"metrics.jsonl: not as training writes it ({_one_line(error)})") from error
    done = max([*checkpoints.steps(folder), *trained_rows], default=0)
    progress = f"half-finished, {done} of {wanted} training steps"
    if not (folder / FOLDER / "summary.json").exists():
        raise UnreadableRun(f"{progress}; not evaluated" if done < wanted else "not evaluated")
    summary = run_scores.read_summary(folder / FOLDER / "summary.json")
    cases = run_scores.read_cases(folder / FOLDER / "cases.csv", summary)
    if max(done, summary.step or 0) < wanted:
        raise UnreadableRun(f"{progress}; evaluated at step {summary.step}, which would not compare fairly")
    return Run(folder, config, summary, cases, rows)


def regions(runs: Sequence[Run]) -> list[str]:
    """The ROIs that all runs have: the paper's first, in its order."""
    shared = (
        set.intersection(*({run_scores.roi_of(organ) for organ in run.summary.after.organs} for run in runs))
        if runs
        else set()
    )
    first = [roi for roi in paper_results.ROIS if roi in shared]
    return first + sorted(shared - set(first))


def _run_folders(path: Path) -> Iterator[Path]:
    for folder, inside, files in os.walk(path):
        inside.sort()
        if "config.json" in files:
            inside.clear()  # a run contains no other run
            yield Path(folder)


def _with_tuples(tree: object) -> object:
    """Turns lists back into tuples, which JSON can't store."""
    if isinstance(tree, dict):
        return {key: _with_tuples(value) for key, value in tree.items()}
    return tuple(map(_with_tuples, tree)) if isinstance(tree, list) else tree


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
