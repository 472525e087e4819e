"""Learn2Reg's submission files and scores for AbdomenMRCT, bit-identical to those of the challenge's evaluator.

Source: the challenge's public evaluator, version 2.0 (evaluation.py and utils.py in the folder evaluation of
github.com/MDL-UzL/L2R), and DeepMind's surface-distance, which it calls for HD95. Its order of operations is kept,
because the last bit depends on it. Compare these scores with its leaderboard only. Otherwise use those of `metrics`:

- LogJacDetStd is the standard deviation of log(det + 3), about a quarter of that of log(det) for small deformations.
- num_foldings is counted after the + 3 and a clip to positive values, so it is always 0.
- HD95 is in voxels, whatever the spacing.
- A label that one of the two files lacks is left out. A label that the warp loses has Dice 0 and an infinite HD95.
- A position outside the outer voxels' centres of the moving map has label 0, however close it is.

A field is a backward (pull) displacement in voxels. Everything is in the order of the files, not in RAS+. The last bits
depend on the field's type: the challenge computes in float64 with what it reads from .nii.gz, and partly in float32
with .npz.

Letters: x y z voxels of the fixed file, n keypoints.
"""

import importlib.util
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Real, Shaped
from scipy.ndimage import map_coordinates

from f3r_jax.common.arrays import VoxelField
from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti

StoredLabels = Real[np.ndarray, "x y z"]
OtherLabels = Real[np.ndarray, "_x _y _z"]  # the moving file may have another size

LABELS = (1, 2, 3, 4)  # of the challenge's configs for AbdomenMRCT: liver, spleen, right and left kidney
Score = dict[str, Any]  # "mean", and "detailed": a number, or one per label or keypoint, as in the challenge's files

METRICS = ("LogJacDetStd", "num_foldings", "DSC", "HD95", "TRE")  # names as in the challenge's results
INNER = (slice(2, -2),) * 3  # the voxels of its Jacobian


class Keypoints(NamedTuple):
    """Corresponding points in voxels of their files, and the moving file's spacing in mm from its header."""

    fixed: Real[np.ndarray, "n 3"]
    moving: Real[np.ndarray, "n 3"]
    moving_spacing: Sequence[float] | Real[np.ndarray, "3"]


def evaluate_case(
    displacement: VoxelField,
    fixed_labels: StoredLabels | None,
    moving_labels: OtherLabels | None,
    *,
    labels: Sequence[int] = LABELS,
    mask: Shaped[np.ndarray, "x y z"] | None = None,
    keypoints: Keypoints | None = None,
) -> dict[str, Score]:
    """The challenge's scores of one case, {metric: {"mean", "detailed"}}, with the names in `METRICS`.

    Args:
      displacement: the field as `read_submission` reads it.
      fixed_labels: label map of the fixed file; without both maps there are no DSC and HD95.
      moving_labels: label map of the moving file.
      labels: the label values to score; "detailed" has one entry per value.
      mask: 1 where LogJacDetStd is computed; everywhere if None. AbdomenMRCT uses the fixed file's in masksTr, masksTs.
      keypoints: for TRE in mm, which AbdomenMRCT doesn't use.

    Raises:
      UserError: surface-distance is not installed.
    """
    clipped = (jacobian_determinant(displacement) + 3).clip(1e-9, 1e9)
    logs = np.log(clipped)
    if mask is not None:
        logs = np.ma.MaskedArray(logs, mask[INNER] != 1)
    spread = logs.std()
    spread = float("nan") if spread is np.ma.masked else float(spread)
    foldings = float(np.count_nonzero(clipped <= 0))
    scores: dict[str, Score] = {
        "LogJacDetStd": {"mean": spread, "detailed": spread},
        "num_foldings": {"mean": foldings, "detailed": foldings},
    }
    if fixed_labels is not None and moving_labels is not None:
        warped = warp_labels(moving_labels, displacement)
        for name, score in (("DSC", _dice), ("HD95", _hd95)):
            scores[name] = _over_labels(score, fixed_labels, moving_labels, warped, labels)
    if keypoints is not None:
        errors = target_registration_error(displacement, keypoints)
        scores["TRE"] = {"mean": float(errors.mean()), "detailed": errors.tolist()}
    return scores


def aggregate(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, population standard deviation and 30 % quantile of the cases' means, for metrics that all cases have.

    As in the challenge, one case without a value makes the metric NaN.
    """
    shared = [name for name in METRICS if cases and all(name in case for case in cases)]
    means = {name: np.array([case[name]["mean"] for case in cases]) for name in shared}
    with np.errstate(invalid="ignore"):  # infinite for a lost label
        return {
            name: {"mean": float(m.mean()), "std": float(m.std()), "30": float(np.quantile(m, 0.3))}
            for name, m in means.items()
        }


def jacobian_determinant(displacement: VoxelField) -> Float64[np.ndarray, "_x _y _z"]:
    """Determinant of d phi / dp by central differences, without the two outer voxels on each side."""
    identity = np.eye(3)  # float64, so that the result is float64 for a float32 field too
    # Always in C order, because the sums of the standard deviation depend on the memory order.
    u = [np.ascontiguousarray(displacement[..., component], np.float64) for component in range(3)]
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (
        [
            _difference(u[component], axis).astype(displacement.dtype) + identity[axis, component]
            for component in range(3)
        ]
        for axis in range(3)
    )  # xy is d u_y / d x
    return xx * (yy * zz - yz * zy) - yx * (xy * zz - xz * zy) + zx * (xy * yz - xz * yy)


def warp_labels(moving_labels: OtherLabels, displacement: VoxelField) -> StoredLabels:
    """The moving label map at p + u(p), nearest voxel; 0 outside the map."""
    positions = np.indices(displacement.shape[:3]) + np.moveaxis(displacement, -1, 0)
    return map_coordinates(moving_labels, positions, order=0)


def target_registration_error(displacement: VoxelField, keypoints: Keypoints) -> Float[np.ndarray, "n"]:  # noqa: F821
    """Distance in mm between each fixed keypoint, mapped by phi with a cubic spline, and its moving keypoint."""
    fixed, moving, spacing = keypoints
    shifts = [map_coordinates(displacement[..., axis], fixed.T) for axis in range(3)]
    return np.linalg.norm((fixed + np.stack(shifts, axis=-1) - moving) * spacing, axis=1)


def require_surface_distance() -> None:
    """Raises a UserError if surface-distance is not installed."""
    if importlib.util.find_spec("surface_distance") is None:
        raise UserError(
            "Learn2Reg's HD95 needs surface-distance, which is not installed: make EXTRAS=baselines, or "
            "pip install surface-distance"
        )


def submission_name(fixed_id: int | str, moving_id: int | str) -> str:
    """File name of a field, such as disp_0006_0006.nii.gz, from the case numbers of the fixed MR and the moving CT."""
    return f"disp_{int(fixed_id):04d}_{int(moving_id):04d}.nii.gz"


def write_submission(folder: Path, name: str, displacement: VoxelField) -> Path:
    """Writes a field in voxels, in the order of the challenge's files, as (x y z 3) float32; returns its path.

    The evaluator reads .nii.gz as well as .npz. Until 2021 the challenge asked for half precision, which would round a
    displacement of 16 voxels to 1/64. The evaluator ignores the affine. It is the identity here, because no other tool
    should apply such a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    nifti.write(folder / name, np.asarray(displacement, np.float32), np.eye(4))
    return folder / name


def read_submission(path: Path) -> VoxelField:
    """Reads a field as the evaluator does: float64 from .nii.gz, float32 from an .npz with one array.

    Raises:
      UserError: the file is not readable, or it contains no (x y z 3) field.
    """
    field = _read_npz(path) if path.name.endswith(".npz") else _read_nifti(path)
    if field.ndim != 4 or field.shape[-1] != 3:
        shape = " x ".join(map(str, field.shape))
        raise UserError(f"{path}: holds {shape} values; expected a displacement field of x x y x z x 3")
    return field


def _read_nifti(path: Path) -> np.ndarray:
    stored = nifti.read_stored(path, unoriented="RAS")  # only its numbers matter
    try:
        return stored.get_fdata()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the values, the file seems truncated ({error})") from error


def _read_npz(path: Path) -> np.ndarray:
    try:
        with np.load(path) as stored:
            if len(stored.files) != 1:
                raise UserError(f"{path}: holds {len(stored.files)} arrays; expected one, the displacement field")
            return stored[stored.files[0]].astype(np.float32)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as .npz ({error}); expected a displacement field") from error


def _difference(values: Float64[np.ndarray, "x y z"], axis: int) -> Float64[np.ndarray, "_x _y _z"]:
    """Central difference along an axis, of the inner voxels."""
    ahead, behind = list(INNER), list(INNER)
    ahead[axis], behind[axis] = slice(3, -1), slice(1, -3)
    return 0.5 * values[tuple(ahead)] - 0.5 * values[tuple(behind)]


def _over_labels(
    score: Callable, fixed: StoredLabels, moving: OtherLabels, warped: StoredLabels, labels: Sequence[int]
) -> Score:
    """The score of each label, NaN if a file lacks the label, and their mean without NaN."""
    detailed = {}
    for label in labels:
        known = (fixed == label).any() and (moving == label).any()
        detailed[label] = float(score(fixed == label, warped == label)) if known else float("nan")
    values = np.array(list(detailed.values()))
    return {"mean": float("nan" if np.isnan(values).all() else np.nanmean(values)), "detailed": detailed}


def _dice(fixed: Bool[np.ndarray, "x y z"], warped: Bool[np.ndarray, "x y z"]) -> float:
    return 2 * np.count_nonzero(fixed & warped) / (np.count_nonzero(fixed) + np.count_nonzero(warped))


def _hd95(fixed: Bool[np.ndarray, "x y z"], warped: Bool[np.ndarray, "x y z"]) -> float:
    require_surface_distance()
    from surface_distance.metrics import compute_robust_hausdorff, compute_surface_distances

    if not warped.any():  # here the package would use names that NumPy has removed
        return float("inf")
    return compute_robust_hausdorff(compute_surface_distances(fixed, warped, np.ones(3)), 95.0)
