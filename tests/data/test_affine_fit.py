import numpy as np
import pytest

from affine_scans import grid, image, negative
from f3r_jax.common.errors import UserError
from f3r_jax.data import resample
from f3r_jax.data.affine import fit
from f3r_jax.data.nifti import Image


def _truth(shift=(9.0, -6.0, 12.0), degrees=6.0, scales=(1.0, 1.0, 1.0)):
    truth = grid(scales, (1, 1, 1), degrees)
    truth[:3, 3] = shift
    return truth


def _error(found, truth):
    """Root mean square in mm over the ellipsoid's core."""
    points = np.random.default_rng(1).uniform(-50, 50, (500, 3))
    difference = found - truth
    return np.sqrt(np.mean(np.sum((points @ difference[:3, :3].T + difference[:3, 3]) ** 2, axis=-1)))


SHAPE = (39, 29, 31)
FIXED = image(SHAPE, grid((5.0, 5.0, 5.0), SHAPE))


def test_a_copy_stays_where_it_is():
    found = fit.fit(FIXED, FIXED, initial=np.eye(4))
    np.testing.assert_array_equal(found.matrix, np.eye(4))
    assert found.similarity_before == pytest.approx(1, abs=1e-3) and found.overlap == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("degrees", "truth", "contrast", "most"),
    [
        ("translation", _truth(degrees=0), np.asarray, 0.5),
        ("rigid", _truth(), np.asarray, 0.5),
        ("rigid", _truth(), negative, 1.5),
        ("affine", _truth(scales=(1.04, 0.96, 1.03)), np.asarray, 2.5),  # half a voxel: strain has its price
    ],
)
def test_a_known_map_is_found(degrees, truth, contrast, most):
    moving = image(SHAPE, grid((5.0, 5.0, 5.0), SHAPE), truth, contrast)
    found = fit.fit(FIXED, moving, initial=np.eye(4), degrees=degrees)
    assert _error(found.matrix, truth) < most
    assert found.similarity_after > found.similarity_before + 0.1


def test_oblique_and_anisotropic_scans_in_unrelated_frames():
    shape = (62, 24, 38)
    truth = _truth(shift=(812.0, -604.0, 1511.0))
    moving = image(shape, grid((3.0, 7.0, 5.0), shape, 20, (800, -600, 1500)), truth, negative, "far.nii.gz")
    slab = image((39, 29, 11), grid((5.0, 5.0, 6.0), (39, 29, 11), -10, (0, 0, 15)))
    start = resample.translation((800, -600, 1530))
    found = fit.fit(slab, moving, initial=start, degrees="rigid", related=False)
    assert _error(found.matrix, truth) < 2.0


def test_what_a_mask_leaves_out_does_not_count():
    truth = _truth(degrees=0)
    moving = image(SHAPE, grid((5.0, 5.0, 5.0), SHAPE), truth)
    spoiled = FIXED.data.copy()
    spoiled[:12] = np.random.default_rng(0).random(spoiled[:12].shape)
    mask = np.ones(SHAPE, bool)
    mask[:16] = False
    fixed = Image(spoiled, FIXED.affine, FIXED.path)
    found = fit.fit(fixed, moving, initial=np.eye(4), degrees="translation", fixed_mask=mask)
    assert _error(found.matrix, truth) < 1.0


def test_scans_that_cannot_be_compared():
    with pytest.raises(UserError, match=r"scan.nii.gz: its mask is empty"):
        fit.fit(FIXED, FIXED, initial=np.eye(4), moving_mask=np.zeros(SHAPE, bool))
    with pytest.raises(UserError, match=r"scan.nii.gz: does not overlap .* within reach"):
        fit.fit(FIXED, FIXED, initial=resample.translation((2000, 0, 0)))
