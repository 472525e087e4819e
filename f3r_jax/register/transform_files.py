"""Transforms as users give them to `f3r_jax.apply`: results of registrations, fields, matrices, and chains of these.

  FOLDER             of `f3r_jax.register`
  FILE.nii.gz, .nrrd, .mha   a displacement field in ITK's or ANTs' format
  FILE.h5            ITK's transform or composite
  FILE.txt, .mat, .lta, greedy:FILE   a matrix from the fixed scan to the moving scan

Letters: x y z voxels, n points.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from f3r_jax.common.errors import UserError
from f3r_jax.data import chains, itk_formats, nifti, transforms, volumes
from f3r_jax.data.chains import Chain, FieldMap
from f3r_jax.data.grids import Grid
from f3r_jax.data.itk_formats import FLIP
from f3r_jax.data.matrix_files import read_matrix
from f3r_jax.data.optional import simpleitk
from f3r_jax.register import output_files

FORWARD, INVERSE = "displacement.nii.gz", "inverse_displacement.nii.gz"
MATRICES = (".txt", ".tfm", ".mat", ".lta")
HDF5 = (".h5", ".hdf5")


def read_chain(sources: Sequence[str], *, inverse: bool) -> Chain:
    """The map of images through transforms, from the frame where the image ends to the frame where it begins.

    Args:
      sources: in the order in which the image passes them, each from a moving scan to a fixed scan.
      inverse: whether the image starts at the last fixed scan and passes the inverses.

    Raises:
      UserError: no such transform, an unreadable file, or a file that has no inverse.
    """
    order = sources if inverse else sources[::-1]
    return [each for source in order for each in _maps(source, inverse=inverse)]


def carry_points(sources: Sequence[str], points: transforms.Points, *, inverse: bool) -> transforms.Points:
    """Maps points (n 3) through the transforms, from moving to fixed scans; with `inverse` the other way.

    Raises:
      UserError: as `read_chain`; a field file, which maps points one way only.
    """
    for source in sources[::-1] if inverse else sources:
        back, there = (_maps(source, inverse=way) for way in (True, False))
        if inverse:
            points = chains.map_points(there, points)
        elif all(isinstance(each, np.ndarray) for each in there):
            points = chains.map_points(back, points)
        else:
            points = transforms.solve(partial(chains.map_points, there), points, chains.map_points(back, points))[0]
    return points


def _maps(source: str, *, inverse: bool) -> list[Any]:
    """The maps of one transform."""
    path = Path(source)
    if path.is_dir():
        return [FieldMap(*nifti.read_field(field_file(path, inverse=inverse)))]
    prefix = source.partition(":")[0]
    if prefix in ("flirt", "greedy") or path.suffix.lower() in MATRICES:
        if prefix == "flirt":
            raise UserError(f"{source}: FLIRT's matrix depends on both scans; expected it as --affine of register")
        nowhere = Grid((1, 1, 1), np.eye(4))
        matrix = read_matrix(source, nowhere, nowhere)
        return [np.linalg.inv(matrix) if inverse else matrix]
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder, expected the folder of a registration")
    if path.suffix.lower() in HDF5:
        maps = _of_hdf5(path)
        if not inverse:
            return maps
        if all(isinstance(each, np.ndarray) for each in maps):
            return [np.linalg.inv(each) for each in reversed(maps)]
    if inverse:
        raise UserError(f"{path}: a field file maps images one way only; points and --inverse need the folder")
    if path.name.lower().endswith(itk_formats.SUFFIXES):
        return [_field_of_itk(path)]
    return [FieldMap(*nifti.read_field(path))]


def field_file(folder: Path, *, inverse: bool) -> Path:
    """The field from the fixed frame to the moving frame in a result; with `inverse`, from moving to fixed.

    Warping is a backward warp: the field from fixed to moving brings images of the moving scan to the fixed grid.

    Raises:
      UserError: the folder holds no complete result.
    """
    name = INVERSE if inverse else FORWARD
    for file in (name, output_files.SUMMARY):
        if not (folder / file).is_file():
            raise UserError(f"{folder}: no {file} found, expected the folder of a registration that is complete")
    return folder / name


def _field_of_itk(path: Path) -> FieldMap:
    stored = volumes.open_volume(path)
    if stored.shape[3:] != (1, 3):
        raise UserError(f"{path}: no vectors of 3 components; expected a displacement field in mm, LPS")
    field = stored.load(np.float32)[:, :, :, 0] * nifti.LPS
    return chains.checked_field(field, stored.grid)


def _of_hdf5(path: Path) -> list[Any]:
    transform, sitk = itk_formats.read_transform(path), simpleitk(path, "a transform in HDF5")
    parts = sitk.CompositeTransform(transform)
    parts.FlattenTransform()
    last_first = [parts.GetNthTransform(number) for number in range(parts.GetNumberOfTransforms())]
    return [_of_itk(sitk, part.Downcast(), path) for part in reversed(last_first)]  # ITK applies the last one first


def _of_itk(sitk: Any, transform: Any, path: Path) -> Any:
    if transform.GetDimension() == 3 and transform.IsLinear():
        corners = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
        origin, *ends = (np.array(transform.TransformPoint(corner)) for corner in corners)
        lps = np.eye(4)
        lps[:3, :3], lps[:3, 3] = np.stack(ends, axis=1) - origin[:, None], origin
        return FLIP @ lps @ FLIP
    if transform.GetDimension() != 3 or transform.GetTransformEnum() != sitk.sitkDisplacementField:
        raise UserError(f"{path}: holds a {transform.GetName()}; expected linear maps and displacement fields in 3-D")
    stored = itk_formats.from_memory(sitk.DisplacementFieldTransform(transform).GetDisplacementField(), str(path))
    return chains.checked_field(stored.load(np.float32)[:, :, :, 0] * nifti.LPS, stored.grid)
