"""One canonical order of the axes, whatever the rounding, and the check for equal grids."""

import nibabel
import numpy as np
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.data import grids, nifti


def turned(angle, spacing=(2.0, 2.0, 3.0)):
    affine = np.eye(4)
    cosine, sine = np.cos(angle), np.sin(angle)
    affine[:3, :3] = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]) * spacing
    return affine


@pytest.mark.parametrize("quarter", [0.25, 0.75, 1.25, 1.75])
@pytest.mark.parametrize("rounding", [-1e-7, 1e-7])
def test_a_label_map_at_45_degrees_that_differs_in_the_seventh_digit(tmp_path, quarter, rounding):
    data = np.arange(5 * 6 * 7).reshape(5, 6, 7).astype(np.float32)
    for name, angle in (("image", np.pi * quarter), ("labels", np.pi * quarter + rounding)):
        nifti.write(tmp_path / f"{name}.nii", data % 200, turned(angle))
    image, labels = nifti.read(tmp_path / "image.nii"), nifti.read_labels(tmp_path / "labels.nii")
    grids.check_same_grid(image, labels)
    np.testing.assert_array_equal(image.data, labels.data)


def test_the_order_is_nibabels_where_it_is_clear():
    draw = np.random.default_rng(0)
    for _ in range(200):
        order, signs = draw.permutation(3), draw.choice([-1.0, 1.0], 3)
        affine = turned(draw.uniform(-0.5, 0.5))
        affine[:3, :3] = affine[:3, order] * signs
        np.testing.assert_array_equal(grids.orientation(affine), nibabel.io_orientation(affine))


def test_the_kind_of_file_is_named():
    one, other = grids.Grid((5, 6, 7), np.eye(4), "a.nii"), grids.Grid((5, 6, 8), np.eye(4), "b.nii")
    with pytest.raises(UserError, match=r"b\.nii: mask of 5 x 6 x 8 voxels, but its image a\.nii"):
        grids.check_same_grid(one, other, "mask")
