import gzip
import os

import nibabel
import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti

OBLIQUE = np.array([[1.9, -0.4, 0.2, -30.0], [0.5, 1.8, -0.3, 12.0], [-0.1, 0.3, 2.9, 7.5], [0.0, 0.0, 0.0, 1.0]])


def _volume(shape=(5, 6, 7), dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def _save(path, data, affine=OBLIQUE, kind=nibabel.Nifti1Image):
    nibabel.save(kind(data, affine), path)
    return path


def _message(call, *args):
    with pytest.raises(UserError) as caught:
        call(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
def test_write_then_read_gives_the_same_voxels_and_affine(tmp_path, name):
    nifti.write(tmp_path / name, _volume(), OBLIQUE)
    image = nifti.read(tmp_path / name)
    np.testing.assert_array_equal(image.data, _volume())
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-6)
    np.testing.assert_allclose(image.spacing, np.linalg.norm(OBLIQUE[:3, :3], axis=0), atol=1e-6)
    assert image.data.dtype == np.float32
    assert image.path == str(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("codes", [("L", "P", "S"), ("R", "A", "S"), ("S", "L", "A"), ("P", "I", "R")])
def test_every_stored_orientation_reads_alike(tmp_path, codes):
    canonical = nibabel.Nifti1Image(_volume(), OBLIQUE)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(OBLIQUE), nibabel.orientations.axcodes2ornt(codes)
    )
    nibabel.save(canonical.as_reoriented(turn), tmp_path / "turned.nii.gz")
    image = nifti.read(tmp_path / "turned.nii.gz")
    np.testing.assert_array_equal(image.data, _volume())
    np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)
    grid = nifti.read_grid(tmp_path / "turned.nii.gz")
    assert grid.shape == image.shape
    np.testing.assert_array_equal(grid.affine, image.affine)


def test_scaled_integers_read_as_their_values(tmp_path):
    stored = nibabel.Nifti1Image(_volume(dtype=np.int16), OBLIQUE)
    stored.header.set_slope_inter(0.5, -1024)
    stored.header.set_data_dtype(np.int16)
    values = _volume() * 0.5 - 1024
    nibabel.save(nibabel.Nifti1Image(values, OBLIQUE, stored.header), tmp_path / "scaled.nii.gz")
    raw = nibabel.load(tmp_path / "scaled.nii.gz")
    assert raw.get_data_dtype() == np.int16 and raw.dataobj.slope != 1
    np.testing.assert_allclose(nifti.read(tmp_path / "scaled.nii.gz").data, values, atol=0.01)


def test_trailing_axes_of_one_are_dropped_and_nifti2_is_read(tmp_path):
    path = _save(tmp_path / "five.nii.gz", _volume()[..., None, None], kind=nibabel.Nifti2Image)
    assert nifti.read(path).shape == nifti.read_grid(path).shape == (5, 6, 7)


def test_labels_come_back_as_the_smallest_integers(tmp_path):
    values = _volume() % 5
    assert nifti.read_labels(_save(tmp_path / "float.nii.gz", values + 1e-5)).data.dtype == np.uint8
    np.testing.assert_array_equal(nifti.read_labels(tmp_path / "float.nii.gz").data, values)
    assert nifti.read_labels(_save(tmp_path / "signed.nii.gz", values - 1)).data.dtype == np.int16
    many = nifti.read_labels(_save(tmp_path / "many.nii.gz", values.astype(np.int32) * 20_000_003))
    assert many.data.dtype == np.int32 and many.data.max() == 80_000_012
    np.testing.assert_array_equal(many.data, values.astype(np.int32) * 20_000_003)
    holes = np.where(values == 4, np.nan, values).astype(np.float32)
    np.testing.assert_array_equal(nifti.read_labels(_save(tmp_path / "holes.nii.gz", holes)).data, values % 4)
    assert "between" in _message(nifti.read_labels, _save(tmp_path / "huge.nii.gz", values * 1e10))


def test_labels_that_are_not_whole_numbers(tmp_path):
    values = _volume() % 5
    values[2, 3, 4] = 1.5
    message = _message(nifti.read_labels, _save(tmp_path / "soft.nii.gz", values))
    assert "soft.nii.gz" in message and "1 voxels" in message and "1.5" in message


def test_write_replaces_the_old_file_only_when_done(tmp_path, monkeypatch):
    path = tmp_path / "volume.nii.gz"
    nifti.write(path, _volume(), OBLIQUE)
    before = path.read_bytes()

    def killed(image, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(nibabel, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        nifti.write(path, _volume() + 1, OBLIQUE)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["volume.nii.gz"]


def test_write_of_the_same_twice_gives_the_same_bytes(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz"):
        nifti.write(tmp_path / name, _volume(dtype=np.int64), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert nibabel.load(tmp_path / "a.nii.gz").get_data_dtype() == np.int32


def test_write_of_a_vector_field_has_the_intent_that_itk_reads(tmp_path):
    nifti.write(tmp_path / "field.nii.gz", np.zeros((4, 5, 6, 1, 3), np.float32), OBLIQUE, intent="vector")
    header = nibabel.load(tmp_path / "field.nii.gz").header
    assert header["intent_code"] == 1007 and tuple(header["dim"][:6]) == (5, 4, 5, 6, 1, 3)
    assert "expected a name" in _message(nifti.write, tmp_path / "field.mha", _volume(), OBLIQUE)


@pytest.mark.parametrize("codes", [("L", "P", "S"), ("S", "L", "A")])
def test_the_stored_grid_is_in_the_files_own_order(tmp_path, codes):
    canonical = nibabel.Nifti1Image(_volume(), OBLIQUE)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(OBLIQUE), nibabel.orientations.axcodes2ornt(codes)
    )
    turned = canonical.as_reoriented(turn)
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    grid = nifti.read_stored_grid(tmp_path / "turned.nii.gz")
    assert grid.shape == turned.shape and grid.path == str(tmp_path / "turned.nii.gz")
    np.testing.assert_allclose(grid.affine, turned.affine, atol=1e-5)
    assert "4-D" in _message(nifti.read_stored_grid, _save(tmp_path / "four.nii.gz", _volume((5, 6, 7, 2))))


FLIPPED = np.diag([-2.0, 3.0, 4.0, 1.0])


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
@pytest.mark.parametrize("name", ["field.nii", "field.nii.gz"])
def test_fields_come_back_as_they_were(tmp_path, affine, name):
    field = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    before = field.copy()
    nifti.write_field(tmp_path / name, field, affine)
    np.testing.assert_array_equal(field, before)
    stored = nibabel.load(tmp_path / name)
    assert stored.shape == (5, 6, 7, 1, 3) and stored.get_data_dtype() == np.float32
    np.testing.assert_array_equal(stored.get_fdata()[:, :, :, 0], field * [-1, -1, 1])  # LPS on disk
    again, grid = nifti.read_field(tmp_path / name)
    np.testing.assert_array_equal(again, field)
    assert grid.shape == (5, 6, 7) and again.dtype == np.float32 and again.flags.writeable
    np.testing.assert_allclose(grid.affine, affine, atol=1e-6)
    assert os.listdir(tmp_path) == [name]


def _field(path, shape=(5, 6, 7, 1, 3), intent="vector", name="", data=None):
    image = nibabel.Nifti1Image(np.zeros(shape, np.float32) if data is None else data, OBLIQUE)
    image.header.set_intent(intent, name=name)
    nibabel.save(image, path)
    return path


def test_files_that_are_no_field_of_itk(tmp_path):
    message = _message(nifti.read_field, _field(tmp_path / "four.nii.gz", (5, 6, 7, 3)))
    assert "four.nii.gz" in message and "not ITK's format" in message
    for shape in ((5, 6, 7), (5, 6, 7, 1, 2), (5, 6, 7, 2, 3)):
        message = _message(nifti.read_field, _field(tmp_path / "wrong.nii.gz", shape))
        assert "wrong.nii.gz" in message and "5 x 6 x 7" in message and "X x Y x Z x 1 x 3" in message
    for intent, name in (("none", ""), ("displacement vector", ""), ("vector", "NREG_TRANS")):
        assert "intent code" in _message(nifti.read_field, _field(tmp_path / "i.nii.gz", intent=intent, name=name))
    data = np.zeros((5, 6, 7, 1, 3), np.float32)
    data[0, 0, 0, 0] = np.nan
    assert "3 of 630" in _message(nifti.read_field, _field(tmp_path / "holes.nii.gz", data=data))
    assert "no such file" in _message(nifti.read_field, tmp_path / "missing.nii.gz")


def test_simpleitk_reads_our_vectors_and_we_read_its(sitk, tmp_path):
    field = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    nifti.write_field(tmp_path / "ours.nii.gz", field, FLIPPED)
    theirs = sitk.ReadImage(str(tmp_path / "ours.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(theirs).transpose(2, 1, 0, 3), field * [-1, -1, 1])
    sitk.WriteImage(theirs, str(tmp_path / "theirs.nii.gz"))
    again, grid = nifti.read_field(tmp_path / "theirs.nii.gz")
    np.testing.assert_array_equal(again, field)
    np.testing.assert_allclose(grid.affine, FLIPPED, atol=1e-6)


def test_files_that_are_no_nifti(tmp_path):
    contents = {
        "text.nii": b"just some text, " * 100,
        "text.nii.gz": b"just some text, " * 100,
        "zipped_text.nii.gz": gzip.compress(b"just some text, " * 100),
        "empty.nii.gz": b"",
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "slice.dcm": bytes(128) + b"DICM" + bytes(1000),
        "slice.nii": bytes(128) + b"DICM" + bytes(1000),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        message = _message(nifti.read, tmp_path / name)
        assert name in message and "expected .nii or .nii.gz" in message
    assert "no such file" in _message(nifti.read, tmp_path / "missing.nii.gz")
    assert "folder of DICOM files" in _message(nifti.read, tmp_path)
    assert "is a folder;" in _message(nifti.read, tmp_path.parent)
    assert "too long" in _message(nifti.read, tmp_path / ("x" * 300 + ".nii"))
    nibabel.save(nibabel.AnalyzeImage(_volume(), np.diag([-2.0, 2, 2, 1])), tmp_path / "old.img")
    assert "Analyze 7.5" in _message(nifti.read, tmp_path / "old.img")


@pytest.mark.parametrize("name", ["volume.nii", "volume.nii.gz"])
@pytest.mark.parametrize("kept", [0.99, 0.5, 0.02])
def test_truncated_files(tmp_path, name, kept):
    path = tmp_path / name
    _save(path, np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    message = _message(nifti.read, path)
    assert name in message


@pytest.mark.parametrize(
    ("shape", "found"), [((5, 6, 7, 2), "4-D"), ((5, 6, 7, 1, 3), "5-D"), ((5, 6), "2-D"), ((5,), "1-D")]
)
def test_volumes_that_are_not_3d(tmp_path, shape, found):
    path = _save(tmp_path / "volume.nii.gz", _volume(shape))
    for call in (nifti.read, nifti.read_grid):
        message = _message(call, path)
        assert str(path) in message and found in message


def test_infinite_voxels_are_counted_and_nan_is_padding(tmp_path):
    data = _volume() - 100
    data[0, 0, :2] = np.nan
    image = nifti.read(_save(tmp_path / "padded.nii.gz", data))
    np.testing.assert_array_equal(image.outside, np.isnan(data))
    np.testing.assert_array_equal(image.data, np.where(np.isnan(data), np.nanmin(data), data))
    assert nifti.read(_save(tmp_path / "whole.nii.gz", _volume())).outside is None
    data[1, 0, 0] = -np.inf
    message = _message(nifti.read, _save(tmp_path / "holes.nii.gz", data))
    assert "holes.nii.gz" in message and "3 of 210 voxels" in message
    assert "every voxel is NaN" in _message(nifti.read, _save(tmp_path / "none.nii.gz", data * np.nan))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_compression_is_found_from_the_content(tmp_path, kind):
    plain, packed = tmp_path / "plain.nii", tmp_path / "packed.nii.gz"
    for path in (plain, packed):
        _save(path, _volume(), kind=kind)
    for name, source in (("packed.nii", packed), ("plain.nii.gz", plain)):
        misnamed = tmp_path / "misnamed" / name
        misnamed.parent.mkdir(exist_ok=True)
        misnamed.write_bytes(source.read_bytes())
        image = nifti.read(misnamed)
        np.testing.assert_array_equal(image.data, _volume())
        np.testing.assert_array_equal(image.affine, nifti.read(plain).affine)
    misnamed.write_bytes(plain.read_bytes()[:600])
    assert "truncated" in _message(nifti.read, misnamed)


@pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf, "parallel"])
def test_affines_that_are_no_grid(tmp_path, wrong):
    image = nibabel.Nifti1Image(_volume(), OBLIQUE)
    for column in ("srow_x", "srow_y", "srow_z"):
        image.header[column][1] = image.header[column][0] if wrong == "parallel" else wrong
    image.header["vox_offset"] = 352
    path = tmp_path / "flat.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + _volume().tobytes(order="F"))
    message = _message(nifti.read, path)
    assert "flat.nii" in message and "affine" in message and "correct the header" in message


def test_a_header_that_breaks_off_in_its_numbers_is_one_line(tmp_path, capfd):
    image = nibabel.Nifti1Image(_volume(), OBLIQUE)
    image.header["datatype"], image.header["vox_offset"] = 77, 352
    path = tmp_path / "odd.nii"
    path.write_bytes(image.header.binaryblock + bytes(4) + _volume().tobytes(order="F"))
    assert "odd.nii" in _message(nifti.read, path)
    assert capfd.readouterr().err == ""


def test_colour_and_complex_voxels(tmp_path):
    colour = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    for name, data in (("colour.nii.gz", colour), ("phase.nii.gz", _volume(dtype=np.complex64))):
        message = _message(nifti.read, _save(tmp_path / name, data))
        assert name in message and "colour or complex" in message


def test_a_label_map_must_lie_on_its_images_grid(tmp_path):
    image = nifti.Image(_volume(), OBLIQUE, "image.nii.gz")
    nifti.check_same_grid(image, nifti.Image(_volume(), OBLIQUE + 1e-5, "labels.nii.gz"))
    message = _message(nifti.check_same_grid, image, nifti.Image(_volume((5, 6, 8)), OBLIQUE, "labels.nii.gz"))
    assert "labels.nii.gz" in message and "image.nii.gz" in message and "5 x 6 x 8" in message
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 0.5
    message = _message(nifti.check_same_grid, image.grid, nifti.Grid((5, 6, 7), shifted, "labels.nii.gz"))
    assert "labels.nii.gz" in message and "0.5" in message


def test_a_field_is_not_written_under_a_name_of_another_format(tmp_path):
    with pytest.raises(UserError, match=r"field\.mha: unknown format; expected a name ending in \.nii"):
        nifti.write_field(tmp_path / "field.mha", np.zeros((2, 2, 2, 3), np.float32), np.eye(4))
    assert list(tmp_path.iterdir()) == []
