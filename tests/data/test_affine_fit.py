import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data import resample
from f3r_jax.data.affine import fit
from f3r_jax.data.nifti import Image

BLOBS = np.random.default_rng(0).uniform(-1, 1, (60, 5))


def _anatomy(points, contrast):
    """An ellipsoid of 180 x 132 x 144 mm with round organs in it, at points in mm; zero around it."""
    value = np.full(points.shape[:-1], 0.4)
    for x, y, z, size, gray in BLOBS:
        distance = np.sum((points - np.array([66 * x, 48 * y, 54 * z])) ** 2, axis=-1)
        value += 0.35 * gray * np.exp(-0.5 * distance / (10 + 4 * size) ** 2)
    value = contrast(np.clip(value, 0.05, 1))
    return np.where(np.sum((points / (90, 66, 72)) ** 2, axis=-1) < 1, value, 0)


def _image(shape, matrix, to_world=None, contrast=np.asarray, path="scan.nii.gz"):
    """The anatomy on a grid; `to_world` takes it from its own place to the scan's frame."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    own = np.linalg.inv(np.eye(4) if to_world is None else to_world) @ matrix
    return Image(_anatomy(index @ own[:3, :3].T + own[:3, 3], contrast).astype(np.float32), matrix, path)


def _grid(spacing, shape, degrees=0.0, centre=(0.0, 0.0, 0.0)):
    """An affine with these spacings, turned about z and x, its field of view centred."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn * spacing
    matrix[:3, 3] = np.array(centre) - matrix[:3, :3] @ ((np.array(shape) - 1) / 2)
    return matrix


def _truth(shift=(9.0, -6.0, 12.0), degrees=6.0, scales=(1.0, 1.0, 1.0)):
    truth = _grid(scales, (1, 1, 1), degrees)
    truth[:3, 3] = shift
    return truth


def _error(found, truth):
    """Root mean square in mm over the ellipsoid's core."""
    points = np.random.default_rng(1).uniform(-50, 50, (500, 3))
    difference = found - truth
    return np.sqrt(np.mean(np.sum((points @ difference[:3, :3].T + difference[:3, 3]) ** 2, axis=-1)))


def _negative(value):
    return 1.05 - value


SHAPE = (39, 29, 31)
FIXED = _image(SHAPE, _grid((5.0, 5.0, 5.0), SHAPE))


def test_a_copy_stays_where_it_is():
    found = fit.fit(FIXED, FIXED, initial=np.eye(4))
    np.testing.assert_array_equal(found.matrix, np.eye(4))
    assert found.similarity_before == pytest.approx(1, abs=1e-3) and found.overlap == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("degrees", "truth", "contrast", "most"),
    [
        ("translation", _truth(degrees=0), np.asarray, 0.5),
        ("rigid", _truth(), np.asarray, 0.5),
        ("rigid", _truth(), _negative, 1.5),
        ("affine", _truth(scales=(1.04, 0.96, 1.03)), np.asarray, 2.5),  # half a voxel: strain has its price
    ],
)
def test_a_known_map_is_found(degrees, truth, contrast, most):
    moving = _image(SHAPE, _grid((5.0, 5.0, 5.0), SHAPE), truth, contrast)
    found = fit.fit(FIXED, moving, initial=np.eye(4), degrees=degrees)
    assert _error(found.matrix, truth) < most
    assert found.similarity_after > found.similarity_before + 0.1


def test_oblique_and_anisotropic_scans_in_unrelated_frames():
    shape = (62, 24, 38)
    truth = _truth(shift=(812.0, -604.0, 1511.0))
    moving = _image(shape, _grid((3.0, 7.0, 5.0), shape, 20, (800, -600, 1500)), truth, _negative, "far.nii.gz")
    slab = _image((39, 29, 11), _grid((5.0, 5.0, 6.0), (39, 29, 11), -10, (0, 0, 15)))
    start = resample.translation((800, -600, 1530))
    found = fit.fit(slab, moving, initial=start, degrees="rigid", related=False)
    assert _error(found.matrix, truth) < 2.0


def test_what_a_mask_leaves_out_does_not_count():
    truth = _truth(degrees=0)
    moving = _image(SHAPE, _grid((5.0, 5.0, 5.0), SHAPE), truth)
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
