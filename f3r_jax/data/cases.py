"""One case of a data set: a pair of volumes on the working grid, with labels, landmarks and ground truth."""

import dataclasses
import threading
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Float64, Integer
from ml_collections import ConfigDict

from f3r_jax.common.errors import UserError
from f3r_jax.data import landmarks, nifti, pairs, preprocess, resample, volumes
from f3r_jax.data.affine.fit import fit
from f3r_jax.data.affine.initial import initial_alignment

DIRECTIONS = ("ct_to_mr", "mr_to_ct")


@dataclasses.dataclass(frozen=True)
class Case:
    """A pair on the working grid. Arrays are read-only, because the cache returns the same ones again.

    `affine` maps a voxel of the grid to mm (RAS+) in the fixed scan's frame, `moving_affine` to mm in the moving scan's
    frame. They differ by the initial matrix. A displacement u(p) in voxels maps affine p to moving_affine (p + u(p)).
    """

    name: str
    fixed: Float32[np.ndarray, "x y z"]
    moving: Float32[np.ndarray, "x y z"]
    fixed_labels: Integer[np.ndarray, "x y z"] | None
    moving_labels: Integer[np.ndarray, "x y z"] | None
    displacement: Float32[np.ndarray, "x y z 3"] | None  # ground truth, voxels, for a backward warp
    spacing: Float64[np.ndarray, "3"]  # mm
    affine: Float64[np.ndarray, "4 4"]
    moving_affine: Float64[np.ndarray, "4 4"]
    fixed_landmarks: Float64[np.ndarray, "n 3"] | None = None  # voxels of the grid, as the moving ones
    moving_landmarks: Float64[np.ndarray, "n 3"] | None = None

    def arrays(self) -> list[np.ndarray]:
        """All arrays of the case."""
        return [value for value in vars(self).values() if isinstance(value, np.ndarray)]


class Matrices:
    """Initial matrices by case. Each is computed once, also if the cache drops the case in between."""

    def __init__(self) -> None:
        self._matrices: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The matrix of a case; other threads wait while one computes it."""
        with self._lock:
            if name not in self._matrices:
                self._matrices[name] = make()
            return self._matrices[name]


def load_pair(pair: pairs.PairFiles, data_config: ConfigDict, *, fitted: Matrices | None = None) -> Case:
    """Reads a pair and resamples it to the working grid; each image is interpolated once.

    `fitted` stores the initial matrix.
    """
    fitted = fitted or Matrices()
    moving, fixed = pair.ordered(data_config.direction)
    fixed_image, moving_image = (_read(scan, data_config) for scan in (fixed, moving))
    matrix = fitted.get(pair.name, lambda: _initial_matrix(fixed, fixed_image, moving, moving_image, data_config))
    grid = resample.working_grid(fixed_image.grid, shape=data_config.shape, spacing=data_config.spacing)
    moving_grid = dataclasses.replace(grid, affine=resample.moving_affine(grid, matrix))
    return Case(
        name=pair.name,
        fixed=_on_grid(fixed_image, fixed.modality, grid, data_config),
        moving=_on_grid(moving_image, moving.modality, moving_grid, data_config),
        fixed_labels=_labels(fixed, fixed_image, grid, data_config),
        moving_labels=_labels(moving, moving_image, moving_grid, data_config),
        displacement=None,
        spacing=grid.spacing,
        affine=grid.affine,
        moving_affine=moving_grid.affine,
        fixed_landmarks=_landmarks(fixed, grid),
        moving_landmarks=_landmarks(moving, moving_grid),
    )


def _read(scan: pairs.ScanFiles, config: ConfigDict) -> nifti.Image:
    """Reads a scan; raises a UserError for NaN, or if its intensities contradict its modality."""
    image = volumes.read(scan.image, unoriented=config.unoriented)
    if image.outside is not None:  # a training compares whole volumes, unlike `register`
        raise UserError(
            f"{scan.image}: {np.count_nonzero(image.outside)} voxels are NaN or infinite, expected finite voxels: "
            "crop the padding or fill it with air"
        )
    if config.check_modality:
        preprocess.check_modality(image, scan.modality)
    return image


def _initial_matrix(
    fixed: pairs.ScanFiles,
    fixed_image: nifti.Image,
    moving: pairs.ScanFiles,
    moving_image: nifti.Image,
    config: ConfigDict,
) -> np.ndarray:
    """The matrix from mm of the fixed frame to mm of the moving frame, as `data.initialisation` asks for."""
    how = config.initialisation
    if how == "header":
        return np.eye(4)
    initial, related = initial_alignment(
        fixed_image, fixed.modality, moving_image, moving.modality, body_centre=how == "body_centre"
    )
    if how == "body_centre":
        return initial
    scans = normalised(fixed_image, fixed.modality, config), normalised(moving_image, moving.modality, config)
    return fit(*scans, initial=initial, degrees=how, related=related).matrix


def in_order(ct: object, mr: object, direction: str) -> tuple:
    """Sorts a CT and an MR item as (moving, fixed)."""
    return (ct, mr) if direction == "ct_to_mr" else (mr, ct)


def normalised(image: nifti.Image, modality: str, config: ConfigDict) -> nifti.Image:
    """The scan with intensities scaled to [0, 1] as configured."""
    return preprocess.normalise(image, modality, ct_window=config.ct_window, mr_percentiles=config.mr_percentiles)


def _on_grid(image: nifti.Image, modality: str, grid: nifti.Grid, config: ConfigDict) -> np.ndarray:
    sampled = resample.resample(normalised(image, modality, config), grid)
    if sampled.min() == sampled.max():
        raise UserError(
            f"{image.path}: is constant on the working grid, {tuple(config.shape)} voxels of "
            f"{tuple(config.spacing)} mm around the fixed image's centre; expected a larger data.shape or data.spacing"
        )
    return sampled


def _labels(scan: pairs.ScanFiles, image: nifti.Image, grid: nifti.Grid, config: ConfigDict) -> np.ndarray | None:
    if scan.labels is None:
        return None
    labels = volumes.read_labels(scan.labels, unoriented=config.unoriented)
    nifti.check_same_grid(image, labels)
    return resample.resample_labels(labels, grid)


def _landmarks(scan: pairs.ScanFiles, grid: nifti.Grid) -> np.ndarray | None:
    return resample.to_voxels(landmarks.read_landmarks(scan.landmarks), grid.affine) if scan.landmarks else None


def check_overlap(pair: pairs.PairFiles, config: ConfigDict) -> None:
    """Raises a UserError for scans that do not overlap and that the configured initialisation does not align."""
    if config.initialisation != "header":
        return
    moving, fixed = (
        volumes.read_grid(scan.image, unoriented=config.unoriented) for scan in pair.ordered(config.direction)
    )
    if not resample.has_overlap(fixed, moving):
        raise UserError(
            f"{moving.path}: does not overlap {fixed.path} in space by their headers; for scans in unrelated frames "
            'set data.initialisation to "body_centre", "rigid" or "affine"'
        )
