import numpy as np
import pytest

from conftest import blob
from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti
from f3r_jax.data.nifti import Grid
from f3r_jax.data.resample import translation
from f3r_jax.register import scans

SHAPE = (16, 16, 16)


def grid(spacing=2.0, shape=SHAPE, origin=(0.0, 0.0, 0.0), turn=0.0):
    """A grid turned about z by an angle in radians."""
    affine = np.eye(4)
    cosine, sine = np.cos(turn), np.sin(turn)
    affine[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine, "scan.nii")


def corners(of):
    """The outer corners of a field of view, mm."""
    ends = np.array(np.meshgrid(*[(-0.5, size - 0.5) for size in of.shape], indexing="ij")).reshape(3, -1).T
    return ends @ of.affine[:3, :3].T + of.affine[:3, 3]


def inside(points, of):
    voxels = (points - of.affine[:3, 3]) @ np.linalg.inv(of.affine[:3, :3]).T
    return ((voxels >= -0.5 - 1e-6) & (voxels <= np.array(of.shape) - 0.5 + 1e-6)).all()


@pytest.fixture
def files(tmp_path):
    """An MR-like and a CT-like ball."""
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    nifti.write(tmp_path / "mr.nii.gz", 500 * blob(0.0), affine)
    nifti.write(tmp_path / "ct.nii.gz", (2500 * blob(0.0) - 1000).astype(np.int16), affine)
    nifti.write(tmp_path / "labels.nii.gz", (blob(0.0) > 0.3).astype(np.uint8), affine)
    nifti.write(tmp_path / "empty.nii.gz", np.zeros(SHAPE, np.uint8), affine)
    nifti.write(tmp_path / "far.nii.gz", np.ones(SHAPE, np.uint8), translation([900.0, 0.0, 0.0]) @ affine)
    nifti.write(tmp_path / "elsewhere.nii.gz", np.ones(SHAPE, np.uint8), np.diag([2.0, 2.0, 2.0, 1.0]))
    return tmp_path


def test_one_grid_for_two_scans_of_one_place_covers_them():
    turned = grid(turn=0.3, origin=(5.0, -7.0, 11.0))
    made = scans.common_grid(turned, turned, np.eye(4), spacing=1.5)
    assert inside(corners(turned), made)
    np.testing.assert_allclose(made.spacing, 1.5)
    assert all(size % scans.MULTIPLE == 0 for size in made.shape)
    np.testing.assert_allclose(made.affine[:3, :3] / 1.5, turned.affine[:3, :3] / 2.0, atol=1e-12)
    # Both about the same centre.
    np.testing.assert_allclose(corners(made).mean(axis=0), corners(turned).mean(axis=0))


def test_what_one_scan_alone_shows_is_left_out_but_for_a_margin():
    long = grid(shape=(16, 16, 200))
    slab = grid(shape=(16, 16, 16), origin=(0.0, 0.0, 200.0))
    made = scans.common_grid(long, slab, np.eye(4), spacing=2.0)
    low, high = corners(made)[:, 2].min(), corners(made)[:, 2].max()
    assert low <= 199 - scans.MARGIN + 8 and high >= 231 + scans.MARGIN - 8  # the grid has steps of 8 mm
    assert made.shape[2] <= 64


def test_the_matrix_says_where_the_moving_scan_lies():
    far = grid(origin=(500.0, 0.0, 0.0))
    matrix = np.eye(4)
    matrix[0, 3] = 500.0
    made = scans.common_grid(grid(), far, matrix, spacing=2.0)
    assert inside(corners(grid()), made)
    with pytest.raises(UserError, match="does not overlap"):
        scans.common_grid(grid(), far, np.eye(4), spacing=2.0)


def test_a_covering_grid_has_the_field_of_view_at_least():
    whole = grid(turn=-0.2, shape=(20, 33, 7))
    made = scans.covering(whole, spacing=(5.0, 4.0, 3.0))
    np.testing.assert_allclose(made.spacing, (5.0, 4.0, 3.0))
    assert inside(corners(whole), made)


def test_a_grid_is_made_no_finer_than_asked():
    same = grid(2.0)
    assert scans.no_finer(same, 2.0) is same
    coarse = scans.no_finer(grid(0.5), 1.0)
    np.testing.assert_allclose(coarse.spacing, 1.0)
    assert inside(corners(grid(0.5)), coarse)


def test_a_scan_on_a_grid_is_known_within_its_field_of_view_and_mask(files):
    scan = scans.read(str(files / "mr.nii.gz"), modality="mr", mask=str(files / "labels.nii.gz"))
    bigger = Grid((20, 16, 16), scan.image.affine.copy())
    values, known = scans.on_grid(scan, bigger)
    assert values.shape == known.shape == (20, 16, 16)
    np.testing.assert_array_equal(known[:16], scan.mask.data > 0)
    assert not known[16:].any() and not values[16:].any()
    free = scans.read(str(files / "mr.nii.gz"), modality="mr")
    assert scans.on_grid(free, bigger)[1].sum() == 16**3


def test_the_modality_is_told_by_the_intensities(files):
    assert scans.read(str(files / "ct.nii.gz")).modality == "ct"
    assert scans.read(str(files / "mr.nii.gz")).modality == "mr"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"labels": "elsewhere.nii.gz"}, "elsewhere.nii.gz: affine of the label map differs"),
        ({"mask": "far.nii.gz"}, "far.nii.gz: the mask does not overlap its image"),
        ({"mask": "empty.nii.gz"}, "empty.nii.gz: the mask is empty"),
        ({"labels": "none.nii.gz"}, "none.nii.gz: no such file"),
        ({"landmarks": "none.csv"}, "none.csv: no such file"),
    ],
)
def test_what_does_not_fit_the_scan_is_a_mistake(files, given, words):
    with pytest.raises(UserError, match=words):
        scans.read(str(files / "mr.nii.gz"), modality="mr", **{name: str(files / file) for name, file in given.items()})


def test_a_stated_modality_that_the_intensities_contradict(files):
    with pytest.raises(UserError, match="is stated to be an MR"):
        scans.read(str(files / "ct.nii.gz"), modality="mr")
    assert scans.read(str(files / "ct.nii.gz"), modality="mr", check_modality=False).modality == "mr"


def test_masks_that_leave_nothing_to_compare_and_soft_ones(files):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    masks = {
        "one": np.zeros(SHAPE, np.uint8),
        "air": np.zeros(SHAPE, np.uint8),
        "soft": np.full(SHAPE, 1.5, np.float32),
    }
    masks["one"][8, 8, 8] = 1
    data = 500 * blob(0.0)
    data[:4] = 0
    masks["air"][:4] = 1
    nifti.write(files / "mr.nii.gz", data, affine)
    for name, words in (
        ("one", "the mask holds 1 voxels"),
        ("air", "one intensity inside the mask"),
        ("soft", "a mask holds whole"),
    ):
        nifti.write(files / f"{name}.nii.gz", masks[name], affine)
        with pytest.raises(UserError, match=f"{name}.nii.gz: .*{words}"):
            scans.read(str(files / "mr.nii.gz"), modality="mr", mask=str(files / f"{name}.nii.gz"))


def test_a_soft_mask_is_thresholded_and_one_on_another_grid_is_resampled(files):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    soft = np.clip(2 * blob(0.0), 0, 1).astype(np.float32)
    nifti.write(files / "soft.nii.gz", soft, affine)
    scan = scans.read(str(files / "mr.nii.gz"), mask=str(files / "soft.nii.gz"))
    np.testing.assert_array_equal(scan.mask.data, soft >= 0.5)
    assert len(scan.notes) == 1 and "thresholded at 0.5" in scan.notes[0] and "soft.nii.gz" in scan.notes[0]
    shifted = translation([4.0, 0.0, 0.0]) @ affine  # two voxels along x
    nifti.write(files / "shifted.nii.gz", (soft[2:] >= 0.5).astype(np.uint8), shifted)
    scan = scans.read(str(files / "mr.nii.gz"), mask=str(files / "shifted.nii.gz"))
    np.testing.assert_array_equal(scan.mask.data[2:], soft[2:] >= 0.5)
    assert not scan.mask.data[:2].any() and scan.mask.data.shape == SHAPE
    assert len(scan.notes) == 1 and "it is resampled" in scan.notes[0]


def test_nan_padding_is_outside_the_scan(files):
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    data = 500 * blob(0.0)
    data[:4] = np.nan
    nifti.write(files / "padded.nii.gz", data, affine)
    scan = scans.read(str(files / "padded.nii.gz"), mask=str(files / "labels.nii.gz"))
    np.testing.assert_array_equal(scan.mask.data > 0, (blob(0.0) > 0.3) & ~np.isnan(data))
    free = scans.read(str(files / "padded.nii.gz"))
    known = scans.on_grid(free, free.image.grid)[1]
    np.testing.assert_array_equal(known, ~np.isnan(data))
    assert np.isfinite(free.normalised.data).all() and "25 % of voxels are NaN" in free.notes[0]
    assert scans.read(str(files / "mr.nii.gz")).notes == ()


@pytest.mark.parametrize(("shape", "spacing"), [((64, 64, 1), 5.0), ((64, 64, 64), 0.06)])
def test_scans_that_are_too_thin(shape, spacing):
    with pytest.raises(UserError, match=f"scan.nii: is .* mm long .* voxels of {spacing:g} mm"):
        scans.check_size(grid(spacing, shape=shape))
