"""The text of a report's tables and of their notes, made from the numbers."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from f3r_jax.evaluate.controls import SIGNIFICANT
from f3r_jax.report import paper_results
from f3r_jax.report.comparison import CHOSEN_BY, HARDEST, Row, Table, differing
from f3r_jax.report.study_runs import Run, Setting

SCORES = {"asd_mm": "ASD, mm", "dice": "Dice, %", "hd95_mm": "HD95, mm"}


class Measure(NamedTuple):
    """Display name, unit and number of decimals of a measure."""

    name: str
    unit: str
    digits: int

    @property
    def title(self) -> str:
        """The name with a capital first letter."""
        return self.name[0].upper() + self.name[1:]


MEASURES = {HARDEST: Measure("liver ASD", "mm", 2), CHOSEN_BY: Measure("mean Dice", "%", 1)}
SETTINGS = {"loss.lam": "λ", "optim.learning_rate": "learning rate", "train.steps": "steps", "loss.mind": "MIND"}


class Text(NamedTuple):
    """A cell: its text, whether it is the best of its column, and lines in small type below."""

    shown: str
    best: bool = False
    small: tuple[str, ...] = ()


class TextTable(NamedTuple):
    """A table as text: headings in groups, and rows of a label, a note below it and cells."""

    groups: list[tuple[str, int]]
    heads: list[str]
    rows: list[tuple[str, str, list[Text]]]

    @property
    def full_heads(self) -> list[str]:
        """The headings in one line each, for formats without groups of headings."""
        groups = [name for name, span in self.groups for _ in range(span)]
        return [f"{group}, {head}" if head else group for head, group in zip(self.heads, groups, strict=True)]


def data_of(setting: Setting) -> str:
    """Describes the data of a setting, as in "phantom, 64 × 48 × 48 voxels of 4.8 mm"."""
    shape = " × ".join(map(str, setting.shape))
    lengths = setting.spacing[:1] if len(set(setting.spacing)) == 1 else setting.spacing
    data = "phantom" if setting.source == "phantom" else setting.root
    return f"{data}, {shape} voxels of {' × '.join(f'{length:g}' for length in lengths)} mm"


def number(value: float | None, digits: int = 2) -> str:
    """Formats a number; an en dash if it is unknown."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}" if math.isfinite(value) else "∞"


def format_mean_std(mean: float, std: float, digits: int = 2) -> str:
    """As in 2.19 ± 0.37. If an organ is lost in a case, the mean is infinite and has no deviation."""
    return number(mean, digits) if math.isnan(std) else f"{number(mean, digits)} ± {number(std, digits)}"


def p_value(p: float) -> str:
    """As in p = 0.03."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.1 else f"p = {p:.2f}"


def listed(words: Sequence[str]) -> str:
    """As in a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def count(n: int, word: str) -> str:
    """As in 1 run, 2 runs."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def recipe(run: Run, keys: Sequence[str]) -> str:
    """The values of some settings of a run, as in λ 0.5, learning rate 0.0005."""
    return ", ".join(f"{SETTINGS.get(key, key)} {_plain(run.recipe.get(key))}" for key in keys)


def grid(table: Table) -> TextTable:
    """Table 2 or 3: the paper's columns, then folding and HD95."""
    scores = {"asd_mm": table.rois, "dice": [*table.rois, "mean"], "hd95_mm": table.rois}
    spans = {score: (SCORES[score], len(rois)) for score, rois in scores.items()}
    names = {score: [roi.replace("_", " ").capitalize() for roi in rois] for score, rois in scores.items()}
    rows = []
    for row in table.rows:
        cells = {score: [_cell(table, row, f"{score}/{roi}") for roi in rois] for score, rois in scores.items()}
        cost, folding = _cost(table, row), table.cell(row, "folding_percent")
        folds = Text(format_mean_std(folding.mean, folding.std, 3) if row.runs else "–")
        rows.append((row.label, _chosen(row), cells["asd_mm"] + cells["dice"] + cost + [folds] + cells["hd95_mm"]))
    costs = [("Parameters", 1), ("Seconds per pair", 2), ("Folding, %", 1)]
    return TextTable(
        [spans["asd_mm"], spans["dice"], *costs, spans["hd95_mm"]],
        [*names["asd_mm"], *names["dice"], "", "CPU", "GPU", "", *names["hd95_mm"]],
        rows,
    )


def notes(table: Table) -> list[str]:
    """The notes that explain a table."""
    lines = [_legend(table)]
    several = [row for row in table.rows if row.runs and differing(row.tried)]
    if several:
        choices = "; ".join(_choice(row) for row in several)
        lines.append(
            "For a method that was run with several settings, the table shows the one with the highest mean Dice on "
            f"these test cases, as in the paper, of those with the most seeds: {choices}."
        )
    seeded = [row for row in table.rows if len(row.seeds) > 1]
    if seeded:
        spreads = "; ".join(f"{row.label} ({len(row.seeds)} seeds) {_seed_spread(table, row)}" for row in seeded)
        lines.append(f"Standard deviation between the means of the seeds (seeds ± in the table): {spreads}.")
    lines += [
        f"FAIM: the network that its authors published has {paper_results.FAIM_PUBLISHED:,} parameters, f3r_jax's "
        f"{row.parameters:,}; the paper prints {paper_results.TABLE_2['faim'].parameters} M, "
        "which no published FAIM has."
        for row in table.rows
        if row.system == "faim"
    ]
    present = {row.system for row in table.rows}
    absent = [
        row.label for system, row in paper_results.TABLES[table.setting.direction].items() if system not in present
    ]
    if absent:
        lines.append(f"No run of {listed(absent)} was given.")
    return lines


def _legend(table: Table) -> str:
    counts = sorted({len(row.cases) for row in table.rows})
    cases = count(counts[0], "test case")
    if len(counts) > 1:
        cases = f"{counts[0]} to {counts[-1]} test cases, not the same for all rows"
    return (
        f"Mean ± standard deviation over {cases}. The best mean of a column is bold. Below are the paper's numbers, on "
        "its own data. p: Wilcoxon's signed-rank test, paired by case, against the best row; two-sided and not "
        f"corrected for the number of tests{_smallest_p(counts[0])}. Mean: over {listed(table.rois)} in each case. The "
        "kidney's scores are the mean of both kidneys. Seconds are wall-clock time without compilation."
    )


def _chosen(row: Row) -> str:
    if not row.runs:
        return "before registration"
    parts = [] if row.lam is None else [f"λ {row.lam:g}"]
    return ", ".join([*parts, *([count(len(row.seeds), "seed")] if len(row.seeds) > 1 else [])])


def _cell(table: Table, row: Row, measure: str) -> Text:
    cell = table.cell(row, measure)
    small = []
    if cell.printed is not None:
        small.append(f"paper {format_mean_std(*cell.printed)}")
    if cell.seeds_std is not None:
        small.append(f"seeds ± {number(cell.seeds_std)}")
    if cell.p is not None:
        small.append(p_value(cell.p))
    return Text(format_mean_std(cell.mean, cell.std), cell.best, tuple(small))


def _cost(table: Table, row: Row) -> list[Text]:
    """The cells of parameters and seconds."""
    printed = paper_results.TABLES[table.setting.direction].get(row.system)
    theirs = f"paper {printed.parameters:.3f} M" if printed and printed.parameters else ""
    cells = [Text(f"{row.parameters:,}" if row.parameters else "–", small=(theirs,) if theirs else ())]
    for device in ("cpu", "gpu"):
        seconds = getattr(printed, f"seconds_{device}") if printed else None
        cells.append(Text(number(row.seconds(device)), small=(f"paper {seconds:g}",) if seconds else ()))
    return cells


def _choice(row: Row) -> str:
    keys = differing(row.tried)
    tried = {recipe(run, keys) for run in row.tried}
    return f"{row.label} {recipe(row.runs[0], keys)} (of {len(tried)})"


def _seed_spread(table: Table, row: Row) -> str:
    return ", ".join(
        f"{words.name} {number(table.cell(row, measure).seeds_std, words.digits + 1)} {words.unit}"
        for measure, words in MEASURES.items()
        if (row.system, measure) in table.cells
    )


def _smallest_p(n: int) -> str:
    """The smallest p that n cases can reach, if it matters."""
    smallest = min(1.0, 2.0 ** (1 - n))
    if smallest >= SIGNIFICANT:
        return f"; the smallest possible p of {count(n, 'case')} is {smallest:.2g}, which is not significant"
    return f"; the smallest possible p of {n} cases is {smallest:.2g}" if n < 12 else ""


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
