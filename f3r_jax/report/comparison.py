"""Compares the methods of a study: the rows of Tables 2 and 3, and Dice over lambda.

A measure is a score and a region, as in `run_scores`: "asd_mm/liver", "dice/mean", "folding_percent".
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from f3r_jax.evaluate.metrics import Statistics, summarise
from f3r_jax.report import paper_results, run_scores, study_runs
from f3r_jax.report.run_scores import CaseKey, Scores
from f3r_jax.report.study_runs import Run, Setting

HIGHER_IS_BETTER = ("dice",)
CHOSEN_BY, HARDEST = "dice/mean", "asd_mm/liver"


@dataclasses.dataclass(frozen=True)
class Cell:
    """A measure of a row over its cases."""

    mean: float
    std: float
    count: int
    best: bool
    p: float | None  # of the paired test against the best row; None for the best row, or without shared cases
    seeds: tuple[float, ...]  # the mean of each seed
    printed: paper_results.Spread | None

    @property
    def seeds_std(self) -> float | None:
        """The standard deviation between the means of the seeds; None for one seed."""
        return float(np.std(self.seeds, ddof=1)) if len(self.seeds) > 1 else None


@dataclasses.dataclass(frozen=True)
class Row:
    """A method at its best setting, or "moving", the pair before registration."""

    label: str
    system: str
    runs: list[Run]  # the runs that the row is computed from, one per seed
    tried: list[Run]  # all runs of the method
    cases: dict[CaseKey, Scores]

    @property
    def lam(self) -> float | None:
        """Lambda of its runs."""
        return self.runs[0].lam if self.runs else None

    @property
    def seeds(self) -> list[int]:
        """Seeds of its runs."""
        return sorted({run.config.seed for run in self.runs})

    @property
    def parameters(self) -> int | None:
        """Number of trained parameters."""
        return self.runs[0].summary.parameters if self.runs else None

    def seconds(self, device: str) -> float | None:
        """Mean seconds per pair on "cpu" or "gpu", over all runs of the method: lambda does not change the time."""
        here = [run.summary.seconds_per_pair for run in self.tried if _device(run) == device]
        return run_scores.mean(here) if here else None


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one setting, in the paper's order, and their cells."""

    setting: Setting
    rois: list[str]
    rows: list[Row]
    cells: dict[tuple[str, str], Cell]  # (system, measure)

    def cell(self, row: Row, measure: str) -> Cell:
        """The cell of a row and a measure."""
        return self.cells[row.system, measure]

    def row(self, system: str) -> Row:
        """The row of a system."""
        return next(row for row in self.rows if row.system == system)


class Point(NamedTuple):
    """Mean and standard deviation of the Dice over the cases at one lambda."""

    lam: float
    mean: float
    std: float


def tables_of(runs: Sequence[Run]) -> list[Table]:
    """One table per setting: CT to MR first, then by data."""
    settings = sorted(
        {run.setting for run in runs}, key=lambda s: (list(paper_results.DIRECTIONS).index(s.direction), s)
    )
    return [_table(setting, [run for run in runs if run.setting == setting]) for setting in settings]


def measures(rois: Sequence[str]) -> list[str]:
    """All measures that a table shows."""
    return [
        *(f"asd_mm/{roi}" for roi in rois),
        *(f"dice/{roi}" for roi in (*rois, "mean")),
        *(f"hd95_mm/{roi}" for roi in rois),
        "folding_percent",
        "sd_log_jacobian",
    ]


def sign(measure: str) -> int:
    """Factor of a measure, so that less is better: -1 for Dice, otherwise 1."""
    return -1 if measure.startswith(HIGHER_IS_BETTER) else 1


def pooled(runs: Sequence[Run]) -> dict[CaseKey, Scores]:
    """The scores of every case of the runs; a case that several runs have is averaged over them."""
    found: dict[CaseKey, list[Scores]] = {}
    for run in runs:
        for key, of_case in run.cases.items():
            found.setdefault(key, []).append(of_case)
    return {
        key: {name: run_scores.mean([one[name] for one in several if name in one]) for name in several[0]}
        for key, several in found.items()
    }


def mean_of(cases: dict[CaseKey, Scores], measure: str) -> Statistics:
    """Mean, standard deviation and count over cases."""
    return summarise([of_case.get(measure, math.nan) for of_case in cases.values()])


def paired_p(first: dict[CaseKey, Scores], second: dict[CaseKey, Scores], measure: str) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test over the cases that both have; None if there are none."""
    pairs = [(first[key][measure], second[key][measure]) for key in first if key in second and measure in first[key]]
    # A lost organ has infinite distance. The rank test only needs it to be the largest.
    a, b = (np.nan_to_num(column, nan=np.nan, posinf=1e6) for column in np.array(pairs, np.float64).reshape(-1, 2).T)
    known = ~np.isnan(a) & ~np.isnan(b)
    if not known.any():
        return None
    return float(wilcoxon(a[known], b[known]).pvalue) if np.any(a[known] != b[known]) else 1.0


def sweep(runs: Sequence[Run]) -> dict[str, list[Point]]:
    """Mean Dice over lambda of each trained method, in the paper's order, with the best recipe at each lambda."""
    curves: dict[str, list[Point]] = {}
    for of_system in _by_system(runs).values():
        lams = sorted({run.lam for run in of_system if run.lam is not None})
        points = []
        for lam in lams:
            best = _best_recipe([run for run in of_system if run.lam == lam])
            cases = pooled(best)
            spread = mean_of(cases, CHOSEN_BY)
            points.append(Point(lam, spread.mean, spread.std))
        if points:
            curves[of_system[0].summary.method] = points
    return curves


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ, except the seed."""
    recipes = [run.recipe for run in runs]
    return [key for key in recipes[0] if any(recipe.get(key) != recipes[0][key] for recipe in recipes)]


def _table(setting: Setting, runs: list[Run]) -> Table:
    rows = []
    for system, of_system in _by_system(runs).items():
        chosen = _best_recipe(of_system)
        rows.append(Row(chosen[0].summary.method, system, chosen, of_system, pooled(chosen)))
    undeformed = {"folding_percent": 0.0, "sd_log_jacobian": 0.0}
    moving = {key: run_scores.before(key) | undeformed for row in rows for key in row.cases}
    rows.insert(0, Row(paper_results.TABLE_2[paper_results.MOVING].label, paper_results.MOVING, [], [], moving))
    rois = study_runs.regions(runs)
    cells: dict[tuple[str, str], Cell] = {}
    for measure in measures(rois):
        cells |= {(row.system, measure): cell for row, cell in zip(rows, _cells(rows, measure, setting), strict=True)}
    return Table(setting, rois, rows, cells)


def _cells(rows: list[Row], measure: str, setting: Setting) -> list[Cell]:
    spreads = [mean_of(row.cases, measure) for row in rows]
    judged = [sign(measure) * spread.mean for spread in spreads]
    # Without registration nothing folds and nothing deforms, so these measures have no best row.
    known = [value for value in judged if not math.isnan(value)] if "/" in measure else []
    best = judged.index(min(known)) if known else None
    return [
        Cell(
            spread.mean,
            spread.std,
            spread.count,
            best=n == best,
            p=None if best in (None, n) else paired_p(row.cases, rows[best].cases, measure),
            seeds=tuple(mean_of(pooled(of_seed), measure).mean for of_seed in _by_seed(row.runs)),
            printed=paper_results.paper_value(setting.direction, row.system, measure),
        )
        for n, (row, spread) in enumerate(zip(rows, spreads, strict=True))
    ]


def _by_system(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.system, []).append(run)
    rank = {system: n for n, system in enumerate(paper_results.SYSTEMS)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def _by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    return [[run for run in runs if run.config.seed == seed] for seed in sorted({run.config.seed for run in runs})]


def _count_seeds(runs: Sequence[Run]) -> int:
    return len({run.config.seed for run in runs})


def _best_recipe(runs: Sequence[Run]) -> list[Run]:
    """Those runs of one method whose recipe has the highest mean Dice over the cases that all recipes have.

    Only the recipes with the most seeds count: a single seed can be lucky.
    """
    recipes: dict[str, list[Run]] = {}
    for run in runs:
        recipes.setdefault(json.dumps(run.recipe), []).append(run)
    most = max(map(_count_seeds, recipes.values()))
    recipes = {recipe: several for recipe, several in recipes.items() if _count_seeds(several) == most}

    shared = set.intersection(*({key for run in several for key in run.cases} for several in recipes.values()))

    def worth(several: list[Run]) -> float:
        cases = {key: of_case for key, of_case in pooled(several).items() if key in shared or not shared}
        value = mean_of(cases, CHOSEN_BY).mean
        return -math.inf if math.isnan(value) else value

    return max(recipes.values(), key=worth)


def _device(run: Run) -> str:
    return "cpu" if run.summary.device == "cpu" else "gpu"
