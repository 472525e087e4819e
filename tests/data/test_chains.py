"""Warps against SimpleITK's resampler, and chains of transforms against composites."""

import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data import chains, itk_formats
from f3r_jax.data.chains import FieldMap
from f3r_jax.data.grids import Grid
from f3r_jax.data.stored import StoredVolume

RNG = np.random.default_rng(0)
MOVING = Grid((15, 17, 13), np.array([[-1.92, 0.56, 0, 14], [0.56, 1.92, 0, -18], [0, 0, 3.0, -16], [0, 0, 0, 1.0]]))
FIXED = Grid((14, 12, 16), np.array([[1.9, 0, 0, -13], [0, -2.3, 0, 14], [0, 0, 2.1, -17], [0, 0, 0, 1]]))
COARSE = Grid((8, 8, 8), np.array([[5.0, 0, 0, -18], [0, 5, 0, -18], [0, 0, 6, -21], [0, 0, 0, 1]]))
MATRIX = np.array([[0.98, -0.1, 0.05, 2.0], [0.1, 0.99, 0.02, -3.0], [0.0, 0.03, 1.02, 1.0], [0, 0, 0, 1.0]])
FLIP = np.diag([-1.0, -1, 1, 1])
ITK = {"linear": "sitkLinear", "nearest": "sitkNearestNeighbor", "bspline": "sitkBSpline", "label": "sitkLabelLinear"}


def field(grid, scale=1.5):
    return (scale * RNG.normal(size=(*grid.shape, 3))).astype(np.float32)


def stored(data, affine=MOVING.affine):
    def load(dtype, index=None):
        return (data if index is None else data[(..., *index)]).astype(dtype)

    return StoredVolume("moving", data.shape, affine, data.dtype, load)


def itk_field(sitk, values, grid):
    vectors = (values * (-1, -1, 1)).astype(np.float64)[:, :, :, None]
    return sitk.DisplacementFieldTransform(itk_formats.to_memory(vectors, grid.affine, "field"))


def itk_affine(sitk, matrix):
    lps = FLIP @ matrix @ FLIP
    made = sitk.AffineTransform(3)
    made.SetMatrix(lps[:3, :3].ravel().tolist())
    made.SetTranslation(lps[:3, 3].tolist())
    return made


def resampled(sitk, data, transform, interpolation, outside):
    moving = itk_formats.to_memory(data, MOVING.affine, "moving")
    reference = itk_formats.to_memory(np.zeros(FIXED.shape, np.uint8), FIXED.affine, "fixed")
    found = sitk.Resample(moving, reference, transform, getattr(sitk, ITK[interpolation]), outside)
    return sitk.GetArrayFromImage(found).T


def image(dtype):
    values = RNG.normal(300, 200, MOVING.shape)
    return values.astype(dtype) if dtype != "uint8" else (values / 4).clip(0, 255).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "bspline"])
def test_images_are_those_of_simpleitks_resampler(sitk, dtype, interpolation):
    data, values = image(dtype), field(FIXED)
    exact = data.astype(np.float64) if data.dtype.kind in "iu" else data  # for integers SimpleITK cuts decimals off
    expected = resampled(sitk, exact, itk_field(sitk, values, FIXED), interpolation, 7.0)
    found = chains.warp_stored(
        stored(data), None, [FieldMap(values, FIXED)], FIXED, interpolation=interpolation, outside=7.0
    )
    assert found.dtype == data.dtype
    assert 0.1 < np.mean(found == 7) < 0.9  # the field of view ends inside the grid
    if data.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, atol=2e-3 if dtype == "float32" else 1e-4)
    else:
        limits = np.iinfo(data.dtype)
        expected = expected.clip(limits.min, limits.max)
        np.testing.assert_allclose(found, expected, atol=0.5001)


@pytest.mark.parametrize("interpolation", ["nearest", "label"])
def test_labels_are_those_of_simpleitks_resampler(sitk, interpolation):
    blocks = RNG.integers(0, 5, [size // 3 + 1 for size in MOVING.shape]).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    data = (blocks[: MOVING.shape[0], : MOVING.shape[1], : MOVING.shape[2]] * 10000).astype(np.int32)
    values = field(FIXED)
    expected = resampled(sitk, data, itk_field(sitk, values, FIXED), interpolation, 0)
    found = chains.warp_stored(
        stored(data), None, [FieldMap(values, FIXED)], FIXED, interpolation=interpolation, outside=0.0
    )
    np.testing.assert_array_equal(found, expected)
    assert set(np.unique(found)) <= set(np.unique(data)) and found.dtype == np.int32


def test_a_chain_is_the_composite_of_its_maps(sitk):
    """x in the fixed frame first through a field on a coarse grid, then a matrix, then another field."""
    first, last = field(COARSE), field(FIXED, 0.5)
    chain = [FieldMap(first, COARSE), MATRIX, FieldMap(last, FIXED)]
    composite = sitk.CompositeTransform(
        [itk_field(sitk, last, FIXED), itk_affine(sitk, MATRIX), itk_field(sitk, first, COARSE)]
    )  # ITK applies the last one first
    points = RNG.uniform(-8, 8, (40, 3))
    expected = [np.array(composite.TransformPoint((point * (-1, -1, 1)).tolist())) * (-1, -1, 1) for point in points]
    np.testing.assert_allclose(chains.map_points(chain, points), expected, atol=1e-4)
    data = image("float32")
    found = chains.warp_volume(data, MOVING.affine, [MATRIX], FIXED, interpolation="linear", outside=-5.0)
    expected = resampled(sitk, data, itk_affine(sitk, MATRIX), "linear", -5)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_values_outside_and_types():
    data = image("int16")
    options = {"interpolation": "linear", "outside": None}
    far = Grid((3, 3, 3), np.diag([1.0, 1, 1, 1]) + np.array([[0, 0, 0, 900], [0] * 4, [0] * 4, [0] * 4]))
    assert (chains.warp_stored(stored(data), None, [np.eye(4)], far, **options) == data.min()).all()
    chains.check_outside(-1.0, np.dtype(np.int16), "a")
    for outside, dtype in ((-1.0, np.uint8), (0.5, np.int16), (40000.0, np.int16)):
        with pytest.raises(UserError, match="--outside is"):
            chains.check_outside(outside, np.dtype(dtype), "a")
    np.testing.assert_array_equal(
        chains.as_type(np.array([-3.2, 1.5, 254.6, 300]), np.dtype(np.uint8)), [0, 2, 255, 255]
    )
    with pytest.raises(UserError, match="expected --reference=FILE"):
        chains.target_grid([MATRIX])


def test_nan_padding_is_filled_before_the_warp():
    data = image("float32")
    data[:5] = np.nan
    found = chains.warp_stored(stored(data), None, [np.eye(4)], MOVING, interpolation="linear", outside=None)
    np.testing.assert_allclose(found[5:], data[5:], atol=1e-3)
    np.testing.assert_allclose(found[:5], np.nanmin(data))
