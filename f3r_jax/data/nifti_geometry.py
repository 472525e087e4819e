"""The map from voxels to mm that a NIfTI header gives.

A header holds up to two maps from voxels to mm: the qform (a rotation) and the sform (any affine map). Each has a code;
0 means that it is not set. Where they differ, f3r_jax follows ITK, which ANTs, SimpleITK and 3D Slicer use:

  - The sform is used if its axes are orthogonal and the qform is not set, or the sform's code is 1, or both agree.
  - Otherwise the qform is used if it is set.
  - The lengths of voxels come from `pixdim`. Units of metres and micrometres are converted to mm.
  - A sheared sform without a qform is used too. ITK refuses such files.

If neither is set, the axes of the file are unknown. Such a file is refused unless the caller declares them. Every error
is reported as a `UserError` of one line.
"""

import dataclasses
import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64

from f3r_jax.common.errors import UserError

Affine = Float64[np.ndarray, "4 4"]  # voxel indices to mm, RAS+
PathLike = str | os.PathLike

AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}  # (axis of RAS+, sign)
DECLARE = "--unoriented"
SKEW = 1e-4  # ITK's limit: largest deviation of the product of unit axes and its transpose from the identity
SIMILAR = 1e-4  # ITK's limit for a qform and an sform that agree
WORTH_A_NOTE = 1e-3  # voxels: smaller differences of two geometries are rounding errors
MM = {1: 1000.0, 3: 0.001}  # by NIfTI's code of metres and micrometres; 2 is mm, 0 is taken for mm
CODES = {0: "not set", 1: "scanner", 2: "aligned", 3: "Talairach", 4: "MNI"}


@runtime_checkable
class Header(Protocol):
    """The fields of a header by their NIfTI names, such as one of nibabel's."""

    def __getitem__(self, name: str) -> Any:
        """The value of a field."""


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The map from voxels to mm of a header, and `notes`: lines for a user about how it was chosen."""

    affine: Affine
    notes: tuple[str, ...] = ()


def geometry(header: Header, path: PathLike, *, unoriented: str | None = None) -> Geometry:
    """The geometry of a header by ITK's rule; raises a UserError if it has none."""
    lengths = np.abs(np.asarray(header["pixdim"][1:4], np.float64))
    lengths[~np.isfinite(lengths) | (lengths == 0)] = 1.0  # as NIfTI's reference code does
    q_code, s_code = (max(int(header[f"{form}_code"]), 0) for form in ("qform", "sform"))
    scale = MM.get(int(header["xyzt_units"]) & 7, 1.0)
    notes = [] if scale == 1 else [f"{path}: lengths are stored in {'metres' if scale > 1 else 'micrometres'}"]
    if not q_code and not s_code:
        affine = declared(unoriented, lengths, path)
    else:
        qform = quaternion_affine(header, lengths) if q_code else None
        sform = _sform(header) if s_code else None
        uses_sform = _prefers_sform(qform, sform, s_code, path)
        chosen = sform if uses_sform else qform
        affine = np.full((4, 4), np.nan) if chosen is None else _with_lengths(chosen, lengths)
        note = _note_on_forms(header, (q_code, s_code), qform, sform, affine, uses_sform=uses_sform)
        notes += [f"{path}: {note}"] if note else []
    affine = affine.copy()
    affine[:3] *= scale
    check_affine(affine, path)
    if is_sheared(affine):
        notes.append(
            f"{path}: its axes are not orthogonal (gantry tilt?); ITK, ANTs and 3D Slicer refuse this file and "
            "results on its grid; resample it first to open them there"
        )
    return Geometry(affine, tuple(notes))


def check_axes(unoriented: str, source: str) -> None:
    """Raises a UserError unless the letters name three axes, such as RAS or LPS; `source` names the setting."""
    if len(unoriented) != 3 or {AXES[letter][0] for letter in unoriented if letter in AXES} != {0, 1, 2}:
        raise UserError(
            f"{source} is {unoriented!r}, expected the directions of the three axes, such as RAS (to the right, "
            "anterior, superior) or LPS (as ITK reads such files)"
        )


def quaternion_affine(header: Header, lengths: np.ndarray) -> Affine:
    """The qform as a matrix, with the lengths of voxels in the header's unit; quaternions are normalised as by ITK."""
    b, c, d = (float(header[f"quatern_{letter}"]) for letter in "bcd")
    rest = 1 - (b * b + c * c + d * d)
    if rest < 1e-7:
        norm = np.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / norm, c / norm, d / norm
    else:
        a = np.sqrt(rest)
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    flip = -1.0 if float(header["pixdim"][0]) < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = turn * lengths * (1.0, 1.0, flip)
    affine[:3, 3] = [float(header[f"qoffset_{axis}"]) for axis in "xyz"]
    return affine


def is_sheared(affine: Float[np.ndarray, "4 4"]) -> bool:
    """Whether the axes deviate from right angles by more than ITK accepts."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool((np.abs(unit @ unit.T - np.eye(3)) > SKEW).any())


def check_affine(affine: np.ndarray, path: PathLike) -> None:
    """Raises a UserError for an affine that is not finite or has dependent axes."""
    if not np.isfinite(affine).all():
        raise UserError(f"{path}: the affine holds NaN or infinite values; expected finite values: correct the header")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # The determinant of the unit axes is 1 for orthogonal axes of any spacing, and 0 for linearly dependent ones.
    if (lengths < 1e-6).any() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        spacing = " x ".join(f"{length:g}" for length in lengths)
        raise UserError(
            f"{path}: singular affine (spacing {spacing} mm); expected three independent axes: correct the header"
        )


def declared(
    unoriented: str | None, lengths: np.ndarray, path: PathLike, why: str = "qform_code and sform_code are 0"
) -> Affine:
    """The affine of a file without orientation: first voxel at 0, axes as declared; a UserError if they are not."""
    if not unoriented:
        raise UserError(
            f"{path}: has no orientation ({why}), so left and right are unknown; if you know its axes declare them, "
            f"such as {DECLARE}=RAS (to the right, anterior, superior) or {DECLARE}=LPS (as ITK reads it)"
        )
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for column, letter in enumerate(unoriented):
        row, sign = AXES[letter]
        affine[row, column] = sign * lengths[column]
    return affine


def _sform(header: Header) -> Affine:
    return np.array([*(header[f"srow_{axis}"] for axis in "xyz"), (0, 0, 0, 1)], np.float64)


def _is_map(affine: np.ndarray) -> bool:
    """Whether the axes are finite and independent."""
    axes = affine[:3, :3]
    return bool(np.isfinite(axes).all() and abs(np.linalg.det(axes)) > 1e-12)


def _prefers_sform(qform: Affine | None, sform: Affine | None, s_code: int, path: PathLike) -> bool:
    """ITK's choice; a sform without a qform is used even where ITK refuses it."""
    if sform is None or qform is None:
        return qform is None
    if not _is_map(sform) or is_sheared(sform):
        return False
    if s_code == 1 or np.abs(sform - qform).max() < SIMILAR:
        return True
    if np.abs(np.abs(sform) - np.abs(qform)).max() < SIMILAR and np.linalg.det(sform) * np.linalg.det(qform) < 0:
        # ITK compares singular vectors, whose signs depend on rounding.
        raise UserError(
            f"{path}: qform and sform are mirror images of each other, and readers use the one or the other; correct "
            "the header"
        )
    return False


def _with_lengths(affine: Affine, lengths: np.ndarray) -> Affine:
    """The affine with voxels of the given lengths; unchanged if it has them but for rounding."""
    own = np.linalg.norm(affine[:3, :3], axis=0)
    if not _is_map(affine) or (np.abs(own / lengths - 1) < 1e-6).all():
        return affine
    scaled = affine.copy()
    scaled[:3, :3] *= lengths / own
    return scaled


def _note_on_forms(
    header: Header,
    codes: tuple[int, int],
    qform: Affine | None,
    sform: Affine | None,
    used: Affine,
    *,
    uses_sform: bool,
) -> str | None:
    """A line if another reader would place a voxel elsewhere by more than WORTH_A_NOTE voxels."""
    far = 0.0
    for other in (qform, sform):
        if other is not None and _is_map(other) and _is_map(used):
            far = max(far, _distance(header, used, other))
    if far <= WORTH_A_NOTE:
        return None
    names = [f"{form} ({CODES.get(code, code)})" for form, code in zip(("qform", "sform"), codes, strict=True)]
    if qform is None:
        return f"voxel sizes of pixdim and sform differ, by up to {far:.3g} voxels; pixdim is used, as by ITK"
    chosen, left_out = (names[1], names[0]) if uses_sform else names
    return f"qform and sform differ, by up to {far:.3g} voxels; the {chosen} is used as by ITK, not the {left_out}"


def _distance(header: Header, used: Affine, other: Affine) -> float:
    """The largest distance in voxels between the places that two affines give a corner of the volume."""
    shape = [max(int(size), 1) for size in header["dim"][1:4]]
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in shape], indexing="ij")).reshape(3, -1)
    rest = (np.linalg.inv(used) @ other - np.eye(4))[:3]
    return float(np.abs(rest[:, :3] @ corners + rest[:, 3:]).max())
