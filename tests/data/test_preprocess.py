import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from f3r_jax.common.errors import UserError
from f3r_jax.data import preprocess, resample
from f3r_jax.data.nifti import Grid, Image

WINDOW, PERCENTILES = (-160.0, 240.0), (1.0, 99.0)
DIRECTION = np.array([0.02, -0.03, 0.05])  # of the ramp, a mm


def _affine(seed, spacing):
    """A rotation of about 0.3 rad, times the spacing, somewhere in space."""
    rng = np.random.default_rng(seed)
    q, r = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = q * np.sign(np.diag(r)) * spacing
    affine[:3, 3] = rng.normal(scale=20, size=3)
    return affine


def _points(grid):
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def _ramp(grid):
    """An image whose value is a linear function of the position in mm."""
    return Image((_points(grid) @ DIRECTION).astype(np.float32), grid.affine, "ramp.nii.gz")


def _phantom(centre, affine, shape=(40, 36, 30), radius=45.0, inside=40.0, outside=-1000.0):
    """A ball of tissue in air with a gas bubble in it."""
    distance = np.linalg.norm(_points(Grid(shape, affine)) - centre, axis=-1)
    data = np.where(distance < radius, inside, outside)
    data[distance < 10] = outside
    return Image(data.astype(np.float32), affine, "ball.nii.gz")


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000))
def test_a_linear_ramp_through_oblique_affines_stays_that_ramp(seed):
    image = _ramp(Grid((30, 28, 26), _affine(seed, (2.0, 2.5, 3.0))))
    grid = resample.working_grid(image.grid, shape=(9, 8, 7), spacing=(1.5, 2.5, 2.0))
    turned = Grid(grid.shape, grid.affine @ _affine(seed + 1, (1.0, 1.0, 1.0)))
    turned.affine[:3, 3] += grid.affine[:3, :3] @ (4, 3.5, 3) + grid.affine[:3, 3] - _points(turned)[4, 3, 3]
    np.testing.assert_allclose(resample.resample(image, grid), _points(grid) @ DIRECTION, atol=2e-5)
    np.testing.assert_allclose(resample.resample(image, turned), _points(turned) @ DIRECTION, atol=2e-5)


def test_a_ramp_survives_the_filter_against_aliasing():
    image = _ramp(Grid((60, 60, 60), _affine(3, (1.0, 1.0, 1.0))))
    grid = resample.working_grid(image.grid, shape=(8, 8, 8), spacing=(3.0, 3.0, 3.0))
    np.testing.assert_allclose(resample.resample(image, grid), _points(grid) @ DIRECTION, atol=1e-4)


def test_downsampling_averages_what_it_cannot_show():
    stripes = np.zeros((64, 8, 8), np.float32)
    stripes[::2] = 1
    image = Image(stripes, np.eye(4), "stripes.nii.gz")
    grid = resample.working_grid(image.grid, shape=(12, 4, 4), spacing=(4.0, 1.0, 1.0))
    assert np.abs(resample.resample(image, grid)[1:-1] - 0.5).max() < 0.01
    same = resample.working_grid(image.grid, shape=(64, 8, 8), spacing=(1.0, 1.0, 1.0))
    np.testing.assert_array_equal(resample.resample(image, same), stripes)


def test_interpolation_equals_scipys_map_coordinates():
    rng = np.random.default_rng(0)
    image = Image(rng.normal(size=(12, 11, 10)).astype(np.float32), _affine(1, (3.0, 3.0, 3.0)), "noise.nii.gz")
    labels = Image(rng.integers(0, 5, (12, 11, 10)).astype(np.uint8), image.affine, "labels.nii.gz")
    grid = resample.working_grid(image.grid, shape=(10, 10, 10), spacing=(2.1, 2.3, 1.9))  # no ties in rounding
    at = np.moveaxis(resample.to_voxels(_points(grid).reshape(-1, 3), image.affine).reshape(10, 10, 10, 3), -1, 0)
    expected = ndimage.map_coordinates(image.data, at, order=1, mode="nearest")
    np.testing.assert_allclose(resample.resample(image, grid), expected, atol=1e-5)
    nearest = ndimage.map_coordinates(labels.data, at, order=0, mode="nearest")
    np.testing.assert_array_equal(resample.resample_labels(labels, grid), nearest)


@pytest.mark.parametrize("spacing", [(0.7, 0.7, 2.5), (1 / 3, 1.1, 0.9)])
def test_own_grid_gives_the_very_voxels_up_to_the_border(spacing):
    image = Image(np.random.default_rng(0).random((9, 8, 7), np.float32) + 1, _affine(5, spacing), "own.nii.gz")
    grid = resample.working_grid(image.grid, shape=image.shape, spacing=spacing)
    np.testing.assert_allclose(resample.resample(image, grid), image.data, atol=1e-5)


def test_the_working_grid_crops_and_pads_about_the_centre():
    image = Image(np.ones((6, 4, 5), np.float32), _affine(2, (2.0, 2.0, 2.0)), "ones.nii.gz")
    labels = Image(np.ones((6, 4, 5), np.uint8), image.affine, "ones.nii.gz")
    grid = resample.working_grid(image.grid, shape=(4, 8, 5), spacing=(2.0, 2.0, 2.0))
    expected = np.zeros((4, 8, 5))
    expected[:, 2:6] = 1
    np.testing.assert_allclose(resample.resample(image, grid), expected, atol=1e-6)
    np.testing.assert_array_equal(resample.resample_labels(labels, grid), expected)
    np.testing.assert_allclose(_points(grid).mean((0, 1, 2)), _points(image.grid).mean((0, 1, 2)), atol=1e-9)
    np.testing.assert_allclose(grid.spacing, 2)


def test_ct_window():
    data = np.linspace(-1000, 1000, 2001, dtype=np.float32).reshape(3, 23, 29)
    scaled = preprocess.normalise(
        Image(data, np.eye(4), "ct.nii.gz"), "ct", ct_window=WINDOW, mr_percentiles=PERCENTILES
    ).data
    np.testing.assert_allclose(scaled, np.clip((data + 160) / 400, 0, 1), atol=1e-6)
    assert scaled.dtype == np.float32


def test_mr_percentiles_are_those_of_the_body():
    rng = np.random.default_rng(0)
    ball = _phantom(
        np.zeros(3),
        resample.working_grid(Grid((3, 3, 3), np.eye(4)), shape=(40, 36, 30), spacing=(4.0, 4.0, 4.0)).affine,
        inside=1.0,
        outside=0.0,
    )
    data = np.where(ball.data > 0, rng.uniform(400, 600, ball.shape), rng.uniform(0, 20, ball.shape)).astype(np.float32)
    padded = np.pad(data, 20)
    for volume in (data, padded):  # more air around it changes nothing
        image = Image(volume, np.diag([4.0, 4.0, 4.0, 1.0]), "mr.nii.gz")
        scaled = preprocess.normalise(image, "mr", ct_window=WINDOW, mr_percentiles=(5.0, 95.0)).data
        at_500 = scaled[np.abs(volume - 500) < 1].mean()
        assert 0.4 < at_500 < 0.95 and (scaled == 1).mean() > 0 and scaled[volume < 1].max() < 0.05


def test_an_mr_keeps_its_dark_tissues():
    """Otsu's threshold once took the bright organs alone for the body, and all else became 0."""
    index = np.stack(np.meshgrid(*map(np.arange, (60, 54, 30)), indexing="ij"), axis=-1) - np.array([29.5, 26.5, 14.5])
    body, organ = (np.sum((index[..., :2] / radii) ** 2, axis=-1) < 1 for radii in ((24, 18), (11, 9)))
    tissue = np.where(organ, 560.0, np.where(body, np.where(index[..., 0] < 0, 110.0, 60.0), 0.0))
    data = np.hypot(tissue, np.random.default_rng(0).normal(0, 15, tissue.shape)).astype(np.float32)
    data = np.pad(data, ((0, 0), (0, 0), (0, 40)))  # padding, darker than noise, does not take the noise for body
    image = Image(data, np.diag([4.0, 4.0, 4.0, 1.0]), "mr.nii.gz")
    assert preprocess.body_mask(image, "mr")[..., :30].mean() == pytest.approx(body.mean(), abs=0.05)
    scaled = preprocess.normalise(image, "mr", ct_window=WINDOW, mr_percentiles=PERCENTILES).data[..., :30]
    dark = body & ~organ
    assert (scaled[dark] > 0).mean() > 0.95 and (scaled == 1).mean() < 0.05
    assert scaled[dark & (index[..., 0] < -2)].mean() > 1.3 * scaled[dark & (index[..., 0] > 2)].mean()


def test_constant_images_are_refused():
    for modality, value in (("ct", 0.0), ("mr", 7.0)):
        image = Image(np.full((5, 5, 5), value, np.float32), np.eye(4), "flat.nii.gz")
        with pytest.raises(UserError, match=r"flat.nii.gz: constant image, every voxel is"):
            preprocess.normalise(image, modality, ct_window=WINDOW, mr_percentiles=PERCENTILES)
    bright = Image(np.linspace(1000, 2000, 125, dtype=np.float32).reshape(5, 5, 5), np.eye(4), "bright.nii.gz")
    with pytest.raises(UserError, match=r"bright.nii.gz: constant after clipping to -160 to 240.*CT in HU"):
        preprocess.normalise(bright, "ct", ct_window=WINDOW, mr_percentiles=PERCENTILES)


def test_otsu_parts_two_classes():
    rng = np.random.default_rng(0)
    data = np.concatenate([rng.normal(10, 3, 5000), rng.normal(100, 10, 5000)])
    assert 20 < preprocess.otsu(data) < 70


@pytest.mark.parametrize(("modality", "inside", "outside"), [("ct", 40.0, -1000.0), ("mr", 300.0, 5.0)])
@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (1.6, 1.6, 5.0)])
def test_the_body_centre_is_that_of_the_ball_filled(modality, inside, outside, spacing):
    shape = tuple(int(160 / length) for length in spacing)
    affine = resample.working_grid(Grid((3, 3, 3), _affine(4, (1.0, 1.0, 1.0))), shape=shape, spacing=spacing).affine
    centre = _points(Grid(shape, affine)).mean((0, 1, 2)) + np.array([8.0, -6.0, 5.0])
    ball = _phantom(centre, affine, shape, inside=inside, outside=outside)
    assert np.abs(preprocess.body_centre(ball, modality) - centre).max() < 1.5
    mask = preprocess.body_mask(ball, modality)
    assert abs(mask.sum() * np.prod(spacing) / (4 / 3 * np.pi * 45**3) - 1) < 0.05


def test_the_body_translation_lines_up_bodies_in_unrelated_frames():
    fixed = _phantom(np.array([70.0, 60.0, 50.0]), np.diag([4.0, 4.0, 4.0, 1.0]))
    far = np.diag([4.0, 4.0, 4.0, 1.0])
    far[:3, 3] = (900, -500, 1200)
    moving = _phantom(np.array([980.0, -430.0, 1255.0]), far)
    assert not resample.has_overlap(fixed.grid, moving.grid)
    shift = preprocess.body_translation(fixed, "ct", moving, "ct")
    np.testing.assert_allclose(shift, (910, -490, 1205), atol=1.5)
    matrix = resample.translation(shift)
    assert resample.has_overlap(fixed.grid, moving.grid, matrix)
    grid = resample.working_grid(fixed.grid, shape=(40, 36, 30), spacing=(4.0, 4.0, 4.0))
    above_air = Image(moving.data + 1000, moving.affine)
    moved = resample.resample(above_air, Grid(grid.shape, resample.moving_affine(grid, matrix)))
    assert (np.abs(moved - 1000 - fixed.data) < 500).mean() > 0.95


def test_no_body_is_a_user_error():
    air = Image(np.full((9, 9, 9), -1000, np.float32), np.diag([4.0, 4.0, 4.0, 1.0]), "air.nii.gz")
    with pytest.raises(UserError, match=r"air.nii.gz: no body found.*-300.*CT in HU"):
        preprocess.body_centre(air, "ct")


def test_a_small_field_of_view_within_a_large_one_overlaps():
    large, small = Grid((100, 100, 100), np.eye(4)), Grid((2, 2, 2), np.eye(4))
    small.affine[:3, 3] = 50.3
    assert resample.has_overlap(large, small) and resample.has_overlap(small, large)
    small.affine[:3, 3] = 101
    assert not resample.has_overlap(large, small) and not resample.has_overlap(small, large)


def _scan(values, fractions, seed=0):
    """A volume whose voxels are normally distributed about `values`, in these fractions."""
    rng = np.random.default_rng(seed)
    tissue = rng.choice(len(values), size=(20, 20, 20), p=fractions)
    centres, widths = np.array(values, float).T
    return Image((centres[tissue] + widths[tissue] * rng.normal(size=tissue.shape)).astype(np.float32), np.eye(4), "s")


TISSUES = ((-1000, 10), (-100, 15), (50, 20), (300, 100))  # HU: air, fat, soft tissue, bone
FRACTIONS = (0.5, 0.2, 0.25, 0.05)


def test_modalities_are_recognised_by_their_intensities():
    ct = _scan(TISSUES, FRACTIONS)
    assert preprocess.recognise_modality(ct) == "ct"
    padded = Image(np.pad(ct.data, 2, constant_values=-3024), ct.affine, "ct.nii.gz")
    assert preprocess.recognise_modality(padded) == "ct"
    mr = _scan(((15, 8), (150, 20), (400, 60), (900, 80)), FRACTIONS)
    assert preprocess.recognise_modality(Image(np.abs(mr.data), mr.affine)) == "mr"
    assert preprocess.recognise_modality(mr) == "mr"  # signed: noise about 0
    bright = _scan(((30, 8), (600, 80), (1500, 300), (2500, 300)), FRACTIONS)
    assert preprocess.recognise_modality(bright) == "mr"


@pytest.mark.parametrize(
    ("scale", "offset", "message"),
    [
        (1.0, 1024.0, "CT stored with an offset of 1024; expected HU"),
        (1 / 4000, 0.3, "cannot detect the modality"),
        (1 / 500, 0.0, "cannot detect the modality"),  # zero mean, unit variance or so
    ],
)
def test_modalities_that_are_in_doubt(scale, offset, message):
    ct = _scan(TISSUES, FRACTIONS)
    image = Image(ct.data * np.float32(scale) + np.float32(offset), ct.affine, "doubt.nii.gz")
    with pytest.raises(UserError, match=message) as caught:
        preprocess.recognise_modality(image)
    assert str(caught.value).startswith("doubt.nii.gz: ") and "name the modality" in str(caught.value)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("linear", [np.diag([0.7, -1.6, 1.0]), [[0, 1.3, 0], [0, 0, -0.8], [2.0, 0, 0]]])
def test_along_shared_axes_sampling_equals_scipys(order, linear):
    """Flipped, swapped, finer and coarser; half-way between two voxels too, where rounding decides."""
    rng, shape, to = np.random.default_rng(3), (9, 12, 10), (11, 7, 8)
    data = rng.random(shape).astype(np.float32) if order else rng.integers(0, 9, shape, np.int16)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = linear, (1.5, 6.5, 7.25)
    axes = resample.shared_axes(matrix)
    found = resample.sample_along_axes(data, matrix, axes, to, slice(2, 9), order=order)
    expected = ndimage.affine_transform(
        data, matrix[:3, :3], matrix[:3, 3], output_shape=to, order=order, mode="nearest"
    )
    np.testing.assert_allclose(found, expected[2:9], atol=1e-6)


def test_turned_grids_share_no_axes():
    matrix = np.eye(4)
    matrix[0, 1] = 1e-6
    assert resample.shared_axes(matrix) is None


@pytest.mark.parametrize(
    ("scale", "offset", "modality", "words"),
    [
        (1.0, 1024.0, "ct", "is stated to be a CT, but .* a CT stored with an offset of 1024"),
        (1.0, 0.0, "mr", "is stated to be an MR, but .* look like a CT"),
        (1 / 4000, 0.3, "ct", "scaled before; expected HU"),
        (1.0, 0.0, "ct", None),
        (1.0, 1024.0, "mr", None),  # an MR may look like this
        (1 / 500, 0.0, "mr", None),
    ],
)
def test_a_stated_modality_must_not_contradict_the_intensities(scale, offset, modality, words):
    ct = _scan(TISSUES, FRACTIONS)
    image = Image(ct.data * np.float32(scale) + np.float32(offset), ct.affine, "scan.nii.gz")
    if words is None:
        preprocess.check_modality(image, modality)
        return
    with pytest.raises(UserError, match=f"^scan.nii.gz: .*{words}") as caught:
        preprocess.check_modality(image, modality)
    assert "--nocheck_modality" in str(caught.value) and "data.check_modality=False" in str(caught.value)


def test_an_mr_stated_as_a_ct_is_a_contradiction():
    mr = _scan(((15, 8), (150, 20), (400, 60), (900, 80)), FRACTIONS)
    with pytest.raises(UserError, match="look like an MR"):
        preprocess.check_modality(Image(np.abs(mr.data), mr.affine, "mr.nii.gz"), "ct")
