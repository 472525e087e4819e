"""Counts right and wrong verdicts on pairs with labels: positions that are right, wrong, and of mirrored scans.

  python launch/verdicts.py --pairs=FOLDER --output=verdicts.csv

For each pair of a `pairs.csv` the position is searched as `register` does. The verdict is made for the chosen position,
for the candidate of the lowest Dice, and for the chosen positions of the moving scan mirrored left to right and head to
feet. All this happens on the coarse grid, so the Dice is that of the coarse deformation. One row per result is written.
"""

import csv
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.compilation_cache import keep_compiled_programs
from f3r_jax.common.errors import UserError
from f3r_jax.data import transforms
from f3r_jax.data.affine.start import find_start
from f3r_jax.data.nifti import Image
from f3r_jax.data.pairs import PairFiles, read_pairs
from f3r_jax.data.transforms import Transform
from f3r_jax.evaluate import metrics
from f3r_jax.register import scans, verdict
from f3r_jax.register.alignment import coarse_copies
from f3r_jax.register.evidence import gather
from f3r_jax.register.scans import Scan

_PAIRS = flags.DEFINE_string("pairs", None, "A pairs.csv with label maps, or its folder.")
_OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write; finished pairs in it are kept.")
GROUPS = {"Verdicts": ("pairs", "output")}
MIRRORS = {"left to right": 0, "head to feet": 2}
RIGHT, WRONG = 50.0, 25.0  # Dice in %: results between both are neither
MEASURES = (
    "seen",
    "body_dice",
    "rotation",
    "likeness",
    "information",
    "smallest_volume",
    "cycle_mm",
    "apart_mm",
    "mirrored",
    "upside_down",
    "back_to_front",
)
COLUMNS = ("pair", "kind", "dice", "level", *MEASURES, "reasons")


def main(argv: Sequence[str]) -> int:
    """Writes the table and prints the counts; returns the exit status."""
    if argv[1:] or _PAIRS.value is None or _OUTPUT.value is None:
        raise UserError("expected --pairs=FOLDER --output=FILE, without other arguments")
    keep_compiled_programs()
    output = Path(_OUTPUT.value)
    rows = read(output) if output.exists() else []
    with output.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for pair in read_pairs(Path(_PAIRS.value)):
            if any(row["pair"] == pair.name for row in rows):
                continue
            new = list(judged(pair))
            writer.writerows(new)
            file.flush()
            rows += new
            print(*(f"{row['pair']}, {row['kind']}: Dice {row['dice']} %, {row['level']}" for row in new), sep="\n")
    print(table(rows))
    return 0


def read(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier run; raises a UserError for a table with other columns."""
    with path.open(newline="") as file:
        stored = csv.DictReader(file)
        if stored.fieldnames is not None and tuple(stored.fieldnames) != COLUMNS:
            raise UserError(f"{path}: columns {stored.fieldnames}, expected those that this script writes")
        return list(stored)


def judged(pair: PairFiles) -> Iterator[dict[str, str]]:
    """The rows of a pair."""
    fixed_scan, moving_scan = (
        scans.read(each.image, modality=each.modality, labels=each.labels) for each in (pair.fixed, pair.moving)
    )
    yield from results(pair.name, fixed_scan, moving_scan, "as it is", worst=True)
    for kind, axis in MIRRORS.items():
        yield from results(pair.name, fixed_scan, mirrored(moving_scan, axis), f"mirrored {kind}", worst=False)


def results(name: str, fixed: Scan, moving: Scan, kind: str, *, worst: bool) -> Iterator[dict[str, str]]:
    """The row of the chosen candidate, and with `worst` also that of the candidate with the lowest Dice."""
    copies = coarse_copies(fixed, moving)
    try:
        start = find_start(*copies, headers=False)
    except UserError as error:
        print(f"{name}, {kind}: no position: {error}")
        return
    ends = [start.transform_of(each) for each in start.candidates]
    values = [dice(each, fixed, moving) for each in ends]
    lowest = int(np.argmin(values))
    for index, what in ((0, kind), (lowest, "worst candidate")):
        if what == kind or (worst and lowest != 0):
            evidence = gather(*copies, ends[index], start if index == 0 else None)
            found = verdict.judge(evidence)
            measures = {} if evidence is None else dataclasses.asdict(evidence)
            shown = {key: f"{measures[key]:.2f}" for key in MEASURES if measures.get(key) is not None}
            row = {"pair": name, "kind": what, "dice": f"{values[index]:.1f}", "level": found.level, **shown}
            yield row | {"reasons": "; ".join(found.reasons)}


def mirrored(scan: Scan, axis: int) -> Scan:
    """The scan with its voxels in the opposite order along an axis."""

    def flip(image: Image) -> Image:
        return dataclasses.replace(image, data=np.ascontiguousarray(np.flip(image.data, axis)))

    labels = None if scan.labels is None else flip(scan.labels)
    return dataclasses.replace(scan, image=flip(scan.image), normalised=flip(scan.normalised), labels=labels)


def dice(transform: Transform, fixed: Scan, moving: Scan) -> float:
    """The mean Dice, in percent, of the labels that the moving label map has."""
    if fixed.labels is None or moving.labels is None:
        raise UserError(f"{fixed.image.path}, {moving.image.path}: no label maps, expected one of each scan")
    grid = fixed.labels.grid
    warped = transforms.warp_image(moving.labels, transforms.field_on(transform, grid), grid, order=0)
    known = [value for value in np.unique(moving.labels.data) if value > 0]
    pairs = [(warped == value, fixed.labels.data == value) for value in known]
    return float(np.mean([np.nan_to_num(metrics.dice(a, b)) for a, b in pairs]))


def table(rows: Sequence[dict[str, str]]) -> str:
    """The number of each verdict, by kind and by Dice, as Markdown."""
    lines = ["| position | Dice, % | " + " | ".join(verdict.LEVELS) + " |", "|---|---|" + "---|" * len(verdict.LEVELS)]
    bounds = {
        f"{RIGHT:g} and more": (RIGHT, 101.0),
        f"{WRONG:g} to {RIGHT:g}": (WRONG, RIGHT),
        f"below {WRONG:g}": (-1.0, WRONG),
    }
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for words, (low, high) in bounds.items():
            here = [row["level"] for row in rows if row["kind"] == kind and low <= float(row["dice"]) < high]
            if here:
                counts = " | ".join(str(here.count(level)) for level in verdict.LEVELS)
                lines.append(f"| {kind} | {words} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run_main(main, GROUPS)
