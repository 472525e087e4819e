"""Findings of a study as sentences made from its numbers: the summary, and the order of the methods."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from f3r_jax.evaluate.controls import SIGNIFICANT
from f3r_jax.report import paper_results
from f3r_jax.report.comparison import HARDEST, Row, Table, paired_p, sign
from f3r_jax.report.control_tables import not_learned, undecided
from f3r_jax.report.wording import MEASURES, Text, TextTable, count, data_of, listed, number, p_value


class Finding(NamedTuple):
    """The summary of one table."""

    where: str
    sentences: list[str]


class Swap(NamedTuple):
    """Two systems in the opposite order to the paper: `ahead` is better here."""

    ahead: str
    behind: str
    p: float | None


class Order(NamedTuple):
    """The systems in this study and in the paper, each from best to worst, and the pairs in opposite order."""

    measure: str
    ours: list[str]
    papers: list[str]
    pairs: int
    swapped: list[Swap]


def findings(tables: Sequence[Table]) -> list[Finding]:
    """The summary of a study."""
    return [_finding(table) for table in tables]


def order_words(table: Table) -> list[str]:
    """Sentences on where the order of the methods differs from the paper's."""
    return [_order(found) for found in _orders(table)]


def order_grid(table: Table) -> TextTable | None:
    """The ranks of the methods here and in the paper; None if there is nothing to compare."""
    orders = _orders(table)
    if not orders:
        return None
    labels = orders[0].ours + [label for found in orders for label in found.ours if label not in orders[0].ours]
    rows = []
    for label in dict.fromkeys(labels):
        cells = []
        for found in orders:
            for side in (found.ours, found.papers):
                place = side.index(label) + 1 if label in side else None
                cells.append(Text(str(place or "–"), best=place == 1))
        rows.append((label, "", cells))
    groups = [(f"Rank in {MEASURES[found.measure].name}", 2) for found in orders]
    return TextTable(groups, ["here", "paper"] * len(orders), rows)


def order(table: Table, measure: str) -> Order | None:
    """The order of the systems here and in the paper; None with fewer than two to compare."""
    ours, printed = {}, {}
    for row in table.rows:
        cell = table.cell(row, measure)
        if row.system != paper_results.MOVING and cell.printed and not math.isnan(cell.mean):
            ours[row.system], printed[row.system] = sign(measure) * cell.mean, sign(measure) * cell.printed[0]
    if len(ours) < 2:
        return None
    both = [table.row(system) for system in ours]
    swapped = []
    for a, b in combinations(both, 2):
        if (ours[a.system] - ours[b.system]) * (printed[a.system] - printed[b.system]) < 0:
            ahead, behind = sorted((a, b), key=lambda row: ours[row.system])
            swapped.append(Swap(ahead.label, behind.label, paired_p(ahead.cases, behind.cases, measure)))
    here, papers = ([row.label for row in sorted(both, key=lambda row: side[row.system])] for side in (ours, printed))
    return Order(measure, here, papers, math.comb(len(both), 2), swapped)


def is_own(row: Row) -> bool:
    """Whether a row is an F3RNet."""
    return row.system in paper_results.TABLE_1


def _finding(table: Table) -> Finding:
    rows = [row for row in table.rows if row.runs]
    cases = count(len(table.row(paper_results.MOVING).cases), "test case")
    where = f"{paper_results.DIRECTIONS[table.setting.direction]} ({data_of(table.setting)}; {cases})"
    # Scores of a network that predicts the average motion are no finding, so this sentence comes first.
    sentences = [not_learned(table), _leaders(table, rows), _baselines(table, rows), _worse(table, rows)]
    sentences += [_folding(table, rows), undecided(table)]
    differing = [
        f"{len(found.swapped)} of {found.pairs} pairs in {MEASURES[found.measure].name}" for found in _orders(table)
    ]
    if differing and any(found.swapped for found in _orders(table)):
        sentences.append(f"The methods are not in the paper's order: {listed(differing)} are swapped.")
    elif differing:
        sentences.append("The methods are in the paper's order.")
    return Finding(where, [sentence for sentence in sentences if sentence])


def _leaders(table: Table, rows: Sequence[Row]) -> str:
    moving = table.row(paper_results.MOVING)
    leaders = {measure: row for measure in MEASURES if (row := _best_of(table, rows, measure))}
    if not leaders:
        return "No method has a surface distance or a Dice."

    def value(measure: str) -> str:
        _, unit, digits = MEASURES[measure]
        now, then = (number(table.cell(row, measure).mean, digits) for row in (leaders[measure], moving))
        return f"{now} {unit} ({then} before registration)"

    if len(rows) == 1:
        return f"{rows[0].label} reaches {listed([f'a {MEASURES[m].name} of {value(m)}' for m in leaders])}."
    if len({row.label for row in leaders.values()}) == 1:
        both = listed([f"a {MEASURES[measure].name} of {value(measure)}" for measure in leaders])
        return f"{next(iter(leaders.values())).label} is best, with {both}."
    return "; ".join(f"{row.label} has the best {MEASURES[m].name}, {value(m)}" for m, row in leaders.items()) + "."


def _baselines(table: Table, rows: Sequence[Row]) -> str:
    """Compares the best F3RNet with the best baseline in the measure where the paper sees F3RNet's strength."""
    name, unit, digits = MEASURES[HARDEST]
    own = _best_of(table, [row for row in rows if is_own(row)], HARDEST)
    other = _best_of(table, [row for row in rows if not is_own(row)], HARDEST)
    if own is None or other is None:
        return ""
    gap = table.cell(other, HARDEST).mean - table.cell(own, HARDEST).mean
    side = "ahead of" if gap > 0 else "behind"
    words = (
        f"In {name} the best F3RNet, {own.label}, is {abs(gap):.{digits}f} {unit} {side} the best baseline, "
        f"{other.label}"
    )
    p = paired_p(own.cases, other.cases, HARDEST)
    if p is None:
        return f"{words}."
    return f"{words} ({p_value(p)}{', which may be chance' if p >= SIGNIFICANT else ''})."


def _worse(table: Table, rows: Sequence[Row]) -> str:
    """A sentence that lists the methods that are worse than no registration."""
    moving = table.row(paper_results.MOVING)
    parts = []
    for measure, words in MEASURES.items():
        if (paper_results.MOVING, measure) in table.cells:
            limit = sign(measure) * table.cell(moving, measure).mean
            worse = [row.label for row in rows if sign(measure) * table.cell(row, measure).mean > limit]
            parts += [f"{listed(worse)} in {words.name}"] if worse else []
    return f"Worse than no registration: {'; '.join(parts)}." if parts else ""


def _folding(table: Table, rows: Sequence[Row]) -> str:
    most = max(rows, key=lambda row: table.cell(row, "folding_percent").mean)
    percent = table.cell(most, "folding_percent").mean
    if percent == 0:
        return "No field folds anywhere."
    shown = "less than 0.001" if percent < 0.001 else number(percent, 3)
    return f"Most folding: {most.label}, {shown} % of voxels."


def _orders(table: Table) -> list[Order]:
    return [found for measure in MEASURES if (found := order(table, measure))]


def _order(found: Order) -> str:
    title = MEASURES[found.measure].title
    if not found.swapped:
        return f"{title}: the same order as in the paper."
    sure = [(pair, pair.p) for pair in found.swapped if pair.p is not None and pair.p < SIGNIFICANT]
    pairs = count(found.pairs, "pair")
    verb = "is" if len(found.swapped) == 1 else "are"
    text = f"{title}: {len(found.swapped)} of {pairs} of methods {verb} in the opposite order to the paper"
    if not sure:
        return f"{text}, none of them significantly (p < {SIGNIFICANT})."
    pairs = listed([f"{pair.ahead} before {pair.behind} ({p_value(p)})" for pair, p in sure])
    return f"{text}; significant (p < {SIGNIFICANT}): {pairs}."


def _best_of(table: Table, rows: Sequence[Row], measure: str) -> Row | None:
    known = [row for row in rows if (row.system, measure) in table.cells]
    known = [row for row in known if not math.isnan(table.cell(row, measure).mean)]
    return min(known, key=lambda row: sign(measure) * table.cell(row, measure).mean, default=None)
