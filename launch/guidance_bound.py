"""How much landmarks and labels can correct at best: the residual error, predicted from what they show of it.

  python launch/guidance_bound.py --cases=24

Instance optimisation registers phantom cases without guidance. What is left is the residual: its displacement less the
ground truth, in mm, inside the organs. Guidance shows this residual at some points, and corrects others as far as they
are correlated. The script prints

1. the correlation of the residual at two points with their distance;
2. the mean residual after it was predicted by simple kriging (Gaussian process) from landmarks, two in each organ, and
   subtracted;
3. the same from the surfaces of liver and spleen: from the component along the normal, which is what labels show, and
   from the whole residual, which nothing shows.

The covariance is that of each axis, times exp(-distance / length). The length, and the factor between different organs,
are those that fit these cases best, so the figures are optimistic. They do not count that guided optimisation may also
leave a wrong optimum.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

from f3r_jax.common.progress import Progress
from f3r_jax.config import instance_config
from f3r_jax.data.datasets import open_dataset, organs_of
from f3r_jax.evaluate import controls, instance

EDGES = (0, 10, 20, 30, 40, 60, 80, 120, 160)  # mm, of the classes of distance
LENGTHS = (20.0, 40.0, 80.0)  # mm
BETWEEN = (0.0, 0.5, 1.0)  # covariance between different organs, of that within one
DRIVING = (1, 2)  # liver and spleen
SURFACE_NOISE = 0.5  # mm
POINTS, DRAWS = 300, 5  # points where the residual is predicted, and sets of landmarks, per case


class Residual(NamedTuple):
    """The residual of one case at its n voxels inside the organs."""

    points: np.ndarray  # (n 3), mm
    error: np.ndarray  # (n 3), mm
    labels: np.ndarray  # (n)
    normals: np.ndarray  # (n 3), of the surface; zero elsewhere


class Known(NamedTuple):
    """What is known of a case: components of the residual at some of its voxels, with noise."""

    voxels: np.ndarray  # (k), of the case's voxels
    directions: np.ndarray  # (k 3), of unit length
    values: np.ndarray  # (k), mm
    noise: float  # mm


def whole_residual(index: np.ndarray, values: np.ndarray, noise: float) -> Known:
    """All three components of the residual, values (n 3), at the voxels `index` (n)."""
    return Known(np.repeat(index, 3), np.tile(np.eye(3), (len(index), 1)), values.ravel(), noise)


Draw = Callable[[Residual, np.random.Generator], Known]


def residuals(cases: int) -> Iterator[Residual]:
    """The residuals of the first `cases` validation and test cases of the default phantom, seed 0."""
    config = instance_config(option="")
    dataset, organs = open_dataset(config.data, seed=config.seed), organs_of(config.data)
    settings, spacing = instance.settings_of(config.instance), np.array(config.data.spacing)
    names = [*dataset.split["validation"], *dataset.split["test"]][:cases]
    with Progress("registering", len(names)) as progress:
        for name in names:
            case = dataset.load(name)
            labels, truth = case.fixed_labels, case.displacement
            inside = controls.inside_organs(labels, organs)
            assert labels is not None and inside is not None and truth is not None  # a phantom has all
            error = (instance.optimise_case(case, settings).displacement - truth)[inside] * spacing
            yield Residual(np.argwhere(inside) * spacing, error, labels[inside], _normals(labels)[inside])
            progress.advance()


def _normals(labels: np.ndarray) -> np.ndarray:
    """The normals at the surface voxels of the driving labels, zero elsewhere."""
    normals = np.zeros((*labels.shape, 3))
    for value in DRIVING:
        organ = np.asarray(labels == value)
        surface = organ & ~ndimage.binary_erosion(organ)
        slope = np.stack(np.gradient(ndimage.gaussian_filter(organ.astype(float), 1.0)), axis=-1)[surface]
        normals[surface] = slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-9)
    return normals


def variances(known: Sequence[Residual]) -> np.ndarray:
    """The mean squared residual along each axis, in mm^2."""
    return np.mean([np.mean(each.error**2, axis=0) for each in known], axis=0)


def correlations(known: Sequence[Residual], *, same: bool) -> np.ndarray:
    """The correlation of the residual with distance (class, axis), of points in one organ or in different ones."""
    random, classes = np.random.default_rng(0), len(EDGES) - 1
    sums, counts = np.zeros((classes, 3)), np.zeros(classes)
    for each in known:
        chosen = random.choice(len(each.points), min(POINTS, len(each.points)), replace=False)
        points, error, labels = each.points[chosen], each.error[chosen], each.labels[chosen]
        apart = np.digitize(cdist(points, points), EDGES) - 1
        wanted = (labels[:, None] == labels) == same
        for number in range(classes):
            first, second = np.nonzero((apart == number) & wanted)
            sums[number] += (error[first] * error[second])[first != second].sum(0)
            counts[number] += (first != second).sum()
    return sums / np.maximum(counts, 1)[:, None] / variances(known)


def landmarks(noise: float) -> Draw:
    """Two landmarks in each organ, whose positions have this noise along each axis, in mm."""

    def draw(case: Residual, random: np.random.Generator) -> Known:
        organs = np.unique(case.labels)
        index = np.concatenate([random.choice(np.flatnonzero(case.labels == organ), 2, False) for organ in organs])
        values = case.error[index] + noise * random.standard_normal((len(index), 3))
        return whole_residual(index, values, noise)

    return draw


def surfaces(*, whole: bool) -> Draw:
    """200 voxels of the driving surfaces: the residual along the normal, or the whole residual."""

    def draw(case: Residual, random: np.random.Generator) -> Known:
        surface = np.flatnonzero(np.any(case.normals != 0, axis=1))
        index = random.choice(surface, min(200, len(surface)), replace=False)
        if whole:
            return whole_residual(index, case.error[index], SURFACE_NOISE)
        normals = case.normals[index]
        return Known(index, normals, np.sum(normals * case.error[index], axis=1), SURFACE_NOISE)

    return draw


def left(
    case: Residual, known: Known, at: np.ndarray, variance: np.ndarray, length: float, between: float
) -> np.ndarray:
    """The residual (n 3) at the voxels `at` after its prediction from what is known was subtracted."""

    def covariance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        factor = np.where(case.labels[a][:, None] == case.labels[b], 1.0, between)
        return np.exp(-cdist(case.points[a], case.points[b]) / length) * factor

    inner = covariance(known.voxels, known.voxels) * (known.directions * variance @ known.directions.T)
    weights = np.linalg.solve(inner + (known.noise**2 + 1e-6) * np.eye(len(inner)), known.values)
    found = (covariance(at, known.voxels) * weights) @ known.directions * variance
    return case.error[at] - found


def bound(cases: Sequence[Residual], draw: Draw) -> tuple[float, float]:
    """The mean length of the residual before and after, in mm, with the best covariance."""
    variance, results = variances(cases), []
    for length, between in itertools.product(LENGTHS, BETWEEN):
        random, before, after = np.random.default_rng(1), [], []
        for case, _ in itertools.product(cases, range(DRAWS)):
            at = random.choice(len(case.points), min(POINTS, len(case.points)), replace=False)
            rest = left(case, draw(case, random), at, variance, length, between)
            before.append(np.linalg.norm(case.error[at], axis=1).mean())
            after.append(np.linalg.norm(rest, axis=1).mean())
        results.append((float(np.mean(after)), float(np.mean(before))))
    after_best, before_best = min(results)
    return before_best, after_best


def main() -> None:
    """Prints the three tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=24, help="number of phantom cases (24)")
    cases = list(residuals(parser.parse_args().cases))
    print("| distance, mm | one organ: x, y, z | different organs: x, y, z |\n|---|---|---|")
    for number, rows in enumerate(zip(*(correlations(cases, same=same) for same in (True, False)), strict=True)):
        shown = " | ".join(", ".join(f"{value:.2f}" for value in row) for row in rows)
        print(f"| {EDGES[number]} to {EDGES[number + 1]} | {shown} |")
    print("\n| known | mean residual, mm | after the best prediction, mm | change |\n|---|---|---|---|")
    draws = {
        "eight landmarks, exact": landmarks(0.0),
        "eight landmarks, noise of 2 mm along each axis": landmarks(2.0),
        "surfaces of liver and spleen, along the normal": surfaces(whole=False),
        "surfaces of liver and spleen, the whole residual": surfaces(whole=True),
    }
    for words, draw in draws.items():
        before, after = bound(cases, draw)
        print(f"| {words} | {before:.2f} | {after:.2f} | {100 * (after / before - 1):+.0f} % |", flush=True)


if __name__ == "__main__":
    main()
