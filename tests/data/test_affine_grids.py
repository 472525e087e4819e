import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data.affine import grids
from f3r_jax.data.nifti import Image


def _ramp(shape, affine):
    """An image whose values are the first coordinate in mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return Image((index @ affine[:3, :3].T + affine[:3, 3])[..., 0].astype(np.float32), affine, "ramp.nii.gz")


def _oblique(spacing):
    c, s = np.cos(0.4), np.sin(0.4)
    affine = np.diag([*spacing, 1.0])
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * spacing
    affine[:3, 3] = 30, -20, 10
    return affine


def test_reduced_scans_stay_in_place():
    image = _ramp((21, 20, 9), _oblique((1.0, 1.2, 5.0)))
    scan = grids.reduce(image, None, spacing=4.0)
    assert scan.image.shape == (5, 6, 9)
    np.testing.assert_allclose(scan.image.data, _ramp((5, 6, 9), scan.image.affine).data, atol=1e-4)
    half = np.zeros(image.shape, bool)
    half[:2] = True
    seen = grids.reduce(image, half, spacing=4.0).seen.data
    np.testing.assert_allclose(seen[0], 0.5)
    assert not seen[1:].any()
    with pytest.raises(UserError, match=r"ramp.nii.gz: its mask is empty"):
        grids.reduce(image, ~np.ones(image.shape, bool), spacing=4.0)


def test_a_grid_holds_the_fixed_scan_along_its_axes():
    image = _ramp((40, 30, 10), _oblique((2.0, 3.0, 6.0)))
    frame = grids.frame_of(image)
    np.testing.assert_allclose(frame.half, (40, 45, 30), atol=1e-9)
    np.testing.assert_allclose(frame.to_world[:3, :3], _oblique((1, 1, 1))[:3, :3], atol=1e-12)
    assert grids.height(image, frame) == pytest.approx(60)
    size = grids.grid_size(frame, 5.0)
    np.testing.assert_array_equal(size, (16, 24, 16))
    scan = grids.reduce(image, None, spacing=2.0)
    data, seen = grids.sample(scan, size, frame.to_world @ grids.voxels_to_local(size, 5.0))
    assert seen.sum() * 125 == pytest.approx(80 * 90 * 60)
    exact = _ramp(tuple(size), frame.to_world @ grids.voxels_to_local(size, 5.0)).data
    within = np.s_[2:-2, 5:-5, 4:-4]
    np.testing.assert_allclose(data[within], exact[within], atol=0.5)


def test_shears_in_a_header_leave_a_rotation():
    affine = _oblique((2.0, 3.0, 6.0))
    affine[0, 2] += 0.5
    rotation = grids.frame_of(_ramp((8, 8, 8), affine)).to_world[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)


def test_the_interior_grows_with_the_depth():
    data = np.zeros((30, 30, 12), np.float32)
    data[5:25, 5:25] = 1
    weights = grids.interior(data, 5.0)
    np.testing.assert_allclose(weights[3:13, 15, 6], np.clip(np.arange(-1, 9) / 6, 0, 1), atol=1e-6)
    np.testing.assert_allclose(weights[15, 15], 1)  # the ends of the field of view are no skin
    full = np.ones((9, 9, 9), np.float32)
    full[3:6, 3:6] = 0  # a hole, no skin
    np.testing.assert_array_equal(grids.interior(full, 5.0), 1)


def test_a_stack_has_a_rim_that_is_not_seen():
    scan = grids.reduce(_ramp((13, 11, 9), _oblique((4.0, 4.0, 4.0))), None, spacing=4.0)
    stack, to_voxels = grids.stack(scan, 4.0)
    assert stack.shape == (16, 16, 16, 2) and stack[..., 1].sum() == 13 * 11 * 9
    assert not any(face.any() for axis in range(3) for face in np.take(stack[..., 1], (0, -1), axis=axis))
    np.testing.assert_allclose(stack[3:12, 3:10, 3:8, 0], scan.image.data[2:-2, 2:-2, 2:-2], atol=0.1)
    np.testing.assert_allclose(to_voxels @ scan.image.affine @ (3, 4, 5, 1), (4, 5, 6, 1), atol=1e-9)
