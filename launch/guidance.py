"""Measures what labels, landmarks and masks that take part change, on phantom pairs with known ground truth.

  python launch/guidance.py labels landmarks --cases=3

Each part of the study registers the same pairs with and without one option of `python -m f3r_jax.register`, and prints
both. The pairs have voxels of 4 mm; the frames of both scans agree, so there is no affine step.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import numpy as np

from f3r_jax.data.nifti import Image
from f3r_jax.data.transforms import to_moving
from f3r_jax.register import parts
from guided_pairs import (
    GUIDED,
    LANDMARKS,
    SHAPE,
    Pair,
    Scores,
    make_pair,
    register,
    scan_of,
    spine_of,
    with_landmarks,
    with_tumour,
)


def labels(pair: Pair) -> dict[str, Scores]:
    """Liver and spleen drive; the kidneys are the control."""
    weight = GUIDED["labels_weight"]
    return {
        "none": register(pair)[1],
        "liver and spleen drive": register(pair, labels_weight=weight, labels_drive=(1, 2))[1],
    }


def landmarks(pair: Pair) -> dict[str, Scores]:
    """Eight landmarks with noise; the error is measured at others, also with one landmark 30 mm away."""

    def measured(weight: float, *, outlier: bool = False) -> Scores:
        marked, points, exact = with_landmarks(pair, outlier=outlier)
        result, values = register(marked, landmarks_weight=weight)
        away = np.linalg.norm(to_moving(result.transform, points) - exact, axis=1)
        left_out = result.guidance.left_out
        known = {"left_out_mm": float(np.mean(left_out))} if left_out else {}
        means = {"others_mm": float(away[LANDMARKS:].mean()), "pulled_mm": float(away[:LANDMARKS].mean())}
        return means | known | values

    weight = GUIDED["landmarks_weight"]
    return {
        "none": measured(0.0),
        "eight landmarks": measured(weight),
        "one of them 30 mm off": measured(weight, outlier=True),
    }


def tumour(pair: Pair) -> dict[str, Scores]:
    """A tumour that keeps its volume."""
    pair, mask = with_tumour(pair)
    return _restrained(pair, "preserve", mask)


def spine(pair: Pair) -> dict[str, Scores]:
    """The spine moves rigidly."""
    return _restrained(pair, "rigid", spine_of(pair))


def _restrained(pair: Pair, kind: str, mask: Image) -> dict[str, Scores]:
    held = dataclasses.replace(pair.fixed, **{kind: mask})  # type: ignore[arg-type]
    rows = {}
    for name, fixed in (("none", pair.fixed), (kind, held)):
        result, values = register(dataclasses.replace(pair, fixed=fixed))
        (report,) = parts.report(result.transform, held)
        change = 100 * (report["volume_ml_after"] / report["volume_ml_before"] - 1)
        rows[name] = {
            "volume_%": change,
            "jacobian_min": report["jacobian_min"],
            "jacobian_max": report["jacobian_max"],
            "residual_mm": report["residual_mm"],
            "residual_max": report["residual_mm_max"],
            "fold_%": result.folding_percent,
        } | values
    return rows


def robust(pair: Pair) -> dict[str, Scores]:
    """The robust penalty on a clean pair, and with metal in the CT: bright balls with streaks."""
    metal = pair.moving.image.data.copy()
    rng = np.random.default_rng(1)
    for centre in rng.permutation(np.argwhere(pair.moving.labels.data == 1))[:3]:  # type: ignore[union-attr]
        angle = np.arctan2(*np.moveaxis(np.indices(SHAPE[:2]) - centre[:2, None, None], 0, 0))
        far = np.linalg.norm(np.moveaxis(np.indices(SHAPE[:2]), 0, -1) - centre[:2], axis=-1)
        streaks = 900 * np.cos(8 * angle) * np.exp(-far / 15)
        low, high = max(centre[2] - 2, 0), centre[2] + 3
        metal[:, :, low:high] += streaks[..., None]
        metal[centre[0] - 2 : centre[0] + 3, centre[1] - 2 : centre[1] + 3, low:high] = 3000
    assert pair.moving.labels is not None
    spoilt = dataclasses.replace(pair, moving=scan_of(metal.astype(np.float32), "ct", pair.moving.labels.data))
    return {
        f"{name}{', robust' if on else ''}": register(each, robust=on)[1]
        for name, each in (("clean", pair), ("metal", spoilt))
        for on in (False, True)
    }


def sequences(pair: Pair) -> dict[str, Scores]:
    """A second MR sequence; the first one shows nothing in the left half."""
    hidden = pair.fixed.image.data.copy()
    hidden[: SHAPE[0] // 2] = np.median(hidden[hidden > np.median(hidden)])
    assert pair.fixed.labels is not None
    poor = scan_of(hidden, "mr", pair.fixed.labels.data)
    both = dataclasses.replace(poor, extra=(dataclasses.replace(pair.fixed, labels=None),))
    return {
        "first sequence": register(dataclasses.replace(pair, fixed=poor))[1],
        "both sequences": register(dataclasses.replace(pair, fixed=both))[1],
        "second sequence": register(pair)[1],
    }


def everything(pair: Pair) -> dict[str, Scores]:
    """The time of all options at once. Each registration runs twice; the second one, without compilation, is timed."""
    bulky, tumour = with_tumour(pair)
    marked, _, _ = with_landmarks(bulky)
    known = np.ones(SHAPE, np.uint8)
    known[:10, :10, :10] = 0
    fixed = dataclasses.replace(
        marked.fixed,
        preserve=tumour,
        rigid=spine_of(pair),
        extra=(dataclasses.replace(bulky.fixed, labels=None),),
        mask=Image(known, pair.fixed.image.affine, "mask"),
    )
    rows = {}
    for name, each, options in (
        ("none", bulky, {}),
        ("all options", dataclasses.replace(marked, fixed=fixed), {**GUIDED, "labels_drive": (1, 2), "robust": True}),
    ):
        register(each, **options)
        begin = time.process_time()
        values = register(each, **options)[1]
        rows[name] = {"cpu_seconds": time.process_time() - begin} | values
    return rows


STUDY: dict[str, Callable[[Pair], dict[str, Scores]]] = {
    "labels": labels,
    "landmarks": landmarks,
    "tumour": tumour,
    "spine": spine,
    "robust": robust,
    "sequences": sequences,
    "everything": everything,
}


def main() -> None:
    """Prints one table per part of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *STUDY], help=f"of {', '.join(STUDY)}; by default all")
    parser.add_argument("--cases", type=int, default=3)
    options = parser.parse_args()
    for part in options.parts or STUDY:
        rows: dict[str, list[Scores]] = {}
        for index in range(options.cases):
            for name, values in STUDY[part](make_pair(index)).items():
                rows.setdefault(name, []).append(values)
                print(f"  {part}, pair {index}, {name}: {_line(values)}", flush=True)
        for name, each in rows.items():
            print(f"{part}, {name}: {_line({key: float(np.mean([row[key] for row in each])) for key in each[0]})}")


def _line(values: Scores) -> str:
    return ", ".join(f"{key} {value:.3g}" for key, value in values.items())


if __name__ == "__main__":
    main()
