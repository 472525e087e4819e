"""The phantom: the same from the same seed, its ground truth exact, its contrast hard, its anatomy where it belongs.

No motion is the average of all: what a registration gains, it gains by looking at the pair.
"""

from functools import cache

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.stats import spearmanr

from f3r_jax.data.phantom import held_out
from f3r_jax.data.phantom.anatomy import draw_frame
from f3r_jax.data.phantom.appearance import CT_PHASES, MR_SEQUENCES, TISSUES, acquire_mr, draw_ct_values, draw_mr_values
from f3r_jax.data.phantom.generate import PhantomCase, make_case
from f3r_jax.data.phantom.motion import displacement_mm, draw_motion

SHAPE, SPACING = (64, 64, 48), (4.8, 4.8, 4.8)
ORGANS = {"liver": 1, "spleen": 2, "right kidney": 3, "left kidney": 4}


@cache
def case(index: int) -> PhantomCase:
    """Of one protocol, so that what is known of its contrast holds."""
    return make_case(0, index, shape=SHAPE, spacing=SPACING, ct_phases=("venous",), mr_sequences=("t2",))


def dice(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([200 * np.sum((a == k) & (b == k)) / np.sum((a == k) * 1 + (b == k)) for k in ORGANS.values()])


def grid(shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(float)


def pull(volume: np.ndarray, displacement: np.ndarray, order: int) -> np.ndarray:
    points = np.moveaxis(grid(volume.shape) + displacement, -1, 0)
    return map_coordinates(volume, points, order=order, mode="nearest")


def test_same_seed_and_index_give_the_same_bits():
    again = make_case(0, 1, shape=SHAPE, spacing=SPACING, ct_phases=("venous",), mr_sequences=("t2",))
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
    for volume, (low, high) in zip(millilitres, [(700, 2600), (40, 350), (60, 260), (60, 260)], strict=True):
        assert low < volume < high


def test_organs_lie_where_they_belong_in_ras():
    liver, spleen, right, left = (np.argwhere(case(0).ct_labels == k).mean(axis=0) for k in ORGANS.values())
    spine = np.argwhere(case(0).ct > 250).mean(axis=0)
    assert liver[0] > SHAPE[0] / 2 > spleen[0]
    assert right[0] > SHAPE[0] / 2 > left[0]
    assert spine[1] < liver[1]
    assert right[2] < liver[2]


def test_dice_before_registration_is_near_the_papers():
    cases = [make_case(0, i, shape=(48, 36, 36), spacing=(6.4, 6.4, 6.4)) for i in range(24)]
    before = np.array([dice(c.ct_labels, c.mr_labels) for c in cases])
    assert 72 < before.mean() < 82
    assert 72 < before[:, 0].mean() < 87
    assert 1 < before.mean(axis=1).std() < 10


@cache
def motions(count: int, backward: bool) -> np.ndarray:
    """Displacements in mm of many patients, (cases x y z 3), on a coarse grid."""
    axes = [np.linspace(-150, 150, 7), np.linspace(-110, 110, 5), np.linspace(-110, 110, 5)]
    drawn = []
    for index in range(count):
        frame = draw_frame(np.random.default_rng([0, index]))
        motion = draw_motion(np.random.default_rng([1, index]), frame)
        drawn.append(displacement_mm(motion, axes, backward=backward))
    return np.array(drawn)


@pytest.mark.parametrize("backward", [False, True])
def test_the_mean_displacement_is_zero_within_its_standard_error(backward: bool):
    fields = motions(500, backward)
    mean, error = fields.mean(axis=0), fields.std(axis=0) / np.sqrt(len(fields))
    ratio = np.abs(mean) / error
    assert np.mean(ratio > 2) < 0.12  # 5 % by chance; voxels close to each other move alike
    assert ratio.max() < 4.5
    length = np.linalg.norm(fields, axis=-1).mean(axis=0)
    assert length.max() > 12
    assert (np.linalg.norm(mean, axis=-1) < 0.25 * length).all()


def test_subtracting_the_mean_displacement_explains_nothing():
    fields = motions(500, False)
    others = (fields.sum(axis=0) - fields) / (len(fields) - 1)
    assert np.mean((fields - others) ** 2) > 0.99 * np.mean(fields**2)


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
    cases = [make_case(0, i, shape=(48, 36, 36), spacing=(6.4, 6.4, 6.4)) for i in range(12)]
    lengths = [np.linalg.norm(c.ct_to_mr * 6.4, axis=-1) for c in cases]
    liver = np.mean([length[c.mr_labels == 1].mean() for c, length in zip(cases, lengths, strict=True)])
    spine = np.mean([length[22:26, 9:15].mean() for length in lengths])
    assert 8 < liver < 25
    assert spine < 0.6 * liver


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
    hu, _, signal, _, _ = np.array(list(TISSUES.values())).T
    assert abs(spearmanr(hu, signal).statistic) < 0.6
    c = case(0)
    aligned = pull(c.ct, c.ct_to_mr, 1)
    means = [c.mr[(aligned > lo) & (aligned < hi)].mean() for lo, hi in [(-1024, -900), (-120, -80), (90, 130)]]
    assert means[0] < means[2] < means[1]


def test_a_finer_grid_shows_the_same_patient():
    coarse = make_case(0, 0, shape=(22, 18, 18), spacing=(9.6, 9.6, 9.6))
    fine = make_case(0, 0, shape=(66, 54, 54), spacing=(3.2, 3.2, 3.2))
    volumes = [np.bincount(c.ct_labels.ravel())[1:] * s**3 for c, s in ((coarse, 9.6), (fine, 3.2))]
    np.testing.assert_allclose(volumes[0], volumes[1], rtol=0.12)
    np.testing.assert_allclose(fine.ct_to_mr[1::3, 1::3, 1::3] * 3.2, coarse.ct_to_mr * 9.6, atol=0.05)


def test_anisotropic_and_cropped_grids():
    c = make_case(3, 5, shape=(40, 36, 25), spacing=(3.0, 4.0, 6.0))
    assert c.mr.shape == (40, 36, 25)
    assert len(np.unique(c.ct_labels)) >= 3


def test_another_protocol_is_the_same_patient_in_the_same_motion():
    shape, spacing = (32, 24, 24), (9.6, 9.6, 9.6)
    cases = [make_case(0, 0, shape=shape, spacing=spacing, mr_sequences=(name,)) for name in MR_SEQUENCES]
    for one in cases[1:]:
        np.testing.assert_array_equal(one.mr_labels, cases[0].mr_labels)
        np.testing.assert_array_equal(one.ct_to_mr, cases[0].ct_to_mr)
        assert np.corrcoef(one.mr.ravel(), cases[0].mr.ravel())[0, 1] < 0.97


@pytest.mark.parametrize(
    ("sequence", "brighter", "darker"),
    [
        ("t2", "fluid", "muscle"),
        ("t2", "spleen", "liver"),
        ("t2_fat_suppressed", "liver", "fat"),
        ("t1_fat_suppressed", "liver", "fat"),
        ("in_phase", "fat", "liver"),
        ("in_phase", "liver", "spleen"),
        ("out_of_phase", "liver", "fluid"),
    ],
)
def test_sequences_show_tissues_as_they_should(sequence: str, brighter: str, darker: str):
    for seed in range(5):
        values = draw_mr_values(np.random.default_rng(seed), (sequence,))
        assert values[brighter] > 1.1 * values[darker]


def test_in_opposed_phase_the_edge_of_fat_is_black():
    values = draw_mr_values(np.random.default_rng(0), ("out_of_phase",))
    assert values["fat"] < 0 < values["muscle"]
    image = np.full((8, 8, 8), values["fat"], np.float32)
    image[4:] = values["muscle"]
    image[3] = 0.6 * values["muscle"] + 0.4 * values["fat"]  # partial volume, about half of the signal each
    axes = [np.arange(8) * 5.0] * 3
    seen = acquire_mr(np.random.default_rng(0), np.random.default_rng(0), image, axes)
    middle = seen[:, :, 3:5].mean(axis=(1, 2))
    assert middle[3] < 0.5 * min(middle[1], middle[6])


def test_without_contrast_agent_vessels_and_organs_are_alike():
    plain, venous = (draw_ct_values(np.random.default_rng(0), (phase,)) for phase in ("plain", "venous"))
    assert abs(plain["vein"] - plain["liver"]) < 40 < venous["vein"] - venous["liver"]
    assert plain["air"] == venous["air"] == -1000


def test_every_protocol_occurs():
    signals = {name: draw_mr_values(np.random.default_rng(0), (name,)) for name in MR_SEQUENCES}
    assert len({round(values["fat"] / values["liver"], 1) for values in signals.values()}) == len(MR_SEQUENCES)
    seen = [draw_ct_values(np.random.default_rng(seed), tuple(CT_PHASES))["vein"] > 100 for seed in range(20)]
    assert 0 < sum(seen) < 20


def test_held_out_protocols_must_be_asked_for():
    protocols = {*held_out.PHASES, *held_out.SEQUENCES}
    assert not protocols & {*CT_PHASES, *MR_SEQUENCES}
    assert all(set(values) == set(TISSUES) for values in held_out.INTENSITIES.values())
    (phase,) = held_out.PHASES
    arterial = draw_ct_values(np.random.default_rng(0), (phase,))
    assert arterial["artery"] > 250 > 150 > arterial["vein"] and arterial["air"] == -1000
    ratios = {}
    for name in (*MR_SEQUENCES, *held_out.SEQUENCES):
        values = draw_mr_values(np.random.default_rng(0), (name,))
        ratios[name] = values["liver"] / values["spleen"]
    # No other sequence has a liver this much brighter or darker than the spleen.
    others = [ratios[name] for name in MR_SEQUENCES]
    assert ratios["hepatobiliary"] > 1.3 * max(others) and ratios["diffusion"] < 0.7 * min(others)


def test_some_stacks_end_within_the_grid():
    cases = [make_case(0, i, shape=(16, 12, 30), spacing=(20.0, 20.0, 8.0)) for i in range(12)]
    empty = [int(np.sum(c.mr.max(axis=(0, 1)) == 0)) for c in cases]
    assert 1 <= sum(n > 0 for n in empty) <= 9
    assert max(empty) <= 7
