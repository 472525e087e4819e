"""`f3r_jax.register` and `f3r_jax.load` from Python, with images of every kind."""

import inspect
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest

import f3r_jax
from conftest import REPOSITORY
from f3r_jax.common.errors import UserError
from f3r_jax.data import itk_formats
from f3r_jax.data.phantom import generate
from f3r_jax.register import image_kinds, scans

AFFINE = np.array([[-7.0, 0, 0, 120], [0, -7, 0, -30], [0, 0, 7, 400], [0, 0, 0, 1]])
QUICK = {"affine": "none", "spacing": 7.0, "iterations": 20, "mind": "mind_ssc_near", "checkpoint": "none"}


@pytest.fixture(scope="module")
def case():
    return generate.make_case(3, 3, shape=(48, 40, 36), spacing=(7.0,) * 3, ct_phases=("venous",), mr_sequences=("t2",))


@pytest.fixture(scope="module")
def arrays(case):
    """(MR, CT, labels of the CT) as pairs of an array and an affine."""
    return tuple((np.flip(data, (0, 1)), AFFINE) for data in (case.mr, case.ct.astype(np.int16), case.ct_labels))


@pytest.fixture(scope="module")
def lines():
    return []


@pytest.fixture(scope="module")
def result(arrays, lines):
    mr, ct, labels = arrays
    return f3r_jax.register(mr, ct, moving_labels=labels, progress=lines.append, **QUICK)


def test_the_name_is_the_function_and_the_package():
    assert callable(f3r_jax.register) and callable(f3r_jax.load)
    assert scans.__name__ == "f3r_jax.register.scans" and f3r_jax.register.scans is scans
    assert list(inspect.signature(f3r_jax.register).parameters) == ["fixed", "moving", "options"]
    assert "Registers a moving scan to a fixed scan" in inspect.getdoc(f3r_jax.register)
    code = "import f3r_jax.register.api as x; import f3r_jax; assert callable(f3r_jax.register) and x.Result"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


def test_the_import_is_cheap():
    code = "import f3r_jax, sys; print(sorted({'jax', 'numpy', 'nibabel', 'SimpleITK'} & set(sys.modules)))"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and time.perf_counter() - start < 10


def test_a_result_has_its_parts(result, arrays, lines):
    mr, ct, _ = arrays
    warped, affine = result.warped
    assert warped.shape == mr[0].shape == result.displacement.shape[:3] == result.grid.shape
    np.testing.assert_allclose(affine, AFFINE)
    np.testing.assert_array_equal(result.affine, np.eye(4))
    assert 5 < np.abs(result.displacement).max() < 100  # mm
    assert result.summary["similarity"]["refined"] < result.summary["similarity"]["affine"]
    assert result.verdict == result.summary.get("verdict")
    assert any("instance optimisation" in line for line in lines)
    again, _ = result.apply(ct)
    assert again.dtype == np.int16
    np.testing.assert_allclose(again, warped, atol=0.51)


def test_labels_points_and_the_inverse(result, arrays):
    _, ct, labels = arrays
    warped, _ = result.apply(labels, labels=True)
    stored = nibabel.load(result.folder / "warped_labels.nii.gz").get_fdata()
    np.testing.assert_array_equal(warped, stored)
    fixed = (AFFINE @ (20, 18, 16, 1))[:3][None]
    moving = result.map_points(fixed, inverse=True)
    np.testing.assert_allclose(moving[0] - fixed[0], result.displacement[20, 18, 16], atol=1e-3)
    np.testing.assert_allclose(result.map_points(moving), fixed, atol=0.01)
    back, affine = result.apply(ct, inverse=True, reference=ct, outside=-1000)
    assert back.shape == ct[0].shape and np.allclose(affine, AFFINE)


def test_a_saved_result_is_loaded_and_not_overwritten_unasked(result, tmp_path):
    folder = result.save(tmp_path / "out")
    loaded = f3r_jax.load(folder)
    np.testing.assert_array_equal(loaded.displacement, result.displacement)
    assert loaded.summary == result.summary and loaded.warped.shape == result.grid.shape
    assert (folder / "report.html").is_file()
    with pytest.raises(UserError, match="holds another result"):
        result.save(folder)
    result.save(folder, overwrite=True)
    with pytest.raises(UserError, match="no displacement"):
        f3r_jax.load(tmp_path)


def same(found, expected):
    np.testing.assert_array_equal(np.asarray(found), expected)


def test_images_of_nibabel_and_paths(result, arrays, tmp_path):
    _, ct, _ = arrays
    expected, _ = result.apply(ct)
    image = nibabel.Nifti1Image(*ct)
    found = result.apply(image)
    assert isinstance(found, nibabel.Nifti1Image) and found.get_data_dtype() == np.int16
    same(found.dataobj, expected)
    np.testing.assert_allclose(found.affine, AFFINE)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    same(result.apply(tmp_path / "ct.nii.gz").dataobj, expected)


def test_images_of_simpleitk(result, arrays, sitk):
    mr, ct, _ = arrays
    fixed, moving = (itk_formats.to_memory(*image, "image") for image in (mr, ct))
    found = result.apply(moving)
    assert isinstance(found, sitk.Image) and found.GetPixelID() == sitk.sitkInt16
    same(sitk.GetArrayFromImage(found).T, result.apply(ct)[0])
    np.testing.assert_allclose(found.GetOrigin(), fixed.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(found.GetDirection(), fixed.GetDirection(), atol=1e-6)
    registered = f3r_jax.register(fixed, moving, **QUICK)
    np.testing.assert_allclose(registered.displacement, result.displacement, atol=1e-3)
    assert isinstance(registered.warped, sitk.Image)


def test_images_of_ants(result, arrays, ants, tmp_path):
    _, ct, _ = arrays
    nibabel.save(nibabel.Nifti1Image(ct[0].astype(np.float32), AFFINE), tmp_path / "ct.nii.gz")
    image = ants.image_read(str(tmp_path / "ct.nii.gz"))
    found = result.apply(image)
    assert type(found) is type(image)
    np.testing.assert_allclose(found.numpy(), result.apply((ct[0].astype(np.float32), AFFINE))[0], atol=1e-4)
    np.testing.assert_allclose(found.origin, image.origin, atol=1e-4)
    np.testing.assert_allclose(found.direction, image.direction, atol=1e-6)


def test_a_series_keeps_its_volumes(result, arrays):
    _, ct, _ = arrays
    series, _ = result.apply((np.stack([ct[0], ct[0] + 1], axis=-1), AFFINE), outside=0)
    assert series.shape == (*result.grid.shape, 2)
    same(series[..., 0], result.apply(ct, outside=0)[0])


def test_mistakes(arrays, result, tmp_path):
    mr, ct, _ = arrays
    with pytest.raises(TypeError, match=r"unknown option 'color', expected some of .*fixed_mask"):
        f3r_jax.register(mr, ct, color=1)
    for wrong, words in (
        (3, "fixed: a int, expected a path"),
        ((mr[0], np.eye(3)), "affine of shape"),
        ((mr[0], np.zeros((4, 4))), "singular affine"),
        (tmp_path / "none.nii.gz", "no such file"),
        ((mr[0][:, :, :1], AFFINE), "expected a volume of at least"),
    ):
        with pytest.raises(UserError, match=words):
            f3r_jax.register(wrong, ct, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="interpolation is 'label', expected one of linear"):
        result.apply(ct, interpolation="label")


def test_the_kinds():
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), AFFINE)
    assert image_kinds.kind_of(image, "a") == "nibabel" and image_kinds.kind_of("a.nii", "a") == "path"
    assert image_kinds.open_image((np.zeros((2, 3, 4), bool), AFFINE), "a").dtype == np.uint8
