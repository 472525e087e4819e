"""The phantom: the same from the same seed, its truth exact, its contrast hard, its anatomy where it belongs."""

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.stats import spearmanr

from f3r_jax.data.phantom import TISSUES, PhantomCase, make_case

SHAPE, SPACING = (64, 64, 48), (4.8, 4.8, 4.8)
ORGANS = {"liver": 1, "spleen": 2, "right kidney": 3, "left kidney": 4}


@cache
def case(index: int) -> PhantomCase:
    return make_case(0, index, shape=SHAPE, spacing=SPACING)


def dice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([200 * np.sum((a == k) & (b == k)) / np.sum((a == k) * 1 + (b == k)) for k in ORGANS.values()])


def grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)


def pull(volume: np.ndarray, displacement: np.ndarray, order: int) -> np.ndarray:
    points = np.moveaxis(grid(volume.shape) + displacement, -1, 0)
    return map_coordinates(volume, points, order=order, mode="nearest")


def test_same_seed_and_index_give_the_same_bits():
    again = make_case(0, 1, shape=SHAPE, spacing=SPACING)
    for name, value in vars(case(1)).items():
        np.testing.assert_array_equal(value, getattr(again, name), err_msg=name)


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (1, 1)])
def test_another_seed_or_index_is_another_patient(seed: int, index: int):
    other = make_case(seed, index, shape=SHAPE, spacing=SPACING)
    assert dice(case(1).ct_labels, other.ct_labels).mean() < 95
    assert np.abs(case(1).ct_to_mr - other.ct_to_mr).max() > 0.5
    assert np.corrcoef(case(1).mr.ravel(), other.mr.ravel())[0, 1] < 0.98


def test_types_and_shapes():
    for name, value in vars(case(0)).items():
        assert value.shape == (*SHAPE, 3) if "_to_" in name else value.shape == SHAPE, name
        assert value.dtype == (np.uint8 if "labels" in name else np.float32), name
        assert np.isfinite(value).all(), name
    assert case(0).ct.min() >= -1024
    assert case(0).mr.min() >= 0


@pytest.mark.parametrize("index", range(3))
def test_organs_have_the_volumes_of_organs(index: int):
    millilitres = np.bincount(case(index).ct_labels.ravel(), minlength=5)[1:] * np.prod(SPACING) / 1000
    assert len(np.unique(case(index).ct_labels)) == len(np.unique(case(index).mr_labels)) == 5
    for volume, (low, high) in zip(millilitres, [(800, 2200), (40, 350), (70, 230), (70, 230)], strict=True):
        assert low < volume < high


def test_organs_lie_where_they_belong_in_ras():
    liver, spleen, right, left = (np.argwhere(case(0).ct_labels == k).mean(axis=0) for k in ORGANS.values())
    spine = np.argwhere(case(0).ct > 250).mean(axis=0)
    assert liver[0] > SHAPE[0] / 2 > spleen[0]
    assert right[0] > SHAPE[0] / 2 > left[0]
    assert spine[1] < liver[1]
    assert right[2] < liver[2]


def test_dice_before_registration_is_near_the_papers():
    before = np.array([dice(case(i).ct_labels, case(i).mr_labels) for i in range(5)])
    assert 70 < before.mean() < 80
    assert 74 < before[:, 0].mean() < 87
    assert 1 < before.mean(axis=1).std() < 10


@pytest.mark.parametrize("index", range(3))
def test_truth_carries_the_labels_over_both_ways(index: int):
    c = case(index)
    assert dice(pull(c.ct_labels, c.ct_to_mr, 0), c.mr_labels).min() > 88
    assert dice(pull(c.ct_labels, c.ct_to_mr, 0), c.mr_labels).mean() > 90
    assert dice(pull(c.mr_labels, c.mr_to_ct, 0), c.ct_labels).mean() > 90


def inverse_error(c: PhantomCase) -> float:
    """Largest component of u(p) + v(p + u(p)) in voxels, where p + u(p) lies on the grid."""
    mapped = grid(c.ct.shape) + c.ct_to_mr
    there = np.stack([pull(c.mr_to_ct[..., i], c.ct_to_mr, 3) for i in range(3)], axis=-1)
    inside = ((mapped >= 0) & (mapped <= np.array(c.ct.shape) - 1)).all(axis=-1)
    return np.abs(c.ct_to_mr + there)[inside].max()


@pytest.mark.parametrize("index", range(3))
def test_fields_are_inverse_and_do_not_fold(index: int):
    assert inverse_error(case(index)) < 0.1
    for field in (case(index).ct_to_mr, case(index).mr_to_ct):
        gradient = np.stack(np.gradient(grid(SHAPE) + field, axis=(0, 1, 2)), axis=-1)
        assert np.linalg.det(gradient).min() > 0.1


def test_inverse_is_as_good_at_one_millimetre():
    assert inverse_error(make_case(0, 2, shape=(56, 48, 64), spacing=(1.0, 1.0, 1.0))) < 0.05


def test_breathing_moves_the_liver_most_and_the_spine_little():
    lengths = [np.linalg.norm(case(i).ct_to_mr * SPACING, axis=-1) for i in range(5)]
    liver = np.mean([length[case(i).mr_labels == 1].mean() for i, length in enumerate(lengths)])
    spine = np.mean([length[29:35, 12:20].mean() for length in lengths])
    assert 8 < liver < 25
    assert spine < 0.5 * liver


@pytest.mark.parametrize("index", range(3))
def test_organs_stand_out_in_both_images(index: int):
    c = case(index)
    fat = (c.ct > -130) & (c.ct < -70)
    fat_signal = np.median(c.mr[pull(fat.astype(np.uint8), c.ct_to_mr, 0) > 0])
    for name, k in ORGANS.items():
        assert np.median(c.ct[c.ct_labels == k]) > 80, name
        assert abs(np.log(np.median(c.mr[c.mr_labels == k]) / fat_signal)) > 0.15, name
    ct_liver, ct_kidney = (np.median(c.ct[c.ct_labels == k]) for k in (1, 3))
    mr_liver, mr_spleen = (np.median(c.mr[c.mr_labels == k]) for k in (1, 2))
    assert ct_kidney > ct_liver + 20
    assert abs(np.log(mr_liver / mr_spleen)) > 0.2


def test_mr_is_no_monotone_function_of_ct():
    hu, signal = np.array(list(TISSUES.values())).T
    assert abs(spearmanr(hu, signal).statistic) < 0.6
    c = case(0)
    aligned = pull(c.ct, c.ct_to_mr, 1)
    means = [c.mr[(aligned > lo) & (aligned < hi)].mean() for lo, hi in [(-1024, -900), (-120, -80), (90, 130)]]
    assert means[0] < means[2] < means[1]


def test_a_finer_grid_shows_the_same_patient():
    coarse = make_case(0, 0, shape=(22, 18, 18), spacing=(9.6, 9.6, 9.6))
    fine = make_case(0, 0, shape=(66, 54, 54), spacing=(3.2, 3.2, 3.2))
    volumes = [np.bincount(c.ct_labels.ravel())[1:] * s**3 for c, s in ((coarse, 9.6), (fine, 3.2))]
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.1)
    np.testing.assert_allclose(fine.ct_to_mr[1::3, 1::3, 1::3] * 3.2, coarse.ct_to_mr * 9.6, atol=0.05)


def test_anisotropic_and_cropped_grids():
    c = make_case(3, 5, shape=(40, 36, 25), spacing=(3.0, 4.0, 6.0))
    assert c.mr.shape == (40, 36, 25)
    assert len(np.unique(c.ct_labels)) >= 3
