"""A phantom pair as files, to try a registration without own scans."""

from pathlib import Path

import numpy as np

from f3r_jax.common import events
from f3r_jax.common.errors import UserError
from f3r_jax.common.files import check_writable, errors_of
from f3r_jax.data import nifti
from f3r_jax.data.phantom.generate import make_case
from f3r_jax.register import output_files
from f3r_jax.register.pair_spec import Files

FOLDER = "f3r_demo"
SHAPE, SPACING = (80, 60, 56), 4.0  # voxels, mm
FILES = ("mr.nii.gz", "mr_labels.nii.gz", "ct.nii.gz", "ct_labels.nii.gz")


def prepare(folder: Path, *, overwrite: bool) -> tuple[Files, Files, Path]:
    """Writes a pair to the subfolder `scans`; returns fixed and moving scan, and the folder for the result.

    Raises:
      UserError: a folder cannot be written, or holds older files and `overwrite` is not set.
    """
    output_files.check_folder(folder / "result", overwrite=overwrite)
    fixed, moving = write_pair(folder / "scans", overwrite=overwrite)
    events.line(f"phantom pair: {folder / 'scans'}")
    return fixed, moving, folder / "result"


def write_pair(folder: Path, *, overwrite: bool) -> tuple[Files, Files]:
    """Writes an MR and a CT of one phantom patient, with labels of four organs; returns fixed and moving scan.

    Raises:
      UserError: the folder cannot be written, or holds such files and `overwrite` is not set.
    """
    if (there := [name for name in FILES if (folder / name).exists()]) and not overwrite:
        raise UserError(f"{folder}: holds {there[0]}, expected a new folder as --output, or --overwrite")
    with errors_of(folder, "create the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder)
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    contrasts = {"ct_phases": ("venous",), "mr_sequences": ("t2",)}
    case = make_case(7, 1, shape=SHAPE, spacing=(SPACING,) * 3, **contrasts)
    volumes = (case.mr, case.mr_labels, np.rint(case.ct).astype(np.int16), case.ct_labels)
    for name, data in zip(FILES, volumes, strict=True):
        nifti.write(folder / name, data, affine)
    mr, mr_labels, ct, ct_labels = (str(folder / name) for name in FILES)
    return Files(mr, "mr", labels=mr_labels), Files(ct, "ct", labels=ct_labels)
