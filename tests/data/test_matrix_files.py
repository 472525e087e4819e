"""Matrices of FLIRT, greedy, FreeSurfer and ITK's HDF5, on points, by their software's definitions."""

import nibabel
import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data.grids import Grid
from f3r_jax.data.itk_affine import write_matrix
from f3r_jax.data.matrix_files import read_matrix

MATRIX = np.array([[0.9, -0.3, 0.1, 12.5], [0.25, 1.1, -0.2, -7.0], [0.05, 0.15, 0.95, 33.0], [0.0, 0.0, 0.0, 1.0]])
RIGHT_HANDED = Grid((20, 30, 10), np.array([[2.0, 0, 0, -10], [0, 1.5, 0, 4], [0, 0, 3, -7], [0, 0, 0, 1]]))
LEFT_HANDED = Grid((16, 12, 14), np.array([[-1.2, 0, 0, 30], [0, 0.3, 2, 4], [0, 2, -0.3, 9], [0, 0, 0, 1]]))


def message(source):
    with pytest.raises(UserError) as caught:
        read_matrix(source, RIGHT_HANDED, LEFT_HANDED)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fsl_point(grid, voxel):
    """FSL's coordinates of a voxel, as its documentation defines them."""
    x, y, z = voxel
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        x = grid.shape[0] - 1 - x
    return np.array([x, y, z]) * np.linalg.norm(grid.affine[:3, :3], axis=0)


def save(path, matrix):
    np.savetxt(path, matrix, fmt="%.10f")
    return path


@pytest.mark.parametrize("fixed", [RIGHT_HANDED, LEFT_HANDED])
@pytest.mark.parametrize("moving", [RIGHT_HANDED, LEFT_HANDED])
def test_flirt_maps_the_moving_scans_fsl_points_to_the_fixed_ones(tmp_path, fixed, moving):
    save(tmp_path / "omat.mat", MATRIX)
    found = read_matrix(f"flirt:{tmp_path / 'omat.mat'}", fixed, moving)
    for voxel in ((0, 0, 0), (3, 5, 2), (10, 1, 7)):  # of the moving scan
        in_fixed = MATRIX @ (*fsl_point(moving, voxel), 1)
        index = in_fixed[:3] / fixed.spacing
        if np.linalg.det(fixed.affine[:3, :3]) > 0:
            index[0] = fixed.shape[0] - 1 - index[0]
        place = fixed.affine @ (*index, 1)
        np.testing.assert_allclose(found @ place, moving.affine @ (*voxel, 1), atol=1e-6)


def test_greedy_maps_fixed_to_moving_in_ras(tmp_path):
    save(tmp_path / "a.mat", MATRIX)
    found = read_matrix(f"greedy:{tmp_path / 'a.mat'}", RIGHT_HANDED, LEFT_HANDED)
    np.testing.assert_allclose(found, MATRIX, atol=1e-9)


def test_greedys_own_result_moves_the_moving_scan_onto_the_fixed_one(tmp_path, picsl_greedy):
    """A ball that is shifted by (-6, 4, 3) mm in the moving scan."""
    axes = np.meshgrid(*[np.arange(size) for size in (32, 32, 24)], indexing="ij")
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    for name, shift in (("fixed", (0, 0, 0)), ("moving", (-6, 4, 3))):
        places = np.stack(axes, -1) @ affine[:3, :3].T - affine[:3, :3] @ (16, 16, 12) - np.array(shift)
        ball = 1000 * np.exp(-((places / (14, 10, 8)) ** 2).sum(-1))
        nibabel.save(nibabel.Nifti1Image(ball.astype(np.float32), affine), tmp_path / f"{name}.nii.gz")
    files = [str(tmp_path / name) for name in ("fixed.nii.gz", "moving.nii.gz", "a.mat")]
    picsl_greedy.Greedy3D().execute(
        f"-d 3 -a -dof 6 -m SSD -i {files[0]} {files[1]} -ia-identity -n 60x30 -o {files[2]}"
    )
    found = read_matrix(f"greedy:{files[2]}", RIGHT_HANDED, LEFT_HANDED)
    centre = affine[:3, :3] @ (16, 16, 12)
    np.testing.assert_allclose((found @ (*centre, 1))[:3] - centre, (-6, 4, 3), atol=0.3)


LTA = """type      = {kind} # LINEAR
nxforms   = 1
mean      = 0.0 0.0 0.0
sigma     = 1.0
1 4 4
{matrix}
src volume info
valid = 1  # volume info valid
filename = moving=1.mgz
volume = 256 200 180
voxelsize = 1.0 1.5 2.0
xras   = -1.0 0.0 0.0
yras   = 0.0 0.0 -1.0
zras   = 0.0 1.0 0.0
cras   = 5.0 -6.0 7.0
dst volume info
valid = 1  # volume info valid
filename = fixed.mgz
volume = 100 110 120
voxelsize = 2.0 2.0 2.0
xras   = 1.0 0.0 0.0
yras   = 0.0 1.0 0.0
zras   = 0.0 0.0 1.0
cras   = 1.0 2.0 3.0
subject fsaverage
fscale 0.15
"""


def test_an_lta_maps_the_moving_scan_to_the_fixed_one(tmp_path):
    rows = "\n".join(" ".join(map(str, row)) for row in MATRIX)
    (tmp_path / "ras.lta").write_text(LTA.format(kind=1, matrix=rows))
    found = read_matrix(tmp_path / "ras.lta", RIGHT_HANDED, LEFT_HANDED)
    np.testing.assert_allclose(found @ MATRIX @ (3, 4, 5, 1), (3, 4, 5, 1), atol=1e-9)
    (tmp_path / "voxels.lta").write_text(LTA.format(kind=0, matrix=rows))
    found = read_matrix(tmp_path / "voxels.lta", RIGHT_HANDED, LEFT_HANDED)
    # The volumes' central voxels are at cras.
    moving = np.array([5.0 - 10, -6.0, 7.0 - 3.0, 1])  # voxel (128 + 10, 100 + 2, 90): x is -R, y is -S
    in_fixed = MATRIX @ (138, 102, 90, 1)
    fixed = (in_fixed[:3] - (50, 55, 60)) * 2 + (1, 2, 3)
    np.testing.assert_allclose(found @ (*fixed, 1), moving, atol=1e-9)
    (tmp_path / "other.lta").write_text(LTA.format(kind=14, matrix=rows))
    assert "an LTA of type 14" in message(tmp_path / "other.lta")
    (tmp_path / "cut.lta").write_text(LTA[:90])
    assert "not an LTA" in message(tmp_path / "cut.lta")


def test_hdf5_of_itk(tmp_path, sitk):
    write_matrix(tmp_path / "a.tfm", MATRIX)
    one = sitk.ReadTransform(str(tmp_path / "a.tfm"))
    sitk.WriteTransform(one, str(tmp_path / "a.h5"))
    np.testing.assert_allclose(read_matrix(tmp_path / "a.h5", RIGHT_HANDED, LEFT_HANDED), MATRIX, atol=1e-9)
    sitk.WriteTransform(sitk.CompositeTransform([one, one]), str(tmp_path / "two.h5"))
    np.testing.assert_allclose(read_matrix(tmp_path / "two.h5", RIGHT_HANDED, LEFT_HANDED), MATRIX @ MATRIX, atol=1e-9)
    field = sitk.DisplacementFieldTransform(sitk.Image([4, 4, 4], sitk.sitkVectorFloat64))
    sitk.WriteTransform(field, str(tmp_path / "field.h5"))
    assert "expected a linear map" in message(tmp_path / "field.h5")
    (tmp_path / "bad.h5").write_bytes(b"not HDF5")
    assert "not a transform of ITK" in message(tmp_path / "bad.h5")


def test_a_plain_matrix_needs_the_name_of_its_software(tmp_path):
    path = save(tmp_path / "a.mat", MATRIX)
    assert f"expected flirt:{path} or greedy:{path}" in message(path)
    assert "not a text file of 4 x 4 numbers" in message(f"flirt:{save(tmp_path / 'b.mat', MATRIX[:3])}")
    assert "no such file" in message(f"greedy:{tmp_path / 'none.mat'}")
    assert "singular" in message(f"greedy:{save(tmp_path / 'flat.mat', np.diag([1, 1, 0, 1]))}")
    write_matrix(tmp_path / "itk.txt", MATRIX)
    np.testing.assert_allclose(read_matrix(str(tmp_path / "itk.txt"), RIGHT_HANDED, LEFT_HANDED), MATRIX)
