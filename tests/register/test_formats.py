"""The same pair in other formats gives the same displacement."""

import numpy as np
import pytest

from dicom_files import write_series
from f3r_jax.data import nifti, transforms, volumes
from f3r_jax.data.phantom import generate
from f3r_jax.register import pipeline, scans

SETTINGS = pipeline.Settings(affine="none", spacing=7.0, iterations=20, mind="mind_ssc_near")
PROTOCOL = {"ct_phases": ("venous",), "mr_sequences": ("t2",)}
# Directions (RAS+) of rows, columns and slices
SIDES = {
    "axial": np.array([[-1.0, 0, 0], [0, -1, 0], [0, 0, 1]]),
    "coronal": np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]),
    "sagittal": np.array([[0, 0, -1.0], [-1, 0, 0], [0, -1, 0]]),
    "oblique": np.array([[-0.96, 0.28, 0], [-0.28, -0.96, 0], [0, 0, 1]]),
}
ORDERS = {"coronal": (0, 2, 1), "sagittal": (1, 2, 0)}


@pytest.mark.parametrize(
    ("side", "suffix"), [("axial", "mgz"), ("coronal", "nrrd"), ("sagittal", "mha"), ("oblique", "nrrd")]
)
def test_dicom_and_others_give_the_displacement_of_nifti(tmp_path, sitk, pydicom, side, suffix):
    case = generate.make_case(3, 3, shape=(48, 40, 36), spacing=(7.0,) * 3, **PROTOCOL)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = 7 * SIDES[side], (120, -30, 400)
    order = ORDERS.get(side, (0, 1, 2))
    ct, mr = (np.asarray(data).transpose(order) for data in (np.rint(case.ct), case.mr))
    flips = tuple(axis for axis in range(3) if affine[np.argmax(np.abs(affine[:3, axis])), axis] < 0)
    ct, mr = np.flip(ct, flips), np.flip(mr, flips)
    nifti.write(tmp_path / "ct.nii.gz", ct.astype(np.int16), affine)
    nifti.write(tmp_path / "mr.nii.gz", mr, affine)
    write_series(pydicom, tmp_path / "ct", ct, affine)
    volumes.write(tmp_path / f"mr.{suffix}", mr, affine)
    found = []
    for fixed, moving in (("mr.nii.gz", "ct.nii.gz"), (f"mr.{suffix}", "ct")):
        pair = scans.read(tmp_path / fixed, modality="mr"), scans.read(tmp_path / moving, modality="ct")
        result = pipeline.register_scans(*pair, SETTINGS)
        found.append(transforms.field_on(result.transform, pair[0].image.grid))
    np.testing.assert_allclose(found[1], found[0], atol=1e-3)  # mm
    assert np.abs(found[0]).max() > 5
