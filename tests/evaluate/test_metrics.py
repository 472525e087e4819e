"""Metrics against hand-computed values, a naive loop, SimpleITK, surface-distance and the fields of `f3r_jax.ops`.

SimpleITK measures the same sets of voxels as we, so all agrees to rounding. DeepMind's surface-distance puts its
surface on the corners between voxels and weighs each by the area of its facets. Dice is the same. A corner of its
surface has a voxel of ours half a voxel's diagonal away, and the reverse, so the greatest distances differ by one
diagonal at most, for whatever masks. Percentiles and means have no such bound, and differ by less than a half and a
third of it on balls and organs (0.30 and 0.24 seen); equal they would be only by its own table of facets, which
`learn2reg` calls.
"""

import itertools
import math
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from f3r_jax.data import nifti, resample
from f3r_jax.evaluate import metrics
from f3r_jax.ops import fields

ISOTROPIC = (1.0, 1.0, 1.0)
ANISOTROPIC = (0.8, 1.5, 3.0)
MASKS = hnp.arrays(bool, st.tuples(*[st.integers(1, 5)] * 3))


def cube(shape, start, size):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))] = True
    return mask


def ball(shape, centre, radius_mm, spacing):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return np.linalg.norm((grid - centre) * np.array(spacing), axis=-1) <= radius_mm


def linear_field(matrix, shape):
    """The displacement of phi(p) = matrix p."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return (grid @ (np.asarray(matrix) - np.eye(3)).T).astype(np.float32)


def naive_surface(mask):
    found = []
    for voxel in itertools.product(*map(range, mask.shape)):
        if not mask[voxel]:
            continue
        for axis, step in itertools.product(range(3), (-1, 1)):
            neighbour = list(voxel)
            neighbour[axis] += step
            inside = 0 <= neighbour[axis] < mask.shape[axis]
            if not inside or not mask[tuple(neighbour)]:
                found.append(voxel)
                break
    return found


def naive_directed(points, others, spacing):
    def distance(p, q):
        return math.sqrt(sum(((i - j) * s) ** 2 for i, j, s in zip(p, q, spacing, strict=True)))

    return [min((distance(p, q) for q in others), default=math.inf) for p in points]


def test_dice_of_a_shifted_cube():
    a, b = cube((10, 10, 10), (2, 2, 2), (4, 4, 4)), cube((10, 10, 10), (3, 2, 2), (4, 4, 4))
    assert metrics.dice(a, b) == 75.0
    assert metrics.dice(a, a) == 100.0
    assert metrics.dice(a, ~a) == 0.0


@pytest.mark.parametrize(("axis", "expected"), [(0, 1.6), (1, 3.0), (2, 6.0)])
def test_plates_two_voxels_apart_along_each_axis(axis, expected):
    """Two parallel one-voxel plates, two voxels apart: every distance is twice the spacing of that axis."""
    size = [6, 6, 6]
    size[axis] = 1
    start = [2, 2, 2]
    a = cube((12, 12, 12), start, size)
    start[axis] += 2
    b = cube((12, 12, 12), start, size)
    forward, backward = metrics.surface_distances(a, b, ANISOTROPIC)
    np.testing.assert_allclose(forward, expected)
    np.testing.assert_allclose(backward, expected)
    assert metrics.average_surface_distance(a, b, ANISOTROPIC) == pytest.approx(expected)
    assert metrics.hd95(a, b, ANISOTROPIC) == pytest.approx(expected)


def test_concentric_balls_differ_by_their_radii():
    """Away from the grid's coarseness the surfaces of two concentric balls are the difference of radii apart."""
    spacing, centre, shape = (1.0, 1.0, 2.0), (31.5, 31.5, 15.5), (64, 64, 32)
    a, b = ball(shape, centre, 18.0, spacing), ball(shape, centre, 26.0, spacing)
    assert metrics.average_surface_distance(a, b, spacing) == pytest.approx(8.0, abs=0.5)
    assert metrics.hd95(a, b, spacing) == pytest.approx(8.0, abs=1.0)


def test_average_pools_both_surfaces():
    """One voxel against a row of four: directed sets 0 and 0 1 2 3, so a pooled mean of 6 / 5 and not (0 + 1.5) / 2."""
    a, b = cube((1, 1, 4), (0, 0, 0), (1, 1, 1)), cube((1, 1, 4), (0, 0, 0), (1, 1, 4))
    assert metrics.average_surface_distance(a, b, ISOTROPIC) == pytest.approx(1.2)
    assert metrics.hd95(a, b, ISOTROPIC) == pytest.approx(2.85)  # 95 % between the third and the fourth of 0 1 2 3


def test_surface_runs_along_the_border_of_the_volume():
    """A mask that fills the volume has the 26 outer voxels of 3 x 3 x 3 as surface."""
    full, centre = np.ones((3, 3, 3), bool), cube((3, 3, 3), (1, 1, 1), (1, 1, 1))
    from_full, from_centre = metrics.surface_distances(full, centre, ISOTROPIC)
    assert len(from_full) == 26
    np.testing.assert_array_equal(from_centre, [1.0])


@settings(deadline=None, max_examples=150)
@given(st.data(), MASKS, st.sampled_from([ISOTROPIC, ANISOTROPIC, (3, 1, 2)]))
def test_surface_distances_agree_with_a_naive_loop(data, a, spacing):
    b = data.draw(hnp.arrays(bool, a.shape))
    forward, backward = metrics.surface_distances(a, b, spacing)
    surface_a, surface_b = naive_surface(a), naive_surface(b)
    np.testing.assert_allclose(forward, naive_directed(surface_a, surface_b, spacing), rtol=1e-12)
    np.testing.assert_allclose(backward, naive_directed(surface_b, surface_a, spacing), rtol=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.data(), MASKS)
def test_scores_are_symmetric(data, a):
    b = data.draw(hnp.arrays(bool, a.shape))
    for score in (
        metrics.dice,
        lambda p, q: metrics.average_surface_distance(p, q, ANISOTROPIC),
        lambda p, q: metrics.hd95(p, q, ANISOTROPIC),
    ):
        np.testing.assert_allclose(score(a, b), score(b, a), rtol=1e-12)


def test_agreement_with_simpleitk(sitk):
    spacing, shape = (1.2, 0.9, 2.5), (40, 36, 20)
    a, b = ball(shape, (18, 17, 9), 13.0, spacing), ball(shape, (21, 15, 11), 11.5, spacing)

    def image(mask):
        out = sitk.GetImageFromArray(mask.astype(np.uint8).transpose())
        out.SetSpacing(spacing)
        return out

    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(image(a), image(b))
    assert metrics.dice(a, b) == pytest.approx(100 * overlap.GetDiceCoefficient())

    def directed(mask, other):
        contour, target = (sitk.LabelContour(image(m), fullyConnected=False) for m in (mask, other))
        distance = sitk.SignedMaurerDistanceMap(target, squaredDistance=False, useImageSpacing=True)
        return np.abs(sitk.GetArrayFromImage(distance)[sitk.GetArrayFromImage(contour) > 0])

    forward, backward = directed(a, b), directed(b, a)
    pooled = np.concatenate([forward, backward])
    assert metrics.average_surface_distance(a, b, spacing) == pytest.approx(pooled.mean(), rel=1e-5)
    expected = max(np.percentile(forward, 95), np.percentile(backward, 95))
    assert metrics.hd95(a, b, spacing) == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def deepmind(surface_distance):
    return surface_distance


@pytest.fixture(scope="module")
def real_labels():
    """The organs of the real MR, and those of the real CT moved so that their centres meet: two maps on one grid."""
    if "F3R_REAL_PAIR" not in os.environ:
        pytest.skip("F3R_REAL_PAIR names no folder with a real pair")
    mr, ct = (nifti.read_labels(Path(os.environ["F3R_REAL_PAIR"]) / f"{name}_label.nii.gz") for name in ("mr", "ct"))

    def centre(labels):
        return labels.affine[:3, :3] @ np.argwhere(labels.data).mean(axis=0) + labels.affine[:3, 3]

    affine = mr.affine.copy()
    affine[:3, 3] += centre(ct) - centre(mr)
    return mr.data, resample.resample_labels(ct, nifti.Grid(mr.shape, affine)), mr.spacing


def random_labels(seed, shape=(9, 8, 7)):
    return np.random.default_rng(seed).choice(5, size=shape, p=[0.6, 0.1, 0.1, 0.1, 0.1]).astype(np.uint8)


def sitk_image(sitk, array, spacing):
    image = sitk.GetImageFromArray(array.astype(np.uint8).transpose())
    image.SetSpacing([float(length) for length in spacing])
    return sitk.ConstantPad(image, [1] * 3, [1] * 3, 0)  # LabelContour sees no surface at the edge of an image


def check_against_sitk(sitk, first, second, spacing):
    """Dice of the values 1 to 4 of two label maps, and Hausdorff distances between the surfaces of each."""
    images = [sitk_image(sitk, labels, spacing) for labels in (first, second)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    for value in (1, 2, 3, 4):
        a, b = first == value, second == value
        assert metrics.dice(a, b) == pytest.approx(100 * overlap.GetDiceCoefficient(value), rel=1e-12)
        forward, backward = metrics.surface_distances(a, b, spacing)
        hausdorff = sitk.HausdorffDistanceImageFilter()
        hausdorff.Execute(*(sitk.LabelContour(image == value, fullyConnected=False) for image in images))
        assert max(forward.max(), backward.max()) == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-5)
        mean = (forward.mean() + backward.mean()) / 2
        assert mean == pytest.approx(hausdorff.GetAverageHausdorffDistance(), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spacing", [ISOTROPIC, ANISOTROPIC])
def test_random_label_maps_agree_with_simpleitk(sitk, seed, spacing):
    check_against_sitk(sitk, random_labels(2 * seed), random_labels(2 * seed + 1), spacing)


@pytest.mark.parametrize("step", [1, 2], ids=["isotropic", "anisotropic"])
def test_real_label_maps_agree_with_simpleitk(sitk, real_labels, step):
    mr, ct, spacing = real_labels
    check_against_sitk(sitk, mr[..., ::step], ct[..., ::step], spacing * (1, 1, step))


def check_against_deepmind(deepmind, a, b, spacing, *, organs):
    """Dice and the greatest distance, for any masks; for organs the 95th percentile and the mean by area as well."""
    diagonal = np.linalg.norm(spacing)
    assert metrics.dice(a, b) == pytest.approx(100 * deepmind.compute_dice_coefficient(a, b), rel=1e-14)
    theirs = deepmind.compute_surface_distances(a, b, spacing)
    distances = [theirs["distances_gt_to_pred"], theirs["distances_pred_to_gt"]]
    ours = metrics.surface_distances(a, b, spacing)
    for mine, other in zip(ours, distances, strict=True):
        assert abs(mine.max() - other.max()) <= diagonal * (1 + 1e-12)
    if organs:
        hd95 = deepmind.compute_robust_hausdorff(theirs, 95.0)
        assert metrics.hd95(a, b, spacing) == pytest.approx(hd95, abs=diagonal / 2)
        weights = np.concatenate([theirs["surfel_areas_gt"], theirs["surfel_areas_pred"]])
        mean = np.average(np.concatenate(distances), weights=weights)
        assert metrics.average_surface_distance(a, b, spacing) == pytest.approx(mean, abs=diagonal / 3)


# surface-distance 0.1 calls SciPy by names that will go in SciPy 2.
quietly = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")


@quietly
@pytest.mark.parametrize("spacing", [ISOTROPIC, ANISOTROPIC, (3.0, 1.0, 2.0)])
def test_random_masks_agree_with_deepmind(deepmind, spacing):
    for seed in range(10):
        density = (0.03, 0.2, 0.6)[seed % 3]
        a, b = np.random.default_rng(seed).random((2, 7, 6, 8)) < density
        check_against_deepmind(deepmind, a, b, spacing, organs=False)


@quietly
@pytest.mark.parametrize("spacing", [ISOTROPIC, ANISOTROPIC])
@pytest.mark.parametrize("shift", [(2, -1, 1), (-3, 2, 2), (0, 0, 1)])
def test_balls_agree_with_deepmind(deepmind, spacing, shift):
    shape, centre = (40, 36, 20), np.array([20, 18, 10])
    a, b = ball(shape, centre, 12.0, spacing), ball(shape, centre + shift, 10.5, spacing)
    check_against_deepmind(deepmind, a, b, spacing, organs=True)


@quietly
@pytest.mark.parametrize("step", [1, 2], ids=["isotropic", "anisotropic"])
def test_real_organs_agree_with_deepmind(deepmind, real_labels, step):
    mr, ct, spacing = real_labels
    for value in (1, 2, 3, 4):
        a, b = mr[..., ::step] == value, ct[..., ::step] == value
        check_against_deepmind(deepmind, a, b, spacing * (1, 1, step), organs=True)


def test_identical_masks_have_no_distance():
    mask = ball((20, 20, 20), (9, 9, 9), 6.0, ISOTROPIC)
    assert metrics.average_surface_distance(mask, mask, ISOTROPIC) == 0.0
    assert metrics.hd95(mask, mask, ISOTROPIC) == 0.0


def test_an_organ_in_neither_map_is_no_observation_and_one_in_a_single_map_is_lost():
    empty, mask = np.zeros((6, 6, 6), bool), cube((6, 6, 6), (1, 1, 1), (3, 3, 3))
    assert math.isnan(metrics.dice(empty, empty))
    assert math.isnan(metrics.average_surface_distance(empty, empty, ISOTROPIC))
    assert math.isnan(metrics.hd95(empty, empty, ISOTROPIC))
    for a, b in ((empty, mask), (mask, empty)):
        assert metrics.dice(a, b) == 0.0
        assert metrics.average_surface_distance(a, b, ISOTROPIC) == math.inf
        assert metrics.hd95(a, b, ISOTROPIC) == math.inf


def test_organ_scores_join_the_values_of_an_organ():
    fixed, warped = np.zeros((12, 12, 12), np.uint8), np.zeros((12, 12, 12), np.uint8)
    fixed[2:4, 2:6, 2:6], fixed[4:6, 2:6, 2:6], fixed[8, 8, 8] = 3, 4, 1
    warped[2:6, 2:6, 3:7] = 3
    scores = metrics.organ_scores(
        fixed, warped, organs={"kidneys": (3, 4), "liver": (1,), "spleen": (2,)}, spacing=ANISOTROPIC
    )
    kidneys, shifted = np.isin(fixed, (3, 4)), warped == 3
    assert scores["kidneys"] == {
        "dice": 75.0,
        "asd_mm": metrics.average_surface_distance(kidneys, shifted, ANISOTROPIC),
        "hd95_mm": metrics.hd95(kidneys, shifted, ANISOTROPIC),
    }
    assert scores["liver"] == {"dice": 0.0, "asd_mm": math.inf, "hd95_mm": math.inf}
    assert all(math.isnan(value) for value in scores["spleen"].values())


def test_a_field_of_zeros_keeps_volume():
    zero = np.zeros((4, 5, 6, 3), np.float32)
    np.testing.assert_array_equal(metrics.jacobian_determinant(zero), np.ones((4, 5, 6)))
    assert metrics.folding_percent(zero) == 0.0
    assert metrics.sd_log_jacobian(zero) == 0.0


@pytest.mark.parametrize(
    ("matrix", "determinant"),
    [
        (np.diag([1.5, 0.5, 2.0]), 1.5),
        ([[1.0, 0.3, 0.0], [0.0, 1.0, -0.2], [0.4, 0.0, 1.0]], 1.0 - 0.024),
        ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], -1.0),
    ],
)
def test_an_affine_field_has_the_determinant_of_its_matrix(matrix, determinant):
    field = linear_field(matrix, (5, 6, 7))
    np.testing.assert_allclose(metrics.jacobian_determinant(field), determinant, atol=1e-5)
    assert metrics.folding_percent(field) == (100.0 if determinant <= 0 else 0.0)


def test_folding_counts_voxels_and_the_log_is_clipped_there():
    """phi = x, y, z but the plane x = 2 comes to 0: central differences 1, 0, 1, 2, 1 along x."""
    field = np.zeros((5, 4, 4, 3), np.float32)
    field[2, ..., 0] = -2.0
    determinants = [1.0, 0.0, 1.0, 2.0, 1.0]
    np.testing.assert_allclose(metrics.jacobian_determinant(field)[:, 1, 2], determinants)
    assert metrics.folding_percent(field) == pytest.approx(20.0)
    assert metrics.sd_log_jacobian(field) == pytest.approx(np.std(np.log([1.0, 1e-9, 1.0, 2.0, 1.0])))


def test_determinant_agrees_with_the_jax_one():
    field = np.random.default_rng(0).normal(size=(7, 6, 5, 3)).astype(np.float32)
    batch = jnp.asarray(field[None])
    np.testing.assert_allclose(metrics.jacobian_determinant(field), fields.jacobian_determinant(batch)[0], atol=1e-4)
    assert metrics.folding_percent(field) == pytest.approx(float(fields.folding_percent(batch)[0]))


def test_end_point_error_is_in_mm():
    truth = np.zeros((3, 3, 3, 3), np.float32)
    field = truth.copy()
    field[0] = (3.0, 0.0, 2.0)
    assert metrics.end_point_error_mm(field, truth, (1.0, 9.0, 2.0)) == pytest.approx(5.0 / 3)
    assert metrics.end_point_error_mm(field, truth, (1.0, 9.0, 2.0), cube((3, 3, 3), (0, 0, 0), (1, 2, 3))) == 5.0
    assert math.isnan(metrics.end_point_error_mm(field, truth, ISOTROPIC, np.zeros((3, 3, 3), bool)))


def test_target_registration_error_follows_a_field_that_is_linear():
    """For phi(p) = M p in voxels, interpolation is exact, and the error is that of the world-frame map A M A^-1."""
    rng = np.random.default_rng(1)
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] @ np.diag([1.5, 2.0, 3.0])
    affine[:3, 3] = (-80.0, 15.0, 40.0)
    matrix = np.eye(3) + 0.1 * rng.normal(size=(3, 3))
    voxels = rng.uniform(0, 8, size=(20, 3))
    fixed = voxels @ affine[:3, :3].T + affine[:3, 3]
    mapped = voxels @ matrix.T @ affine[:3, :3].T + affine[:3, 3]
    field = linear_field(matrix, (9, 9, 9))
    offset = np.array([3.0, 0.0, 4.0])
    errors = metrics.target_registration_error(fixed, mapped + offset, field, affine=affine)
    np.testing.assert_allclose(errors, 5.0, atol=1e-4)


def test_summary_of_cases():
    nan, inf = math.nan, math.inf
    found = metrics.summarise([1.0, 3.0, nan])
    assert (found.mean, found.std, found.count) == (2.0, pytest.approx(math.sqrt(2)), 2)
    assert metrics.summarise([4.0]) == metrics.Statistics(4.0, 0.0, 1)
    lost = metrics.summarise([1.0, inf])
    assert (lost.mean, lost.count) == (inf, 2)
    assert math.isnan(lost.std)
    for nothing in ([], [nan]):
        summary = metrics.summarise(nothing)
        assert summary.count == 0
        assert math.isnan(summary.mean)
        assert math.isnan(summary.std)


def test_scores_do_not_depend_on_empty_space_around_the_organs():
    rng = np.random.default_rng(0)
    fixed, warped = (ndimage.gaussian_filter(rng.normal(size=(16, 14, 12)), 2) > 0.05 for _ in range(2))
    assert fixed[0].any() and fixed[-1].any()  # it touches the border
    organs, spacing = {"one": (1,), "missing": (5,)}, (1.0, 1.5, 2.0)
    tight = metrics.organ_scores(fixed.astype(np.uint8), warped.astype(np.uint8), organs=organs, spacing=spacing)
    expected = metrics.surface_distances(fixed, warped, spacing)
    assert tight["one"]["asd_mm"] == pytest.approx(np.concatenate(expected).mean())
    inner = np.zeros((2, 16, 14, 12), bool)
    inner[:, 3:-3, 3:-3, 3:-3] = np.stack([fixed, warped])[:, 3:-3, 3:-3, 3:-3]
    whole, wide = (
        metrics.organ_scores(*np.pad(inner, ((0, 0), *((n, n),) * 3)).astype(np.uint8), organs=organs, spacing=spacing)
        for n in (0, 9)
    )
    assert whole["one"] == pytest.approx(wide["one"])
    assert np.isnan(wide["missing"]["dice"])
