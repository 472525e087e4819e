"""Reading and writing of affine transforms in the file formats of ITK and ANTs.

In memory a matrix maps a point in mm, RAS+, from the fixed scan's frame to the moving scan's frame, for a backward
warp. ITK's transforms do the same in LPS. Files contain a linear part L, a translation t and a centre c:
y = L (x - c) + c + t.
"""

import zlib
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from f3r_jax.common.arrays import Matrix
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_readable, write_text
from f3r_jax.data.nifti import PathLike

HEADER = "#Insight Transform File V1.0"
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # RAS to LPS and back
PRECISIONS = ("_double_3_3", "_float_3_3")
# Exceptions that SciPy raises for damaged files.
_DAMAGED = (OSError, ValueError, TypeError, LookupError, MemoryError, NotImplementedError, zlib.error, MatReadError)


def write_matrix(path: PathLike, matrix: np.ndarray) -> None:
    """Writes the matrix in ITK's text format, which ANTs, SimpleITK, ITK-SNAP and 3D Slicer read."""
    path = Path(path)
    if path.suffix not in (".txt", ".tfm"):
        raise UserError(f"{path}: unknown format; expected a name ending in .txt or .tfm")
    lps = FLIP @ matrix @ FLIP
    numbers = " ".join(repr(float(value)) for value in (*lps[:3, :3].ravel(), *lps[:3, 3]))
    lines = (
        HEADER,
        "#Transform 0",
        "Transform: AffineTransform_double_3_3",
        f"Parameters: {numbers}",
        "FixedParameters: 0 0 0",
    )
    write_text(path, "\n".join(lines) + "\n")


def read_matrix(path: PathLike) -> Matrix:
    """Reads one linear transform in ITK's text format (.txt, .tfm) or ANTs' binary format (.mat).

    Raises:
      UserError: no such file, not exactly one transform of a type in `KINDS`, or a map that is not invertible.
    """
    path = Path(path)
    check_readable(path, "an ITK or ANTs transform (.txt, .tfm or .mat)")
    name, parameters, fixed = (_read_binary if path.suffix == ".mat" else _read_text)(path)
    kind = next((name.removesuffix(suffix) for suffix in PRECISIONS if name.endswith(suffix)), None)
    if kind not in KINDS:
        raise UserError(f"{path}: a transform of type {name}; expected one in 3-D of {', '.join(KINDS)}")
    count, linear = KINDS[kind]
    if parameters.size != count or (kind != "TranslationTransform" and fixed.size < 3):
        raise UserError(f"{path}: {parameters.size} parameters and {fixed.size} fixed ones; {name} needs {count} and 3")
    lps = np.eye(4)
    with np.errstate(invalid="ignore", over="ignore"):
        lps[:3, :3] = linear(parameters, fixed)
        centre = fixed[:3] if fixed.size else np.zeros(3)
        lps[:3, 3] = centre + parameters[-3:] - lps[:3, :3] @ centre
        size = abs(np.linalg.det(lps[:3, :3]))
    if not np.isfinite(lps).all() or not 1e-6 <= size < np.inf:
        raise UserError(f"{path}: the transform is singular or not finite; expected an invertible map")
    return FLIP @ lps @ FLIP


def _read_text(path):
    """Reads name, parameters and fixed parameters of the only transform in a text file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a text file; expected a file that begins with '{HEADER}'") from error
    if not lines or not lines[0].startswith("#Insight Transform File"):
        raise UserError(f"{path}: not an ITK transform; expected a file that begins with '{HEADER}'")
    entries = [line.split(":", 1) for line in lines if ":" in line and not line.startswith("#")]
    found = {key.strip(): value.strip() for key, value in entries}
    names = [value.strip() for key, value in entries if key.strip() == "Transform"]
    if len(names) != 1 or "Parameters" not in found:
        raise UserError(f"{path}: transforms {', '.join(names) or 'none'}; expected exactly one, with its parameters")
    try:
        fixed = found.get("FixedParameters", "")
        return names[0], *(np.array(text.split(), np.float64) for text in (found["Parameters"], fixed))
    except ValueError as error:
        raise UserError(f"{path}: some parameters are no numbers ({error}); expected numbers") from error


def _read_binary(path):
    """Reads the same from ANTs' .mat file, a MATLAB file of level 4 with the transform's name and `fixed`."""
    try:
        content = {name: value for name, value in scipy.io.loadmat(path).items() if not name.startswith("__")}
        content = {name: np.asarray(value, np.float64).ravel() for name, value in content.items()}
    except _DAMAGED as error:
        raise UserError(f"{path}: not a .mat file of ANTs ({' '.join(str(error).split())[:80]})") from error
    names = [name for name in content if name != "fixed"]
    if len(names) != 1 or "fixed" not in content:
        found = ", ".join(names) or "nothing"
        raise UserError(f"{path}: holds {found}; expected one transform and its centre, as written by ANTs")
    return names[0], content[names[0]], content["fixed"]


def _euler(parameters, fixed):
    (cx, cy, cz), (sx, sy, sz) = np.cos(parameters[:3]), np.sin(parameters[:3])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    in_order_zyx = fixed.size > 3 and fixed[3] != 0
    return about_z @ about_y @ about_x if in_order_zyx else about_z @ about_x @ about_y


def _versor(parameters, fixed):
    """The rotation of a unit quaternion whose vector part is given (itk::Versor::GetMatrix)."""
    x, y, z = parameters[:3]
    w = np.sqrt(1 - x * x - y * y - z * z)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _matrix(parameters, fixed):
    return parameters[:9].reshape(3, 3)


def _identity(parameters, fixed):
    return np.eye(3)


# ITK's name: the number of parameters, whose last three are the translation, and the function for the linear part.
KINDS = {
    "AffineTransform": (12, _matrix),
    "MatrixOffsetTransformBase": (12, _matrix),
    "Euler3DTransform": (6, _euler),
    "VersorRigid3DTransform": (6, _versor),
    "TranslationTransform": (3, _identity),
}
