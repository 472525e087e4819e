"""Measures what labels, landmarks and masks that take part change, on phantom pairs with known ground truth.

  python launch/guidance.py labels landmarks --cases=3
  python launch/guidance.py --list

Each part of the study registers the same pairs with and without one option of `python -m f3r_jax.register`, and prints
both. The pairs have voxels of 4 mm; the frames of both scans agree, so there is no affine step.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from f3r_jax.config import CT_WINDOW, MR_PERCENTILES, ORGANS
from f3r_jax.data import preprocess
from f3r_jax.data.nifti import Image
from f3r_jax.data.phantom.generate import make_case
from f3r_jax.data.transforms import Transform, field_on, to_moving, warp_image
from f3r_jax.register.guidance import Guidance
from f3r_jax.register.pipeline import RegistrationResult, Settings, register_scans
from f3r_jax.register.scans import Scan

SHAPE, SPACING, SEED = (88, 68, 60), 4.0, 18
NOISE, LANDMARKS, OTHERS = 2.0, 8, 40  # mm per axis, and numbers of points
TUMOUR = 15.0  # mm, radius
GUIDED = {"labels_weight": 0.2, "landmarks_weight": 0.1}  # the weights that the documentation recommends

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A CT that moves onto an MR, and the ground truth in voxels."""

    fixed: Scan
    moving: Scan
    truth: np.ndarray


def make_pair(index: int) -> Pair:
    """Phantom pair `index`."""
    case = make_case(SEED, index, shape=SHAPE, spacing=(SPACING,) * 3)
    return Pair(_scan(case.mr, "mr", case.mr_labels), _scan(case.ct, "ct", case.ct_labels), case.ct_to_mr)


def _scan(data: np.ndarray, modality: str, labels: np.ndarray) -> Scan:
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    image = Image(data, affine, f"phantom {modality}")
    normalised = preprocess.normalise(image, modality, ct_window=CT_WINDOW, mr_percentiles=MR_PERCENTILES)
    return Scan(image, normalised, modality, image.grid, labels=Image(labels, affine, f"labels of the {modality}"))


def register(pair: Pair, **guidance: object) -> tuple[RegistrationResult, Scores]:
    """The result of a pair and its scores."""
    start = time.perf_counter()
    settings = Settings(affine="none", spacing=SPACING, guidance=Guidance(**guidance))  # type: ignore[arg-type]
    result = register_scans(pair.fixed, pair.moving, settings)
    seconds = time.perf_counter() - start
    return result, scores(pair, result.transform) | {"seconds": seconds}


def scores(pair: Pair, transform: Transform) -> Scores:
    """Dice per organ in %, and the end-point error in mm inside the organs of the fixed scan."""
    assert pair.fixed.labels is not None and pair.moving.labels is not None
    wanted = pair.fixed.labels.data
    field = field_on(transform, pair.fixed.image.grid)
    found = warp_image(pair.moving.labels, field, pair.fixed.image.grid, order=0)
    values = {}
    for name, (value, *_) in ORGANS.items():
        one, other = wanted == value, found == value
        values[name] = 200 * float(np.sum(one & other)) / max(int(one.sum() + other.sum()), 1)
    error = np.linalg.norm(field - SPACING * pair.truth, axis=-1)
    return values | {"epe_mm": float(error[wanted > 0].mean())}


def labels(pair: Pair) -> dict[str, Scores]:
    """Liver and spleen drive; the kidneys are the control."""
    weight = GUIDED["labels_weight"]
    return {
        "none": register(pair)[1],
        "liver and spleen drive": register(pair, labels_weight=weight, labels_drive=(1, 2))[1],
    }


def landmarks(pair: Pair) -> dict[str, Scores]:
    """Eight landmarks with noise; the error is measured at others, also with one landmark 30 mm away."""
    rng = np.random.default_rng(0)
    assert pair.fixed.labels is not None
    inside = np.argwhere(ndimage.binary_dilation(pair.fixed.labels.data > 0, iterations=3))
    voxels = rng.permutation(inside)[: LANDMARKS + OTHERS]
    points = SPACING * voxels
    there = points + SPACING * pair.truth[tuple(voxels.T)]
    noisy = there + rng.normal(0, NOISE, there.shape)
    wrong = noisy.copy()
    wrong[0, 0] += 30

    def measured(moving: np.ndarray | None) -> Scores:
        if moving is None:
            result, values = register(pair)
        else:
            few = slice(LANDMARKS)
            sides = {"fixed": points[few], "moving": moving[few]}
            marked = dataclasses.replace(
                pair, **{side: dataclasses.replace(getattr(pair, side), landmarks=at) for side, at in sides.items()}
            )
            result, values = register(marked, landmarks_weight=GUIDED["landmarks_weight"])
        away = np.linalg.norm(to_moving(result.transform, points) - there, axis=1)
        left_out = result.guidance.left_out
        known = {"left_out_mm": float(np.mean(left_out))} if left_out else {}
        return (
            {"others_mm": float(away[LANDMARKS:].mean()), "pulled_mm": float(away[:LANDMARKS].mean())} | known | values
        )

    return {"none": measured(None), "eight landmarks": measured(noisy), "one of them 30 mm off": measured(wrong)}


def tumour(pair: Pair) -> dict[str, Scores]:
    """A bright ball in the liver that keeps its volume."""
    assert pair.fixed.labels is not None
    deep = ndimage.distance_transform_edt(pair.fixed.labels.data == 1)
    centre = np.unravel_index(np.argmax(deep), deep.shape)
    goal = np.array(centre) + pair.truth[centre]
    mask = _ball(np.array(centre, float))
    images = []
    for scan, ball in ((pair.fixed, mask), (pair.moving, _ball(goal))):
        bright = np.percentile(scan.image.data, 99)
        data = np.where(ball, bright, scan.image.data).astype(np.float32)
        assert scan.labels is not None
        images.append(_scan(data, scan.modality, scan.labels.data))
    kept = Image(mask.astype(np.uint8), pair.fixed.image.affine, "tumour")
    with_ball = dataclasses.replace(pair, fixed=images[0], moving=images[1])
    return _restrained(with_ball, "preserve", kept)


def spine(pair: Pair) -> dict[str, Scores]:
    """The spine moves rigidly."""
    bone = pair.moving.image.data > 180
    bone[:, 38:], bone[:32], bone[56:] = False, False, False  # ribs and vessels
    parts, _ = ndimage.label(ndimage.binary_closing(bone, iterations=2))
    largest = (parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])).astype(np.uint8)
    there = Transform(pair.fixed.image.grid, np.eye(4), pair.truth)
    image = Image(largest, pair.moving.image.affine, "spine")
    grid = pair.fixed.image.grid
    mask = warp_image(image, field_on(there, grid), grid, order=0)
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    mask = (parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])).astype(np.uint8)
    return _restrained(pair, "rigid", Image(mask, pair.fixed.image.affine, "spine"))


def _restrained(pair: Pair, kind: str, mask: Image) -> dict[str, Scores]:
    from f3r_jax.register import parts

    held = dataclasses.replace(pair.fixed, **{kind: mask})
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


def _ball(centre: np.ndarray) -> np.ndarray:
    place = np.moveaxis(np.indices(SHAPE), 0, -1) - centre
    return np.linalg.norm(SPACING * place, axis=-1) < TUMOUR


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
    spoilt = dataclasses.replace(pair, moving=_scan(metal.astype(np.float32), "ct", pair.moving.labels.data))
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
    poor = _scan(hidden, "mr", pair.fixed.labels.data)
    both = dataclasses.replace(poor, extra=(dataclasses.replace(pair.fixed, labels=None),))
    return {
        "first sequence": register(dataclasses.replace(pair, fixed=poor))[1],
        "both sequences": register(dataclasses.replace(pair, fixed=both))[1],
        "second sequence": register(pair)[1],
    }


STUDY: dict[str, Callable[[Pair], dict[str, Scores]]] = {
    "labels": labels,
    "landmarks": landmarks,
    "tumour": tumour,
    "spine": spine,
    "robust": robust,
    "sequences": sequences,
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
