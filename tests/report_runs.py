"""Run folders as training and evaluation leave them, with scores that can be computed by hand."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from f3r_jax.evaluate.summary import FieldSummary, MeanStd
from f3r_jax.models.f3rnet import VARIANTS

STEPS = 6
ORGANS = {"liver": 0.0, "spleen": 1.0, "right_kidney": 2.0, "left_kidney": 4.0}  # what each adds to the liver's Dice
LABELS = {"voxelmorph1": "VoxelMorph-1", "voxelmorph2": "VoxelMorph-2", "faim": "FAIM", "syn": "SyN"}
PARAMETERS = {"faim": 233_683, "syn": 0}


def write_run(
    folder: Path,
    liver_dice: Sequence[float],
    *,
    system: str = "mrb",
    lam: float = 0.5,
    seed: int = 0,
    first_case: int = 0,
    changes: dict | None = None,
    summary: dict | None = None,
) -> Path:
    """Writes a finished run.

    Args:
      folder: where.
      liver_dice: of each case, after registration. The other organs' Dice is higher by ORGANS; ASD is a tenth of
        100 - Dice, HD95 a fifth. Before registration the liver's Dice of case n is 60 + n.
      system: a variant of F3RNet, or the name of another network.
      lam: the weight of the penalty.
      seed: of the run.
      first_case: the number of the first case.
      changes: to the config, by flat key.
      summary: changes to the summary.
    """
    values = config(system, lam=lam, seed=seed)
    values.update_from_flattened_dict(changes or {})
    (folder / "evaluation").mkdir(parents=True)
    (folder / "config.json").write_text(values.to_json())
    numbers = range(first_case, first_case + len(liver_dice))
    rows = [row for n, dice in zip(numbers, liver_dice, strict=True) for row in _rows(n, dice)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    (folder / "evaluation" / "cases.csv").write_text(text.getvalue())
    if system != "syn":
        lines = [{"step": n, "kind": "train", "similarity": 1 / n} for n in range(1, STEPS + 1)]
        lines += [{"step": STEPS, "kind": "validation", "dice": liver_dice[0]}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = _summary(rows, len(liver_dice), system) | (summary or {})
    (folder / "evaluation" / "summary.json").write_text(json.dumps(found))
    return folder


def controls(gain: float | None, learned: bool | None, *, correlation: float | None = 0.5, cases: int = 6) -> dict:
    """Changes to a summary: controls with the Dice of every organ at 80 under the mean field and 70 under the other."""

    def side(dice: float) -> dict:
        spread = {"mean": dice, "std": 0.0}
        return {"organs": {organ: dict.fromkeys(("dice", "asd_mm", "hd95_mm"), spread) for organ in ORGANS}}

    found = {"correlation": correlation, "deviation_mm": 2.0, "dice_gain": gain, "cases": cases, "learned": learned}
    found |= {"dice_gain_p": None if gain is None else 0.016 if learned else 0.7}
    return {"controls": {"mean_field": side(80.0), "other_pair": side(70.0), "pair_specific": found}}


def config(system: str, *, lam: float = 0.5, seed: int = 0) -> ConfigDict:
    """What the report reads of a config."""
    made = {
        "seed": seed,
        "model": {"name": "f3rnet", "variant": system} if system in VARIANTS else {"name": system},
        "data": {
            "source": "phantom",
            "root": "nowhere",
            "shape": [16, 16, 16],
            "spacing": [20.0, 20.0, 16.0],
            "direction": "ct_to_mr",
        },
    }
    if system != "syn":
        made |= {"loss": {"lam": lam}, "train": {"steps": STEPS}, "optim": {"learning_rate": 0.01}}
    return ConfigDict(made)


def edit(path: Path, old: str, new: str) -> None:
    """Replaces text in a file that has it."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def _rows(number: int, liver_dice: float) -> list[dict]:
    rows = []
    for organ, more in ORGANS.items():
        row = {"case": f"case_{number}", "organ": organ}
        for suffix, dice in (("", liver_dice + more), ("_before", 60 + number + more)):
            row |= {f"dice{suffix}": dice, f"asd_mm{suffix}": (100 - dice) / 10, f"hd95_mm{suffix}": (100 - dice) / 5}
        rows.append(row | {"epe_mm": "", "epe_mm_before": "", "folding_percent": 0.0, "sd_log_jacobian": 0.1})
    return rows


def _summary(rows: list[dict], cases: int, system: str) -> dict:
    organs = {
        organ: {
            score: MeanStd.of([row[score] for row in rows if row["organ"] == organ])
            for score in ("dice", "asd_mm", "hd95_mm")
        }
        for organ in ORGANS
    }
    of_field = asdict(FieldSummary(organs, None, None))
    return {
        "method": VARIANTS[system].label if system in VARIANTS else LABELS[system],
        "direction": "ct_to_mr",
        "cases": cases,
        "parameters": PARAMETERS.get(system, 1000),
        "step": None if system == "syn" else STEPS,
        "seconds_per_pair": 0.5,
        "device": "cpu",
        **of_field,
        "before": of_field,
    }
