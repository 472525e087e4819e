"""Everything that a report shows of a study: its tables, figures and the provenance of its rows."""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from f3r_jax.models.f3rnet import VARIANTS
from f3r_jax.report import comparison, control_tables, findings, paper_results, study_figures, wording
from f3r_jax.report.charts import Drawing
from f3r_jax.report.comparison import CHOSEN_BY, Table
from f3r_jax.report.findings import Finding
from f3r_jax.report.study_runs import Problem, Run, Study
from f3r_jax.report.wording import TextTable

UNRECORDED = "not recorded"
PARTS = ("FR stream", "encoder", "decoder", "more MRBs")


@dataclasses.dataclass(frozen=True)
class Part:
    """A table of the paper in one setting, with its figures."""

    stem: str
    number: int
    direction: str
    data: str
    grid: TextTable
    notes: list[str]
    controls: TextTable
    control_notes: list[str]
    order: TextTable | None
    order_words: list[str]
    figures: list[Drawing]


@dataclasses.dataclass(frozen=True)
class Contents:
    """A report; `files` has the texts of its CSV files by name."""

    findings: list[Finding]
    table_1: list[dict]
    table_1_notes: list[str]
    parts: list[Part]
    runs: list[dict]
    problems: list[Problem]
    files: dict[str, str]


def contents(study: Study, folder: Path) -> Contents:
    """Makes the contents of a report and writes its figures into the folder."""
    tables = comparison.tables_of(study.runs)
    problems = list(study.problems)
    parts, files = [], {"table_1.csv": _csv(table_1())}
    for table in tables:
        part = _part(table, tables, folder, problems)
        parts.append(part)
        files[f"table_{part.number}_{part.stem}.csv"] = _csv(_numbers(table))
        files[f"cases_{part.stem}.csv"] = _csv(_cases(table))
    runs = [_provenance(run, tables) for run in sorted(study.runs, key=_place)]
    if runs:
        files["runs.csv"] = _csv([{key: value for key, value in run.items() if key != "config"} for run in runs])
    return Contents(findings.findings(tables), table_1(), table_1_notes(), parts, runs, problems, files)


def table_1() -> list[dict]:
    """Which parts of each variant use F3D, from the table in the code."""
    return [{"network": VARIANTS[name].label} | dict(zip(PARTS, _parts(name), strict=True)) for name in VARIANTS]


def table_1_notes() -> list[str]:
    """Where the paper's Table 1 differs."""
    notes = []
    for name, parts in ((name, _parts(name)) for name in VARIANTS):
        if parts != paper_results.TABLE_1[name]:
            other = [part for part, a, b in zip(PARTS, parts, paper_results.TABLE_1[name], strict=True) if a != b]
            notes.append(
                f"{VARIANTS[name].label}: the paper's Table 1 differs in the {wording.listed(other)}; f3r_jax "
                f"follows the paper's text and its count of {paper_results.TABLE_2[name].parameters} M parameters."
            )
    return notes


def _parts(name: str) -> tuple[bool, bool, bool, bool]:
    variant = VARIANTS[name]
    return variant.full, variant.encoder, variant.decoder, variant.extra_mrbs > 0


def _part(table: Table, tables: Sequence[Table], folder: Path, problems: list[Problem]) -> Part:
    direction = table.setting.direction
    alike = [other for other in tables if other.setting.direction == direction]
    stem = direction + (f"_{alike.index(table) + 1}" if len(alike) > 1 else "")
    drawn = [
        *study_figures.overview(table, stem, folder),
        *study_figures.lambda_figure(table, stem, folder),
        *study_figures.case_figure(table, stem, folder, problems),
        *(study_figures.feature_figure(table, stem, folder, problems) if table is tables[0] else ()),
        *study_figures.training_figures(table, stem, folder),
    ]
    return Part(
        stem,
        paper_results.TABLE_NUMBERS[direction],
        paper_results.DIRECTIONS[direction],
        wording.data_of(table.setting),
        wording.grid(table),
        wording.notes(table) + [one for one in drawn if isinstance(one, str)],
        control_tables.control_grid(table),
        control_tables.control_notes(table),
        findings.order_grid(table),
        findings.order_words(table),
        [one for one in drawn if isinstance(one, Drawing)],
    )


def _numbers(table: Table) -> list[dict]:
    """Rows of a table's CSV, with all digits."""
    lines = []
    for row in table.rows:
        line = {"method": row.label, "lambda": row.lam, "parameters": row.parameters, "cases": len(row.cases)}
        line |= {f"seconds_{device}": row.seconds(device) for device in ("cpu", "gpu")}
        for measure in comparison.measures(table.rois):
            cell = table.cell(row, measure)
            mean, std = cell.printed or (None, None)
            line |= {f"{measure} mean": cell.mean, f"{measure} std": cell.std, f"{measure} p": cell.p}
            line |= {f"{measure} seeds": " ".join(map(repr, cell.seeds))}
            line |= {f"{measure} paper mean": mean, f"{measure} paper std": std}
        lines.append(line)
    return lines


def _cases(table: Table) -> list[dict]:
    """Rows of the CSV of cases, one per method and case."""
    return [
        {"method": row.label, "lambda": row.lam, "case": key.name}
        | {measure: scores.get(measure) for measure in comparison.measures(table.rois)}
        for row in table.rows
        for key, scores in row.cases.items()
    ]


def _provenance(run: Run, tables: Sequence[Table]) -> dict[str, object]:
    """The origin and the settings of a run, for the end of the page."""
    summary = run.summary
    origin = summary.origin
    found = summary.controls and summary.controls.pair_specific
    used = any(run is one for table in tables for row in table.rows for one in row.runs)
    return {
        "method": summary.method,
        "direction": paper_results.DIRECTIONS[run.setting.direction],
        "lambda": run.lam,
        "seed": run.config.seed,
        "step": summary.step,
        "device": summary.device,
        "in the tables": "yes" if used else "no",
        "mean Dice": comparison.mean_of(run.cases, CHOSEN_BY).mean,
        "Dice gain over the mean field": found and found.dice_gain,
        "correlation": found and found.correlation,
        "learned the pair": control_tables.verdict(run),
        "folder": os.path.relpath(run.path),
        "command": origin.get("command") or UNRECORDED,
        "commit": origin.get("commit") or UNRECORDED,
        "trained with": _versions(origin.get("versions")),
        "evaluated with": _versions(summary.versions),
        "config": json.dumps(json.loads(run.config.to_json()), indent=1),
    }


def _place(run: Run) -> tuple:
    """Sort key of a run: the order of the tables."""
    rank = (
        paper_results.SYSTEMS.index(run.system) if run.system in paper_results.SYSTEMS else len(paper_results.SYSTEMS)
    )
    return (
        list(paper_results.DIRECTIONS).index(run.setting.direction),
        rank,
        run.lam or 0.0,
        run.config.seed,
        str(run.path),
    )


def _versions(found: Mapping[str, str] | None) -> str:
    return ", ".join(f"{name} {version}" for name, version in (found or {}).items()) or UNRECORDED


def _csv(rows: Sequence[Mapping]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
