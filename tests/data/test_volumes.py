"""Every format gives the same voxels and the same geometry."""

import os

import nibabel
import numpy as np
import pytest

from dicom_files import write_enhanced, write_series
from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti, volumes
from f3r_jax.data.grids import Grid, canonical, canonical_grid

SHAPE = (7, 6, 5)


def turned(*angles):
    """A rotation about x, then y, then z, in degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(angles)):
        turn = np.eye(3)
        one, other = [index for index in range(3) if index != axis]
        turn[one, one] = turn[other, other] = np.cos(angle)
        turn[one, other], turn[other, one] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


# Directions (RAS+) of rows, columns and slices of a series
SIDES = {
    "axial": np.diag([-1.0, -1.0, 1.0]),
    "coronal": np.array([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]]),
    "sagittal": np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]),
    "oblique": turned(25, -15, 20) @ np.diag([-1.0, -1.0, 1.0]),
    "near 45 degrees": turned(44, 0, 46) @ np.diag([-1.0, -1.0, 1.0]),
    "feet first": np.diag([1.0, -1.0, -1.0]),
}


def affine_of(name):
    affine = np.eye(4)
    affine[:3, :3] = SIDES[name] * (1.5, 2.0, 3.0)
    affine[:3, 3] = 31.25, -12.5, 107.75
    return affine


def hounsfield(shape=SHAPE):
    return np.random.default_rng(1).integers(-1000, 1500, shape).astype(np.float64)


def files_of_one_anatomy(tmp_path, sitk, pydicom, affine):
    values, lps = hounsfield(), np.diag([-1.0, -1, 1, 1]) @ affine
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), tmp_path / "a.nii.gz")
    nibabel.save(nibabel.MGHImage(values.astype(np.int16), affine), tmp_path / "a.mgz")
    image = sitk.GetImageFromArray(values.astype(np.int16).T)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    for name in ("a.nrrd", "a.nhdr", "a.mha", "a.mhd"):
        sitk.WriteImage(image, str(tmp_path / name))
    backwards = list(range(SHAPE[2]))[::-1]
    series = write_series(pydicom, tmp_path / "series", values, affine, order=backwards)
    enhanced = write_enhanced(pydicom, tmp_path / "enhanced.dcm", values, affine, order=[2, 0, 4, 1, 3])
    names = ("a.nii.gz", "a.mgz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "series")
    return [*(tmp_path / name for name in names), series[0], enhanced]


@pytest.mark.parametrize("side", SIDES)
def test_every_format_gives_the_same_array_and_geometry(tmp_path, sitk, pydicom, side):
    affine = affine_of(side)
    expected = canonical_grid(Grid(SHAPE, affine))
    for path in files_of_one_anatomy(tmp_path, sitk, pydicom, affine):
        image = volumes.read(path)
        np.testing.assert_array_equal(image.data, canonical(hounsfield(), affine), err_msg=str(path))
        np.testing.assert_allclose(image.affine, expected.affine, atol=1e-5, err_msg=str(path))
        grid, stored = volumes.read_grid(path), volumes.read_stored_grid(path)
        assert grid.shape == image.shape == expected.shape and grid.path == str(path)
        if "series" not in str(path) and path.suffix != ".dcm":  # slices may be sorted from either end
            np.testing.assert_allclose(stored.affine, affine, atol=1e-5, err_msg=str(path))
        assert volumes.notes_on(path) == ()
        assert volumes.read_labels(path).data.dtype == np.int16


def test_canonical_voxels_keep_their_place():
    for side in SIDES:
        stored = Grid(SHAPE, affine_of(side))
        grid, values = canonical_grid(stored), canonical(hounsfield(), stored.affine)
        assert values.shape == grid.shape
        for index in ((0, 0, 0), (3, 1, 2), (6, 5, 4)):
            place = stored.affine @ (*index, 1)
            there = np.linalg.inv(grid.affine) @ place
            np.testing.assert_allclose(there, np.rint(there), atol=1e-9)
            assert values[tuple(np.rint(there[:3]).astype(int))] == hounsfield()[index]


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.mgz", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_volumes_are_written_in_every_format(tmp_path, sitk, name, dtype):
    values, affine = (hounsfield() % 200).astype(dtype), affine_of("oblique")
    volumes.write(tmp_path / name, values, affine)
    opened = volumes.open_volume(tmp_path / name)
    np.testing.assert_array_equal(opened.load(np.float64), values)
    np.testing.assert_allclose(opened.affine, affine, atol=1e-5)
    assert opened.dtype == dtype and os.listdir(tmp_path) == [name]


def test_vectors_have_the_same_shape_in_every_format(tmp_path, sitk):
    vectors, affine = np.random.default_rng(0).normal(size=(*SHAPE, 1, 3)).astype(np.float32), affine_of("coronal")
    for name in ("v.nrrd", "v.mha", "v.nii.gz"):
        volumes.write(tmp_path / name, vectors, affine)
        opened = volumes.open_volume(tmp_path / name)
        assert opened.shape == (*SHAPE, 1, 3)
        np.testing.assert_array_equal(opened.load(np.float32), vectors)
        np.testing.assert_array_equal(opened.load(np.float32, (0, 2)), vectors[..., 0, 2])


def test_names_and_files_of_no_format(tmp_path, sitk):
    with pytest.raises(UserError, match=r"expected a name ending in one of .nii, .nii.gz, .nrrd, .mha, .mgz"):
        volumes.write(tmp_path / "a.tif", hounsfield(), np.eye(4))
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    with pytest.raises(UserError, match="not a NIfTI file"):
        volumes.read(tmp_path / "a.tif")
    for name in ("missing.nrrd", "missing.mha", "missing.dcm", "missing.mgz"):
        with pytest.raises(UserError, match=f"{name}: no such file"):
            volumes.read(tmp_path / name)


def test_damaged_nrrd_and_metaimage(tmp_path, sitk):
    for name in ("a.nrrd", "a.mha"):
        path = tmp_path / name
        volumes.write(path, hounsfield().astype(np.int16), affine_of("axial"))
        whole = path.read_bytes()
        path.write_bytes(whole[:-60])
        with pytest.raises(UserError, match=f"{name}: cannot read the voxels, the file seems truncated") as caught:
            volumes.read(path)
        assert "\n" not in str(caught.value)
        path.write_bytes(whole[:20])
        with pytest.raises(UserError, match=f"{name}: ") as caught:
            volumes.read(path)
        assert "\n" not in str(caught.value)
    path.with_suffix(".mhd").write_text(
        "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_SHORT\nElementDataFile = gone.raw\n"
    )
    with pytest.raises(UserError, match=r"a.mhd: "):
        volumes.read(path.with_suffix(".mhd"))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.int16)), str(tmp_path / "flat.mha"))
    with pytest.raises(UserError, match=r"flat.mha: 2-D of 5 x 4 voxels"):
        volumes.read(tmp_path / "flat.mha")


def test_an_nrrd_without_space_has_no_orientation(tmp_path, sitk):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 3 3 2\nspacings: 2 2 3\nendian: big\nencoding: raw\n\n"
    path = tmp_path / "plain.nrrd"
    path.write_bytes(header.encode() + np.arange(18, dtype=">i2").tobytes())
    with pytest.raises(UserError, match=r"plain.nrrd: has no orientation \(no field `space`\).*--unoriented=RAS"):
        volumes.read(path)
    image = volumes.read(path, unoriented="RAS")
    np.testing.assert_array_equal(image.affine, np.diag([2.0, 2, 3, 1]))
    np.testing.assert_array_equal(image.data, np.arange(18).reshape(2, 3, 3).T)  # big-endian as declared


def test_an_mgh_without_orientation(tmp_path):
    image = nibabel.MGHImage(hounsfield().astype(np.float32), affine_of("axial"))
    nibabel.save(image, tmp_path / "good.mgh")
    whole = bytearray((tmp_path / "good.mgh").read_bytes())
    whole[28:30] = bytes(2)  # goodRASFlag, which nibabel always sets
    (tmp_path / "a.mgh").write_bytes(whole)
    with pytest.raises(UserError, match="goodRASFlag is 0"):
        volumes.read(tmp_path / "a.mgh")
    assert volumes.read_grid(tmp_path / "a.mgh", unoriented="LPS").shape == SHAPE
    (tmp_path / "b.mgz").write_bytes(whole[:100])
    with pytest.raises(UserError, match=r"b.mgz: "):
        volumes.read(tmp_path / "b.mgz")


@pytest.mark.parametrize("name", ["a.nrrd", "series"])
def test_without_the_packages_one_line_names_what_to_install(tmp_path, monkeypatch, name):
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "a.dcm").write_bytes(b"")
    for module in ("SimpleITK", "pydicom"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(
        UserError, match=r"needs \w+, which is not installed; expected: pip install 'f3r_jax\[formats\]'"
    ):
        volumes.read(tmp_path / name)
    nifti.write(tmp_path / "a.nii.gz", hounsfield().astype(np.float32), np.eye(4))
    assert volumes.read(tmp_path / "a.nii.gz").shape == SHAPE
