"""Measures registrations of phantom pairs whose moving scan is anywhere, turned, scaled, or half out of view.

  python launch/placements.py --cases=1000 --output=placements.csv
  python launch/placements.py --cases=20 --methods=register,greedy,greedy-moments,syn --output=placements.csv

Case i is phantom patient i of a seed at a random placement (`placed_pairs.py`). The error is the mean distance between
found and true counterparts, in mm of the patient, over points inside both fields of view: of the body, and of liver,
spleen and kidneys. `search` is what `register` has before instance optimisation: the affine step with its search, the
coarse deformation, and the verdict on them.

Controls: the frames of the headers; the centres of the volumes on each other; the centres of the bodies on each other;
and the true placement without the patient's motion, which only an affine step without any error can reach.

One row per case and method is written at once. Finished cases are skipped, so that a killed run can be resumed.
"""

import csv
import importlib.util
import io
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.compilation_cache import keep_compiled_programs
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import write_text
from f3r_jax.common.progress import Progress
from f3r_jax.data import preprocess
from f3r_jax.data.affine.search import centre
from f3r_jax.data.transforms import apply_matrix
from placed_pairs import PlacedPair, make_pair
from placement_methods import METHODS, PACKAGES
from placement_tables import COLUMNS, KIDNEYS, POINTS, REQUIRED, Row, tables

_CASES = flags.DEFINE_integer("cases", 1000, "Number of cases.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first", 0, "The first case.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write; finished cases in it are kept.")
_METHODS = flags.DEFINE_list("methods", ["search"], f"What is measured, of {', '.join(METHODS)}.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the cases.", lower_bound=0)
GROUPS = {"Placements": ("cases", "first", "output", "methods", "seed")}


def main(argv: Sequence[str]) -> int:
    """Writes the rows and prints the tables; returns the exit status."""
    methods = _METHODS.value
    if argv[1:] or _OUTPUT.value is None:
        raise UserError("expected --output=FILE, without other arguments")
    if not methods or not set(methods) <= set(METHODS):
        raise UserError(f"--methods: found {','.join(methods) or 'nothing'}, expected some of {', '.join(METHODS)}")
    for name in methods:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"{name} needs the module {PACKAGES[name]}, which is not installed: make EXTRAS=baselines")
    output = Path(_OUTPUT.value)
    rows = read(output) if output.exists() else []
    keep_compiled_programs()
    done = {(row["seed"], row["case"], row["method"]) for row in rows}
    wanted = [(case, name) for case in range(_FIRST.value, _FIRST.value + _CASES.value) for name in methods]
    left = [(case, name) for case, name in wanted if (str(_SEED.value), str(case), name) not in done]
    with Progress("placements", len(wanted), done=len(wanted) - len(left)) as progress:
        for case, name in left:
            row = measured(_SEED.value, case, name)
            rows.append(row)
            write(output, rows)
            progress.advance(end_body=float(row["end_body"]), end_organs=float(row["end_organs"]))
    print(*tables(rows), sep="\n\n")
    return 0


def read(path: Path) -> list[Row]:
    """The rows of an earlier run, which may lack the columns of the kidneys; raises a UserError for another table."""
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        if tuple(name for name in table.fieldnames or () if name not in KIDNEYS) != REQUIRED:
            raise UserError(f"{path}: columns {table.fieldnames}, expected those that this script writes")
        return [dict.fromkeys(COLUMNS, "") | row for row in table]


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replaces the table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def measured(seed: int, case: int, method: str) -> Row:
    """The row of a case; `seconds` are those of the method alone."""
    pair = make_pair(seed, case)
    begin = time.perf_counter()
    result = METHODS[method](pair)
    seconds = time.perf_counter() - begin
    errors = controls(pair) | {"affine": pair.errors(result.affine), "end": pair.errors(result.end)}
    candidates = [pair.errors(each) for each in result.candidates]
    errors["best"] = min(candidates, default=errors["end"])
    row = {"seed": str(seed), "case": str(case), "method": method, "seconds": f"{seconds:.1f}"}
    for stage, values in errors.items():
        row |= {f"{stage}_{points}": f"{value:.2f}" for points, value in zip(POINTS, values, strict=True)}
    row["kidneys_mm"] = f"{pair.kidney_error(result.end):.2f}"
    if result.transform is not None:
        row["kidneys_dice"] = f"{pair.kidney_dice(result.transform):.1f}"
    if result.verdict is not None:
        row |= {"level": result.verdict.level, "reasons": "; ".join(result.verdict.reasons)}
    return dict.fromkeys(COLUMNS, "") | row | pair.placement.values()


def controls(pair: PlacedPair) -> dict[str, tuple[float, float]]:
    """The errors without a registration."""
    fixed, moving = pair.fixed.image, pair.moving.image
    bodies = preprocess.body_translation(fixed, "mr", moving, "ct")
    return {
        "headers": pair.errors(pair.points),
        "centres": pair.errors(pair.points + centre(moving.grid) - centre(fixed.grid)),
        "bodies": pair.errors(pair.points + bodies),
        "placement": pair.errors(apply_matrix(pair.placement.matrix, pair.points.T).T),
    }


if __name__ == "__main__":
    cli.run_main(main, GROUPS)
