"""`python -m f3r_jax.apply` on transforms that are known: shifts, a matrix, composites, chains."""

import nibabel
import numpy as np
import pytest

from f3r_jax.data import nifti, volumes
from f3r_jax.data.grids import Grid
from f3r_jax.data.itk_affine import write_matrix
from f3r_jax.data.points import read_points
from f3r_jax.data.resample import translation
from f3r_jax.register import exports

GRID = Grid((12, 10, 8), np.diag([2.0, 2.0, 2.0, 1.0]))
RNG = np.random.default_rng(0)


def result(folder, shift):
    """A result whose moving points are the fixed ones plus a shift in mm."""
    folder.mkdir()
    field = np.broadcast_to(np.array(shift, np.float32), (*GRID.shape, 3))
    nifti.write_field(folder / "displacement.nii.gz", field, GRID.affine)
    nifti.write_field(folder / "inverse_displacement.nii.gz", -field, GRID.affine)
    (folder / "summary.json").write_text("{}")
    return folder


@pytest.fixture
def apply(commands, tmp_path):
    """A function that runs the command on transforms and returns the path of the output."""

    def run(transform, *, output="out.nii.gz", **flags):
        given = [f"--{name}={value}" for name, value in flags.items()]
        path = tmp_path / output
        done = commands.run("apply", f"--transform={transform}", *given, f"--output={path}", "--overwrite")
        assert done.status == 0 and done.err == "", done
        return path

    return run


@pytest.fixture
def refused(commands, tmp_path):
    """A function that runs the command and returns its line on standard error."""

    def run(transform, *, output="refused.nii.gz", **flags):
        given = [f"--{name}={value}" for name, value in flags.items()]
        done = commands.run("apply", f"--transform={transform}", *given, f"--output={tmp_path / output}")
        assert done.status == 2 and done.err.count("\n") == 1, done
        assert not (tmp_path / output).exists()
        return done.err

    return run


def save(path, data, **options):
    nibabel.save(nibabel.Nifti1Image(data, GRID.affine), path)
    return path


@pytest.mark.parametrize("axes", [(3,), (2, 3), (1, 3)])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_every_volume_of_a_series_is_warped_and_the_type_is_kept(apply, tmp_path, axes, dtype):
    data = RNG.integers(-500, 500, (*GRID.shape, *axes)).astype(dtype)
    out = result(tmp_path / "out", (2.0, 0, 0))  # one voxel along x
    path = apply(out, image=save(tmp_path / "series.nii.gz", data), outside=-900)
    opened = volumes.open_volume(path)
    found = opened.load(np.float32)
    assert opened.shape == (*GRID.shape, *axes) and opened.dtype == dtype
    np.testing.assert_array_equal(found[:-1], data[1:])
    assert (found[-1] == -900).all()
    np.testing.assert_allclose(opened.affine, GRID.affine)
    plain = apply(out, image=tmp_path / "series.nii.gz", outside=-900, output="plain.nii")
    np.testing.assert_array_equal(nibabel.load(plain).get_fdata(), found)


def test_a_series_of_4_axes_is_read_by_simpleitk(apply, tmp_path, sitk):
    data = RNG.integers(-500, 500, (*GRID.shape, 3)).astype(np.int16)
    out = result(tmp_path / "out", (0.0, 2, 0))
    path = apply(out, image=save(tmp_path / "series.nii.gz", data))
    read = sitk.ReadImage(str(path))
    assert read.GetSize() == (*GRID.shape, 3) and read.GetOrigin()[:3] == (0, 0, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T[:, :-1], data[:, 1:])
    path = apply(out, image=tmp_path / "series.nii.gz", output="series.mha")
    np.testing.assert_array_equal(volumes.open_volume(path).load(np.int16)[:, :-1], data[:, 1:])


def test_a_chain_passes_its_transforms_in_order(apply, tmp_path):
    """The image passes a (2 mm along x), a matrix (-4 mm along y), then b (2 mm along z)."""
    a, b = result(tmp_path / "a", (2.0, 0, 0)), result(tmp_path / "b", (0, 0, 2.0))
    write_matrix(tmp_path / "m.txt", translation([0, -4.0, 0]))
    chain = f"{a},{tmp_path / 'm.txt'},{b}"
    data = RNG.integers(0, 500, GRID.shape).astype(np.int16)
    path = apply(chain, image=save(tmp_path / "image.nii.gz", data), outside=-1)
    found = volumes.open_volume(path).load(np.int16)
    np.testing.assert_array_equal(found[:-1, 2:, :-1], data[1:, :-2, 1:])
    assert (found[-1] == -1).all() and (found[:, :2] == -1).all()
    (tmp_path / "p.csv").write_text("id,x,y,z\n7,10,8,6\n")
    moved = read_points(apply(chain, points=tmp_path / "p.csv", output="moved.csv"))
    np.testing.assert_allclose(moved.points, [[8, 12, 4]], atol=2e-3)
    assert moved.rows[0]["id"] == "7"
    back = apply(chain, points=tmp_path / "moved.csv", inverse=True, output="back.mrk.json")
    np.testing.assert_allclose(read_points(back).points, [[10, 8, 6]], atol=2e-3)
    path = apply(chain, image=tmp_path / "image.nii.gz", inverse=True, outside=-1)
    found = volumes.open_volume(path).load(np.int16)
    np.testing.assert_array_equal(found[1:, :-2, 1:], data[:-1, 2:, :-1])


def test_a_matrix_alone_needs_a_reference(apply, refused, tmp_path):
    write_matrix(tmp_path / "m.txt", translation([2.0, 0, 0]))
    data = RNG.integers(0, 500, GRID.shape).astype(np.uint16)
    image = save(tmp_path / "image.nii.gz", data)
    assert "expected --reference=FILE" in refused(tmp_path / "m.txt", image=image)
    small = Grid((4, 5, 6), translation([4.0, 2.0, 0]) @ GRID.affine)
    nifti.write(tmp_path / "small.nii.gz", np.zeros((*small.shape, 2), np.uint8), small.affine)
    path = apply(tmp_path / "m.txt", image=image, reference=tmp_path / "small.nii.gz")
    opened = volumes.open_volume(path)
    np.testing.assert_array_equal(opened.load(np.float32), data[3:7, 1:6, :6])
    assert opened.dtype == np.uint16 and np.allclose(opened.affine, small.affine)


def test_the_transform_as_hdf5_and_as_nrrd(apply, tmp_path, sitk):
    data = RNG.integers(0, 500, GRID.shape).astype(np.int16)
    image = save(tmp_path / "image.nii.gz", data)
    field = np.broadcast_to(np.array([2.0, 0, 0], np.float32), (*GRID.shape, 3))
    exports.write_transform(tmp_path, ("h5",), field, translation([0, -4.0, 0]), GRID)
    path = apply(tmp_path / "transform.h5", image=image, reference=image)
    np.testing.assert_array_equal(volumes.open_volume(path).load(np.int16)[:-1, 2:], data[1:, :-2])
    volumes.write(tmp_path / "field.nrrd", np.array((field * nifti.LPS)[:, :, :, None]), GRID.affine)
    path = apply(tmp_path / "field.nrrd", image=image)
    np.testing.assert_array_equal(volumes.open_volume(path).load(np.int16)[:-1], data[1:])


def test_labels_keep_their_values(apply, refused, tmp_path):
    out = result(tmp_path / "out", (1.0, 0, 0))  # half a voxel
    data = (RNG.integers(0, 3, GRID.shape) * 40_000).astype(np.int32)
    labels = save(tmp_path / "labels.nii.gz", data)
    for interpolation in ("nearest", "label"):
        path = apply(out, labels=labels, interpolation=interpolation)
        assert set(np.unique(volumes.open_volume(path).load(np.int32))) == {0, 40_000, 80_000}
    whole = save(tmp_path / "float.nii.gz", (data // 40_000).astype(np.float32))
    assert volumes.open_volume(apply(out, labels=whole)).dtype == np.uint8
    soft = save(tmp_path / "soft.nii.gz", np.full(GRID.shape, 0.5, np.float32))
    assert "not whole numbers" in refused(out, labels=soft)
    assert "--interpolation is linear, expected nearest or label" in refused(out, labels=labels, interpolation="linear")
    assert "expected linear or nearest or bspline" in refused(out, image=labels, interpolation="label")
    assert "--outside is 0.5" in refused(out, labels=labels, outside=0.5)
    assert "expected a name ending in" in refused(out, labels=labels, output="x.dcm")
    many = save(tmp_path / "many.nii.gz", np.ones((*GRID.shape, 2), np.int16))
    assert "NRRD does not hold a series of 2 volumes" in refused(out, image=many, output="x.nrrd")
    assert "expected none with --points" in refused(out, points=labels, outside=1, output="x.csv")


def test_transforms_that_cannot_be_applied(refused, tmp_path):
    out = result(tmp_path / "out", (1.0, 0, 0))
    image = save(tmp_path / "image.nii.gz", np.ones(GRID.shape, np.float32))
    np.savetxt(tmp_path / "plain.mat", np.eye(4))
    for source, words in (
        (f"{out},{tmp_path / 'none'}", "no such file or folder"),
        (f"flirt:{tmp_path / 'plain.mat'}", "FLIRT's matrix depends on both scans"),
        (tmp_path / "plain.mat", "expected flirt:"),
        (image, "not ITK's format of a field"),
    ):
        assert words in refused(source, image=image)
    assert "one way only" in refused(out / "displacement.nii.gz", image=image, inverse=True)
