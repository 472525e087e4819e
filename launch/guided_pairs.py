"""Phantom pairs with landmarks, a tumour and a spine, and their registration with what takes part."""

import dataclasses
import time

import numpy as np
from scipy import ndimage

from f3r_jax.config import CT_WINDOW, MR_PERCENTILES, ORGANS
from f3r_jax.data import preprocess
from f3r_jax.data.nifti import Image
from f3r_jax.data.phantom.generate import make_case
from f3r_jax.data.transforms import Transform, field_on, warp_image
from f3r_jax.register.guidance import Guidance
from f3r_jax.register.pipeline import RegistrationResult, Settings, register_scans
from f3r_jax.register.scans import Scan

SHAPE, SPACING, SEED = (88, 68, 60), 4.0, 18
NOISE, LANDMARKS, OTHERS = 2.0, 8, 40  # mm (root mean square), and numbers of points
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
    return Pair(scan_of(case.mr, "mr", case.mr_labels), scan_of(case.ct, "ct", case.ct_labels), case.ct_to_mr)


def scan_of(data: np.ndarray, modality: str, labels: np.ndarray) -> Scan:
    """A scan of a phantom with its label map."""
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


def with_landmarks(pair: Pair, *, outlier: bool = False) -> tuple[Pair, np.ndarray, np.ndarray]:
    """The pair with eight noisy landmarks, and those and further points with their exact counterparts, in mm.

    `outlier` moves one of the landmarks by 30 mm.
    """
    rng = np.random.default_rng(0)
    assert pair.fixed.labels is not None
    inside = np.argwhere(ndimage.binary_dilation(pair.fixed.labels.data > 0, iterations=3))
    voxels = rng.permutation(inside)[: LANDMARKS + OTHERS]
    points = SPACING * voxels
    exact = points + SPACING * pair.truth[tuple(voxels.T)]
    noisy = exact + rng.normal(0, NOISE / np.sqrt(3), exact.shape)
    noisy[0, 0] += 30 * outlier
    sides = {"fixed": points[:LANDMARKS], "moving": noisy[:LANDMARKS]}
    marked = {side: dataclasses.replace(getattr(pair, side), landmarks=at) for side, at in sides.items()}
    return dataclasses.replace(pair, **marked), points, exact


def with_tumour(pair: Pair) -> tuple[Pair, Image]:
    """The pair with a bright ball in the liver of both scans, and its mask in the fixed scan."""
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
        images.append(scan_of(data, scan.modality, scan.labels.data))
    kept = Image(mask.astype(np.uint8), pair.fixed.image.affine, "tumour")
    return dataclasses.replace(pair, fixed=images[0], moving=images[1]), kept


def spine_of(pair: Pair) -> Image:
    """The mask of the spine in the fixed scan."""
    bone = pair.moving.image.data > 150
    bone[:, 30:], bone[:40], bone[49:] = False, False, False  # ribs, kidneys and vessels
    parts, _ = ndimage.label(ndimage.binary_closing(bone))
    largest = (parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])).astype(np.uint8)
    there = Transform(pair.fixed.image.grid, np.eye(4), pair.truth)
    image = Image(largest, pair.moving.image.affine, "spine")
    grid = pair.fixed.image.grid
    mask = warp_image(image, field_on(there, grid), grid, order=0)
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    mask = (parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])).astype(np.uint8)
    return Image(mask, pair.fixed.image.affine, "spine")


def _ball(centre: np.ndarray) -> np.ndarray:
    place = np.moveaxis(np.indices(SHAPE), 0, -1) - centre
    return np.linalg.norm(SPACING * place, axis=-1) < TUMOUR
