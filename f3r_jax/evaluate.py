"""Evaluates a checkpoint on the test cases of its config: scores before and after, pictures, a table.

  python -m f3r_jax.evaluate --workdir=runs/mrb [--step=120] [--learn2reg]

Writes <workdir>/evaluation/: cases.csv (a row a case and organ), summary.json, table.md, and for the first cases
pictures and an .npz with displacement, warped volume and warped labels. Everything comes from the checkpoint, which
holds its config, and from the data; SyN has no checkpoint and registers anew. A case scored before a kill is not scored
again. With --learn2reg also <workdir>/evaluation/learn2reg/: the challenge's submission files and scores.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from f3r_jax import cli, learn2reg, models, pictures, results, submissions, syn
from f3r_jax.data.datasets import Case, Dataset, open_dataset, organs_of
from f3r_jax.data.pairs import Pair
from f3r_jax.defaults import trains
from f3r_jax.errors import UserError
from f3r_jax.predict import Registration, load_network, make_predictor, register
from f3r_jax.programs import keep_compiled_programs
from f3r_jax.progress import Progress
from f3r_jax.record import AGAINST_FOLDING, FOLDING_LIMIT, read_rows
from f3r_jax.workdir import CONFIG_FILE, read_config, read_origin, versions, write_text

FOLDER = "evaluation"
CHALLENGE = "learn2reg"  # folder in it
SUBMITTED = ("validation", "test")  # the challenge's registration_val and registration_test


def evaluate(
    workdir: Path, *, step: int | None = None, dataset: Dataset | None = None, drawn: int = 3, challenge: bool = False
) -> dict:
    """Scores one checkpoint of a run on its test cases and writes the files; returns the summary.

    Args:
      workdir: the run's folder.
      step: which checkpoint; the newest if None.
      dataset: the run's data set, opened from its config if None.
      drawn: how many cases get pictures.
      challenge: whether to write Learn2Reg's submission files and scores too, of the validation cases as well.

    Raises:
      UserError: no such checkpoint, it doesn't fit its config, or the data are not such as Learn2Reg scores.
    """
    method = open_method(workdir, step)
    config = method.config
    if dataset is None:
        dataset = open_dataset(config.data, seed=config.seed)
    names = dataset.split["test"]
    if not names:
        raise UserError(
            f"{config.data.root}: no test cases, expected data.test_cases of 1 or more, or a split that names some"
        )
    submitted = [name for split in SUBMITTED for name in dataset.split[split]] if challenge else []
    files = submissions.open_pairs(config.data, submitted) if challenge else {}
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)

    scored = _Scored(folder / "scored.jsonl", method.step)
    if method.compiles:  # so that the time of a case holds no compilation
        method.register(dataset.load(names[0]))
    organs = organs_of(config.data)
    with Progress("evaluating", len(names)) as progress:
        for n, name in enumerate(names):
            if name not in scored.rows:
                case = dataset.load(name)
                start = time.perf_counter()
                result = method.register(case)
                seconds = time.perf_counter() - start
                if n < drawn:
                    keep(folder / f"{name}.npz", result)
                    draw(folder, case, result, organs, method.label)
                scored.add(name, {"seconds": seconds, **results.score(case, result, organs)})
            progress.advance()

    summary = summarise(method, [scored.rows[name] for name in names])
    summary |= {"versions": versions(), "origin": read_origin(workdir)}
    rows = read_rows(workdir / "metrics.jsonl")
    kinds = {kind: [_numbers(row) for row in rows if row["kind"] == kind] for kind in ("train", "validation")}
    if rows:
        pictures.training_curves(folder / "training.png", kinds["train"], kinds["validation"])
    write_text(folder / "cases.csv", results.cases_csv(names, [scored.rows[name] for name in names]))
    write_text(folder / "table.md", results.table(summary))
    write_text(folder / "summary.json", json.dumps(results.finite(summary), indent=2) + "\n")
    if challenge:
        submit(folder / CHALLENGE, method, dataset, files)
    scored.forget()
    return summary


class Method(NamedTuple):
    """What is evaluated: a network from a checkpoint, or a classical method."""

    label: str
    config: ConfigDict
    register: Callable[[Case], Registration]
    parameters: int  # that were trained
    step: int | None  # of the checkpoint
    compiles: bool


def open_method(workdir: Path, step: int | None = None) -> Method:
    """The method of a run: from its checkpoint of `step`, or the newest; SyN from its config.

    Raises:
      UserError: no such run or checkpoint, it doesn't fit its config, or a package is missing.
    """
    # The config beside a run tells a method without checkpoints; those of a network hold their own.
    if (workdir / CONFIG_FILE).is_file() and not trains(config := read_config(workdir)):
        if step is not None:
            raise UserError(f"{workdir}: SyN is not trained, expected no --step")
        syn.check()
        register_with_syn = partial(syn.register, settings=config.syn, seed=config.seed)
        return Method(syn.LABEL, config, register_with_syn, parameters=0, step=None, compiles=False)
    network, params, config, step = load_network(workdir, step)
    return Method(
        models.label(config.model),
        config,
        partial(register, make_predictor(network), params),
        parameters=models.count_parameters(network),
        step=step,
        compiles=True,
    )


def summarise(method: Method, rows: Sequence[dict]) -> dict:
    """Mean and standard deviation over cases, in the layout that studies read."""
    return {
        "method": method.label,
        "direction": method.config.data.direction,
        "cases": len(rows),
        "parameters": method.parameters,
        "step": method.step,
        "seconds_per_pair": float(np.mean([row["seconds"] for row in rows])),
        "device": jax.devices()[0].platform if method.compiles else "cpu",
        "folding_percent": results.spread([row["folding_percent"] for row in rows]),
        "sd_log_jacobian": results.spread([row["sd_log_jacobian"] for row in rows]),
        **results.summarise_scores(rows),
        "moving": results.summarise_scores([row["moving"] for row in rows]),
    }


def submit(folder: Path, method: Method, dataset: Dataset, files: dict[str, Pair]) -> dict:
    """Registers the cases with these files again, writes the challenge's submissions and scores; returns the latter.

    The layout is {split: {"cases": {name: {metric: {"mean", "detailed"}}}, "aggregates": {metric: {"mean", ...}}}}.
    """
    folder.mkdir(exist_ok=True)
    summary = {}
    with Progress("submitting", len(files)) as progress:
        for split in SUBMITTED:
            cases = {}
            for name in dataset.split[split]:
                case = dataset.load(name)
                cases[name] = submissions.submit(folder, method.register(case).displacement, case, files[name])
                progress.advance()
            if cases:
                summary[split] = {"cases": cases, "aggregates": learn2reg.aggregate(list(cases.values()))}
    write_text(folder / "summary.json", json.dumps(results.finite(summary), indent=2) + "\n")
    return summary


def keep(path: Path, result: Registration) -> None:
    """Keeps what was registered, for reports that set methods side by side."""
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("wb") as file:
        np.savez_compressed(file, **{name: array for name, array in result._asdict().items() if array is not None})
    os.replace(beside, path)


def draw(folder: Path, case: Case, result: Registration, organs: dict, method: str) -> None:
    """The pictures of one case: overlay, checkerboard, deformation."""
    shared = {"fixed": case.fixed, "spacing": case.spacing, "title": f"{method}, {case.name}"}
    images = {"moving": case.moving, "warped": result.warped}
    labels = {
        "fixed_labels": case.fixed_labels,
        "moving_labels": case.moving_labels,
        "warped_labels": result.warped_labels,
    }
    pictures.overlay(folder / f"{case.name}_overlay.png", **shared, **images, **labels, organs=organs)
    pictures.checkerboard(folder / f"{case.name}_checkerboard.png", **shared, **images)
    pictures.deformation(folder / f"{case.name}_deformation.png", **shared, displacement=result.displacement)


class _Scored:
    """The scores of the cases done so far, on disk, so that a killed evaluation goes on where it was."""

    def __init__(self, path: Path, step: int | None) -> None:
        self._path, self._step = path, step
        self.rows = {row["name"]: row["scores"] for row in read_rows(path) if row["step"] == step}
        write_text(path, "".join(self._line(name) for name in self.rows))

    def add(self, name: str, scores: dict) -> None:
        self.rows[name] = scores
        with self._path.open("a") as file:
            file.write(self._line(name))

    def forget(self) -> None:
        self._path.unlink()

    def _line(self, name: str) -> str:
        return json.dumps({"step": self._step, "name": name, "scores": self.rows[name]}) + "\n"


def _numbers(row: dict) -> dict:
    return {key: value for key, value in row.items() if key != "kind"}


def report(summary: dict, workdir: Path) -> None:
    """Prints the table and where the files are."""
    print(f"\n{results.table(summary)}\nevaluation: {workdir / FOLDER}")
    if summary["folding_percent"]["mean"] > FOLDING_LIMIT:
        print(f"WARNING: over {FOLDING_LIMIT} % of voxels fold; {AGAINST_FOLDING}")


if __name__ == "__main__":
    _WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
    _STEP = flags.DEFINE_integer("step", None, "Which checkpoint; the newest by default.")
    _PICTURES = flags.DEFINE_integer("pictures", 3, "How many cases get pictures.", lower_bound=0)
    _LEARN2REG = flags.DEFINE_bool("learn2reg", False, "Write Learn2Reg's submission files and scores too.")

    def main(argv: Sequence[str]) -> None:
        """Reads the flags, evaluates and prints."""
        if argv[1:] or _WORKDIR.value is None:
            raise UserError("expected --workdir=FOLDER [--step=N] [--pictures=N] [--learn2reg]")
        keep_compiled_programs()
        workdir = Path(_WORKDIR.value)
        summary = evaluate(workdir, step=_STEP.value, drawn=_PICTURES.value, challenge=_LEARN2REG.value)
        report(summary, workdir)
        if _LEARN2REG.value:
            print(f"submission files and the challenge's scores: {workdir / FOLDER / CHALLENGE}")

    cli.run(main)
