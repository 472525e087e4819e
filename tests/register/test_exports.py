"""Results in other formats: the same values, and a transform that SimpleITK and ANTs apply alike."""

import numpy as np
import pytest

from conftest import blob
from f3r_jax.common.errors import UserError
from f3r_jax.data import transforms, volumes
from f3r_jax.data.grids import Grid
from f3r_jax.register import exports

AFFINE = np.array([[-2.0, 0.1, 0, 30], [0.1, 2.0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])
MATRIX = np.array([[0.98, -0.1, 0.05, 4.0], [0.1, 0.99, 0.02, -6.0], [0.0, 0.03, 1.02, 2.0], [0, 0, 0, 1.0]])


def orthogonal(affine):
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    made = affine.copy()
    made[:3, :3] = (left @ right) * (2.0, 2.0, 3.0)
    return made


@pytest.fixture
def grid():
    return Grid((16, 14, 12), orthogonal(AFFINE))


def test_the_composite_maps_points_as_the_transform_does(tmp_path, sitk, grid):
    deformation = (3 * np.random.default_rng(0).normal(size=(*grid.shape, 3))).astype(np.float32)
    exports.write_transform(tmp_path, ("h5",), deformation, MATRIX, grid)
    read = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    field = transforms.followed_by(deformation, MATRIX, grid)
    for voxel in ((0, 0, 0), (3, 7, 5), (15, 13, 11)):
        x = (grid.affine @ (*voxel, 1))[:3]
        lps = np.array(read.TransformPoint((x * (-1, -1, 1)).tolist()))
        np.testing.assert_allclose(lps * (-1, -1, 1), x + field[voxel], atol=1e-4)
    exports.write_transform(tmp_path / "none", (), deformation, MATRIX, grid)
    assert not (tmp_path / "none").exists()


def test_images_hold_the_same_values_in_every_format(tmp_path, sitk, grid):
    values = blob(0.0, shape=grid.shape)
    exports.write_images(tmp_path, "warped", ("nrrd", "mha", "mgz", "h5"), values, grid)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["warped.mgz", "warped.mha", "warped.nrrd"]
    for path in tmp_path.iterdir():
        opened = volumes.open_volume(path)
        np.testing.assert_array_equal(opened.load(np.float32), values)
        np.testing.assert_allclose(opened.affine, grid.affine, atol=1e-5)


def test_the_moving_scans_own_format():
    assert exports.resolved(("own", "h5"), "ct.nrrd") == ("nrrd", "h5")
    assert exports.resolved(("own", "mha"), "ct.nii.gz") == ("mha",)
    assert exports.resolved(("mha", "own"), "ct.mhd") == ("mha",)
    for formats, moving, words in (
        (("own",), "series", "a DICOM series, which is not written"),
        (("tif",), "ct.nii", "found 'tif', expected some of own, nrrd, mha, mgz, h5"),
    ):
        with pytest.raises(UserError, match=words):
            exports.resolved(formats, moving)


def test_sheared_grids_are_refused_before_the_work(sitk):
    sheared = Grid((4, 4, 4), AFFINE @ np.array([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "ct.nii")
    with pytest.raises(UserError, match=r"ct.nii: its axes are not orthogonal"):
        exports.check(("mha",), sheared, "ct.nii")
    exports.check(("mgz",), sheared, "ct.nii")
