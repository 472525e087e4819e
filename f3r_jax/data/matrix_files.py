"""Affine matrices in the files of other software: ITK and ANTs, FSL's FLIRT, greedy, FreeSurfer.

In memory a matrix maps a point in mm, RAS+, from the fixed scan's frame to the moving scan's frame. FLIRT's and
greedy's files are both plain 4 x 4 matrices with different meanings, so the caller names the software:

  FILE.txt, .tfm, .mat   ITK's text, ANTs' binary (`itk_affine.py`)
  FILE.h5, .hdf5         ITK's HDF5, also a composite of linear transforms; needs SimpleITK
  FILE.lta               FreeSurfer: from the moving scan (src) to the fixed scan (dst)
  flirt:FILE             FSL: from the moving scan (-in) to the fixed scan (-ref), in FSL's scaled voxels
  greedy:FILE            greedy and c3d_affine_tool: from the fixed scan to the moving scan, in RAS+
"""

from pathlib import Path

import numpy as np

from f3r_jax.common.arrays import Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable
from f3r_jax.data import itk_affine
from f3r_jax.data.grids import Grid
from f3r_jax.data.itk_formats import FLIP, read_transform

SOFTWARE = ("flirt", "greedy")
VOXELS, RAS = 0, 1  # types of an LTA
REACH = 100.0  # mm: where a linear transform is sampled


def read_matrix(source: str | Path, fixed: Grid, moving: Grid) -> Matrix:
    """Reads a matrix from mm of the fixed frame to mm of the moving frame.

    Args:
      source: a path, with a prefix for FLIRT and greedy.
      fixed: the fixed scan's grid as stored, which FLIRT's convention refers to.
      moving: the moving scan's grid as stored.

    Raises:
      UserError: no such file, an unknown format, or a map that is not invertible.
    """
    software, separator, file = str(source).partition(":")
    if separator and software in SOFTWARE:
        matrix = _read_plain(Path(file))
        return matrix if software == "greedy" else _from_flirt(matrix, fixed, moving, file)
    path = Path(source)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _read_hdf5(path)
    if path.suffix.lower() == ".lta":
        return _read_lta(path)
    if path.is_file() and _is_plain(path):
        raise UserError(
            f"{path}: a plain 4 x 4 matrix, which FLIRT and greedy define differently; expected flirt:{path} or "
            f"greedy:{path}"
        )
    return itk_affine.read_matrix(path)


def _is_plain(path: Path) -> bool:
    try:
        return np.array([line.split() for line in path.read_text().split("\n") if line.strip()], float).shape == (4, 4)
    except (OSError, ValueError):
        return False


def _read_plain(path: Path) -> Matrix:
    check_readable(path, "a text file of 4 x 4 numbers")
    if not _is_plain(path):
        raise UserError(f"{path}: not a text file of 4 x 4 numbers, as FLIRT and greedy write")
    return _checked(np.loadtxt(path, dtype=np.float64), path)


def _from_flirt(matrix: Matrix, fixed: Grid, moving: Grid, path: str) -> Matrix:
    """FLIRT maps scaled voxels of the moving scan to those of the fixed scan."""
    to_moving = np.linalg.inv(matrix)
    return _checked(
        moving.affine @ np.linalg.inv(_scaled(moving)) @ to_moving @ _scaled(fixed) @ np.linalg.inv(fixed.affine), path
    )


def _scaled(grid: Grid) -> Matrix:
    """From voxels as stored to FSL's mm: x is flipped if the axes are right-handed."""
    matrix = np.diag([*grid.spacing, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        matrix[0, 0] *= -1
        matrix[0, 3] = (grid.shape[0] - 1) * grid.spacing[0]
    return matrix


def _read_hdf5(path: Path) -> Matrix:
    transform = read_transform(path)
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise UserError(
            f"{path}: a {transform.GetName()} of {transform.GetDimension()}-D; expected a linear map in 3-D"
        )
    lps = np.eye(4)
    lps[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    for axis in range(3):
        lps[:3, axis] = (transform.TransformPoint(tuple(REACH * np.eye(3)[axis])) - lps[:3, 3]) / REACH
    return _checked(FLIP @ lps @ FLIP, path)


def _read_lta(path: Path) -> Matrix:
    check_readable(path, "an LTA of FreeSurfer")
    try:
        lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        found = [line.split("=", 1) for line in lines if "=" in line]
        kind = int(next(value for key, value in found if key.strip() == "type"))
        start = lines.index("1 4 4") + 1
        matrix = np.array([line.split() for line in lines[start : start + 4]], np.float64).reshape(4, 4)
        source, target = (lines.index(f"{side} volume info") for side in ("src", "dst"))
        if kind == VOXELS:
            matrix = _lta_volume(lines[target:]) @ matrix @ np.linalg.inv(_lta_volume(lines[source:target]))
    except (OSError, ValueError, LookupError, StopIteration, np.linalg.LinAlgError) as error:
        raise UserError(f"{path}: not an LTA of one linear transform ({' '.join(str(error).split())[:80]})") from error
    if kind not in (VOXELS, RAS):
        raise UserError(f"{path}: an LTA of type {kind}; expected 0 (voxels) or 1 (RAS): convert it with lta_convert")
    return np.linalg.inv(_checked(matrix, path))


def _lta_volume(lines: list[str]) -> Matrix:
    """From voxels of a volume to mm, RAS+, by its entry in an LTA."""
    entries = dict(line.split("=", 1) for line in lines if "=" in line)
    values = {key.strip(): np.array(value.split(), np.float64) for key, value in entries.items() if "file" not in key}
    affine = np.eye(4)
    affine[:3, :3] = np.stack([values[f"{axis}ras"] for axis in "xyz"], axis=1) * values["voxelsize"]
    affine[:3, 3] = values["cras"] - affine[:3, :3] @ (values["volume"] / 2)
    return affine


def _checked(matrix: Matrix, path: str | Path) -> Matrix:
    if not np.isfinite(matrix).all() or not 1e-6 <= abs(np.linalg.det(matrix[:3, :3])) < np.inf:
        raise UserError(f"{path}: the transform is singular or not finite; expected an invertible map")
    return matrix
