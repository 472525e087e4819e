"""Learn2Reg submissions of a run's cases: their files, their fields in the order of the files, and their scores.

Letters: x y z voxels of the working grid.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Real
from ml_collections import ConfigDict

from f3r_jax.common.arrays import VoxelField
from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti, pairs
from f3r_jax.data.cases import Case
from f3r_jax.evaluate import learn2reg

DIRECTION = "ct_to_mr"  # of the challenge
SAME_GRID = 1e-3  # voxels: rounding of float32 headers of the same grid


def open_pairs(data_config: ConfigDict, names: Iterable[str]) -> dict[str, pairs.PairFiles]:
    """The files of cases by name. Checks that the run's fields are on the grid of the files.

    Raises:
      UserError: the data are not files with the MR fixed, or the run's grid is not that of the files.
    """
    source, direction = data_config.source, data_config.direction
    if (source, direction) != ("nifti", DIRECTION):
        raise UserError(
            f"data.source is {source} and data.direction {direction}; Learn2Reg scores files with the MR fixed: "
            "expected nifti and ct_to_mr"
        )
    found = {pair.name: pair for pair in pairs.read_pairs(Path(data_config.root))}
    for name in names:
        _, fixed = found[name].ordered(direction)
        grid = nifti.read_grid(fixed.image)
        shape, spacing = tuple(data_config.shape), tuple(data_config.spacing)
        if grid.shape != shape or np.abs(grid.spacing - spacing).max() > nifti.GRID_TOLERANCE:
            lengths = ",".join(f"{length:.6g}" for length in grid.spacing)
            raise UserError(
                f"{grid.path}: a Learn2Reg submission is on this file's grid, but the run has data.shape {shape} and "
                f"data.spacing {spacing}; expected a run with data.shape={','.join(map(str, grid.shape))} "
                f"data.spacing={lengths}"
            )
    return {name: found[name] for name in names}


def submit(folder: Path, displacement: VoxelField, case: Case, pair: pairs.PairFiles) -> dict[str, Any]:
    """Writes a case's field as a submission and returns its scores, with the file's name under "submission".

    Files without Learn2Reg's numbers are only scored: "submission" is None. As in the challenge, LogJacDetStd is
    computed in the mask from masksTr for a file in imagesTr, and everywhere if there is no mask.

    Raises:
      UserError: both files have label maps, so HD95 is computed, and surface-distance is not installed.
    """
    moving_files, fixed_files = pair.ordered(DIRECTION)
    if fixed_files.labels and moving_files.labels:
        learn2reg.require_surface_distance()  # before anything is written
    scans = fixed_files, moving_files
    field = to_file_order(displacement, case, pair)
    fixed, moving = (
        re.fullmatch(rf".*_(\d{{4}})_{modality}\.nii(\.gz)?", scan.image.name)
        for scan, modality in zip(scans, ("0000", "0001"), strict=True)
    )
    name = learn2reg.submission_name(fixed[1], moving[1]) if fixed and moving else None
    if name is not None:
        learn2reg.write_submission(folder, name, field)
    maps = [_in_file_order(scan.labels, nifti.read_labels(scan.labels)) if scan.labels else None for scan in scans]
    image = fixed_files.image
    mask_file = image.parent.with_name(image.parent.name.replace("images", "masks")) / image.name
    masked = mask_file != image and mask_file.is_file()
    mask = _in_file_order(mask_file, nifti.read(mask_file)) if masked else None
    # In float64, as the evaluator reads the file.
    return {"submission": name, **learn2reg.evaluate_case(field.astype(np.float64), *maps, mask=mask)}


def to_file_order(displacement: VoxelField, case: Case, pair: pairs.PairFiles) -> Float32[np.ndarray, "_x _y _z 3"]:
    """Converts a field from the working grid, the fixed file's in RAS+, to the voxels and the order of the files.

    If both files have that grid, only axes are flipped and swapped. Otherwise the moving file's voxels are computed
    from its header.
    """
    moving_files, fixed_files = pair.ordered(DIRECTION)
    turn, axes, steps = _turn(fixed_files.image)
    turned = displacement.transpose(*axes, 3)[tuple(slice(None, None, step) for step in steps)]
    moving = nifti.read_stored_grid(moving_files.image).affine
    to_moving = np.linalg.inv(moving) @ case.moving_affine  # from a voxel of the working grid to one of the moving file
    rest = (to_moving @ turn - np.eye(4))[:3]
    if (np.abs(rest) @ (*turned.shape[:3], 1)).max() < SAME_GRID:
        return turned[..., axes] * np.array(steps, np.float32)
    voxels = np.moveaxis(np.indices(turned.shape[:3]), 0, -1)
    return (turned @ to_moving[:3, :3].T + voxels @ rest[:, :3].T + rest[:, 3]).astype(np.float32)


def _in_file_order(path: Path, image: nifti.Image) -> Real[np.ndarray, "_x _y _z"]:
    _, axes, steps = _turn(path)
    return image.data.transpose(axes)[tuple(slice(None, None, step) for step in steps)]


def _turn(path: Path) -> tuple[Float64[np.ndarray, "4 4"], list[int], list[int]]:
    """The matrix from a stored voxel to one in RAS+, and the RAS+ axis and the sign of each stored axis."""
    turn = np.rint(np.linalg.inv(nifti.read_grid(path).affine) @ nifti.read_stored_grid(path).affine)
    axes = [int(axis) for axis in np.abs(turn[:3, :3]).argmax(axis=0)]
    return turn, axes, [int(turn[axis, stored]) for stored, axis in enumerate(axes)]
