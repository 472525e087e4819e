"""Measures how the uncertainty of `register` agrees with the true error, on phantom pairs.

  python launch/uncertainty_error.py --cases=16

Each pair (`guided_pairs.py`, voxels of 4 mm) is registered as `register --uncertainty` does by default. Each voxel of
the fixed scan's body, or of its organs, has an uncertainty and an error: the distance of the found displacement from
the ground truth, in mm. The script prints, as means over the pairs,

- Spearman's rank correlation of both;
- the mean error of the fifth of the voxels with the highest uncertainty, and of that with the lowest.

Controls, which need no further registrations, are scored in the same way: the length of the displacement without its
affine part, the difference of the MIND descriptors after the registration, and the depth below the body's surface. If
one of them predicts the error as well, the uncertainty proves nothing.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import ndimage, stats

import guided_pairs
from f3r_jax.common.compilation_cache import keep_compiled_programs
from f3r_jax.common.progress import Progress
from f3r_jax.data import preprocess, resample
from f3r_jax.data.nifti import Image
from f3r_jax.data.transforms import deformation_on, field_on, warp_image
from f3r_jax.ops.mind import mind
from f3r_jax.ops.shapes import as_volume
from f3r_jax.register import uncertainty
from f3r_jax.register.pipeline import RegistrationResult, Settings, register_scans
from f3r_jax.workdir import trained_network, weights
from f3r_jax.workdir.trained_network import Network

PART = 5  # the voxels are divided into so many parts by what predicts the error


class Agreement(NamedTuple):
    """How a predictor agrees with the error of one pair."""

    correlation: float  # of the ranks
    highest: float  # mm: mean error where the predictor is highest
    lowest: float  # mm: mean error where it is lowest


def agreement(predictor: np.ndarray, error: np.ndarray) -> Agreement:
    """The agreement of a predictor with the error, both (n)."""
    order = np.argsort(predictor, kind="stable")
    count = len(order) // PART
    highest, lowest = (float(error[part].mean()) for part in (order[-count:], order[:count]))
    return Agreement(float(stats.spearmanr(predictor, error).statistic), highest, lowest)


def of_pair(pair: guided_pairs.Pair, settings: Settings, network: Network) -> dict[str, Agreement]:
    """The agreement of the uncertainty and of the controls in each region of one pair."""
    result = register_scans(pair.fixed, pair.moving, settings, network=network)
    spread = uncertainty.uncertainty(pair.fixed, pair.moving, result, settings, network)
    grid = pair.fixed.image.grid
    body = preprocess.body_mask(pair.fixed.image, pair.fixed.modality)
    there = np.moveaxis(np.indices(grid.shape), 0, -1) + pair.truth
    inside = body & ((there >= 0) & (there <= np.array(grid.shape) - 1)).all(-1)
    field = field_on(result.transform, grid)
    error = np.linalg.norm(field - grid.spacing * pair.truth, axis=-1)
    known = {"uncertainty": resample.resample(Image(spread, result.transform.grid.affine), grid)}
    known |= controls(pair, result, field, body)
    assert pair.fixed.labels is not None
    regions = {"body": inside, "organs": inside & (pair.fixed.labels.data > 0)}
    return {
        f"{region}: {name}": agreement(values[voxels], error[voxels])
        for region, voxels in regions.items()
        for name, values in known.items()
    }


def controls(
    pair: guided_pairs.Pair, result: RegistrationResult, field: np.ndarray, body: np.ndarray
) -> dict[str, np.ndarray]:
    """What predicts the error without further registrations, at each voxel of the fixed scan; `field` in mm."""
    grid = pair.fixed.image.grid
    warped = warp_image(pair.moving.normalised, field, grid)
    one, other = (mind(as_volume(image), preset="mind_ssc") for image in (pair.fixed.normalised.data, warped))
    return {
        "length of the displacement": np.linalg.norm(deformation_on(result.transform, grid), axis=-1),
        "difference of MIND": np.asarray(jnp.abs(one - other).mean(-1))[0],
        "depth below the surface": ndimage.distance_transform_edt(body, sampling=grid.spacing),
    }


def table(pairs: Sequence[Mapping[str, Agreement]]) -> str:
    """A Markdown table: for each predictor the mean over the pairs, and the least and largest correlation."""
    lines = [
        "| region: predictor | rank correlation with the error (least to largest) | error, mm: highest fifth, lowest |",
        "|---|---|---|",
    ]
    for name in pairs[0]:
        values = np.array([each[name] for each in pairs])
        correlation, highest, lowest = values.mean(0)
        span = f"{values[:, 0].min():.2f} to {values[:, 0].max():.2f}"
        lines.append(f"| {name} | {correlation:.2f} ({span}) | {highest:.1f}, {lowest:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Registers the pairs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=16, help="number of phantom pairs (16)")
    cases = parser.parse_args().cases
    keep_compiled_programs()
    network = trained_network.load(Path(weights.BUILTIN))
    settings = Settings(checkpoint=Path(weights.BUILTIN))
    pairs = []
    with Progress("registering", cases) as progress:
        for index in range(cases):
            pairs.append(of_pair(guided_pairs.make_pair(index), settings, network))
            progress.advance()
    print(table(pairs))


if __name__ == "__main__":
    main()
