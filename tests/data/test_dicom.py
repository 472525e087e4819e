"""What can be wrong with a DICOM series: one line each."""

import numpy as np
import pytest

from dicom_files import write_enhanced, write_series, write_structures
from f3r_jax.common.errors import UserError
from f3r_jax.data import volumes
from f3r_jax.data.grids import canonical

AFFINE = np.diag([-1.5, -2.0, 3.0, 1.0])
VALUES = np.random.default_rng(1).integers(-1000, 1500, (7, 6, 8)).astype(np.float64)


def message(path):
    with pytest.raises(UserError) as caught:
        volumes.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def series(tmp_path, SimpleITK, pydicom):
    """A function that writes a series to tmp_path/series and returns the folder."""

    def write(values=VALUES, affine=AFFINE, **options):
        write_series(pydicom, tmp_path / "series", values, affine, **options)
        return tmp_path / "series"

    return write


def test_a_folder_with_two_series_lists_them_and_a_file_chooses_one(series, pydicom):
    folder = series()
    other = write_series(pydicom, folder, VALUES + 1, AFFINE, series=2)
    write_structures(pydicom, folder / "contours.dcm")
    (folder / "notes.txt").write_text("no image")
    text = message(folder)
    assert "2 series: series 1 (CT), 8 files, such as s1_000.dcm; series 2 (CT), 8 files, such as s2_000.dcm" in text
    assert "give one of these files" in text
    np.testing.assert_array_equal(volumes.read(other[3]).data, canonical(VALUES + 1, AFFINE))
    assert "without an image" in message(folder / "contours.dcm")


def test_contours_and_notes_next_to_a_series_do_not_matter(series, pydicom):
    folder = series()
    write_structures(pydicom, folder / "contours.dcm")
    (folder / "notes.txt").write_text("no image")
    np.testing.assert_array_equal(volumes.read(folder).data, canonical(VALUES, AFFINE))


@pytest.mark.parametrize(("skip", "words"), [((3,), "1 slice is missing"), ((2, 3, 5), "3 slices are missing")])
def test_missing_slices_are_counted(series, skip, words):
    text = message(series(skip=skip))
    assert words in text and f"between s1_00{skip[0] - 1}.dcm" in text


def test_slices_at_uneven_distances(series):
    def shift(data, index):
        data.ImagePositionPatient[2] = 3.0 * index + (0.8 if index == 4 else 0)

    assert "distances of 2.2 to 3.8 mm between slices (such as between s1_003.dcm" in message(series(change=shift))


def test_two_phases_in_one_series(series, pydicom, tmp_path):
    folder = series()
    extra = write_series(pydicom, tmp_path / "more", VALUES, AFFINE)
    for path in extra:
        path.rename(folder / f"phase2_{path.name}")
    assert "16 slices at 8 places" in message(folder)


def test_a_localiser_in_the_series(series):
    def turn(data, index):
        if index == 0:
            data.ImageOrientationPatient = ["0", "1", "0", "0", "0", "-1"]

    assert "slices of different orientation" in message(series(change=turn))


def test_slices_of_two_sizes(series):
    def cut(data, index):
        if index == 2:
            data.Rows, data.PixelData = 5, data.PixelData[: 7 * 5 * 2]

    assert "slices of 7 x 6 (s1_000.dcm) and 7 x 5 (s1_002.dcm) voxels" in message(series(change=cut))


def test_a_tilted_gantry_gives_sheared_axes_and_a_note(series):
    def tilt(data, index):
        data.ImagePositionPatient[1] = float(data.ImagePositionPatient[1]) - index * 3.0 * np.tan(np.radians(12))

    folder = series(change=tilt)
    (note,) = volumes.notes_on(folder)
    assert "tilted by 12 degrees" in note
    affine = volumes.read_stored_grid(folder).affine
    np.testing.assert_allclose(affine[:3, 2], [0, 3 * np.tan(np.radians(12)), 3], atol=1e-4)


@pytest.mark.parametrize("kept", [-40, 700, 200])
def test_a_truncated_slice_is_named(series, kept):
    folder = series()
    path = folder / "s1_004.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    text = message(folder)
    assert "s1_004.dcm" in text and "truncated" in text


def test_a_file_that_is_no_dicom(tmp_path, SimpleITK, pydicom):
    (tmp_path / "a.dcm").write_bytes(bytes(range(256)) * 4)
    assert "a.dcm" in message(tmp_path / "a.dcm")
    assert "without DICOM images" in message(tmp_path.parent)


def test_a_screenshot_has_no_position(series):
    def strip(data, index):
        del data.ImagePositionPatient

    assert "expected ImagePositionPatient" in message(series(change=strip))


def test_every_slice_has_its_own_scale(series):
    def scale(data, index):
        stored = np.frombuffer(data.PixelData, np.int16)
        data.PixelData = (stored // 2 * 2 // (1 + index % 2)).astype(np.int16).tobytes()
        data.RescaleSlope = 1 + index % 2

    folder = series(values=VALUES // 2 * 2, change=scale)
    np.testing.assert_array_equal(volumes.read(folder).data, canonical(VALUES // 2 * 2, AFFINE))


def test_enhanced_files(tmp_path, SimpleITK, pydicom):
    path = write_enhanced(pydicom, tmp_path / "a.dcm", VALUES, AFFINE, slopes=(0.5, -1000.0))
    np.testing.assert_array_equal(volumes.read(path).data, canonical(VALUES, AFFINE))
    np.testing.assert_array_equal(volumes.read(tmp_path).data, canonical(VALUES, AFFINE))
    path = write_enhanced(pydicom, path, VALUES, AFFINE, order=[0, 1, 2, 4, 5, 6, 7])
    assert "1 slice is missing, the first between a.dcm frame 3 and a.dcm frame 4" in message(path)
    path = write_enhanced(pydicom, path, VALUES, AFFINE, order=[0, 1, 2, 2])
    assert "4 slices at 3 places" in message(path)


def test_wrong_byte_order_is_one_line(series, pydicom):
    def swap(data, index):
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian

    folder = series(change=swap)
    for path in folder.iterdir():  # declare the little-endian data set as big-endian
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0"))
    assert "s1_000.dcm" in message(folder)


def test_damaged_headers_are_one_line(tmp_path, SimpleITK, pydicom):
    """Bytes of the header are changed at random: the answer is a volume or one line."""
    path = write_enhanced(pydicom, tmp_path / "a.dcm", VALUES, AFFINE)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(132, 900, 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            volumes.read(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10
