import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from ml_collections import ConfigDict
from scipy.ndimage import gaussian_filter

from f3r_jax.data.phantom.appearance import TISSUES
from f3r_jax.data.synthesis import acquisition, contrasts, pairs
from f3r_jax.data.synthesis.deformations import draw_motion
from f3r_jax.data.synthesis.labels import shape_map, tissue_map
from f3r_jax.data.synthesis.pairs import make_pairs
from f3r_jax.data.synthesis.settings import Settings, of_config
from f3r_jax.ops.fields import compose, jacobian_determinant
from f3r_jax.ops.warp import warp

SHAPE, SPACING = (32, 24, 24), (7.2, 7.2, 7.2)
ANATOMIES = Settings(
    spacing=SPACING, amplitude=1.3, start_amplitude=0.4, shift=1.0, breathing=2.0, shapes=0.0, crop=0.5
)
SHAPES = dataclasses.replace(ANATOMIES, shapes=1.0, start_amplitude=0.0)
NAMES = list(TISSUES)


@pytest.fixture(scope="module")
def labels():
    return jnp.stack([jnp.asarray(tissue_map(3, index, shape=SHAPE, spacing=SPACING)) for index in range(2)])


def interior(volume, width=4):
    return np.asarray(volume)[(slice(None), *[slice(width, -width)] * 3)]


def mean_square(difference):
    return float(np.mean(interior(difference) ** 2))


# Labels


def test_tissue_map_holds_indices_of_tissues():
    drawn = tissue_map(3, 0, shape=SHAPE, spacing=(9.6, 9.6, 9.6))
    assert drawn.dtype == np.uint8 and drawn.shape == SHAPE
    share = np.bincount(drawn.ravel(), minlength=len(TISSUES)) / drawn.size
    assert len(share) == len(TISSUES) and np.all(drawn[::31, ::23] == NAMES.index("air"))
    for name in ("air", "fat", "muscle", "liver", "spleen"):
        assert 0.004 < share[NAMES.index(name)] < 0.5, name


def test_tissue_map_is_the_same_patient_at_any_spacing():
    coarse = tissue_map(1, 2, shape=(15, 11, 11), spacing=(14.4, 14.4, 14.4))
    fine = tissue_map(1, 2, shape=(29, 21, 21), spacing=(7.2, 7.2, 7.2))
    assert np.mean(fine[::2, ::2, ::2] == coarse) > 0.999
    assert np.mean(tissue_map(1, 3, shape=(15, 11, 11), spacing=(14.4, 14.4, 14.4)) == coarse) < 0.9


def test_shape_map_holds_connected_regions_of_all_tissues():
    drawn = np.stack([shape_map(jax.random.key(n), shape=SHAPE, spacing=SPACING) for n in range(4)])
    assert drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == set(range(len(TISSUES)))
    assert np.mean(drawn[:, 1:] == drawn[:, :-1]) > 0.5  # of independent labels a 28th would be equal


# Motions


@pytest.fixture(scope="module")
def motions():
    """At the size that networks are trained at, with the default settings and all of their motions."""
    draw = partial(draw_motion, shape=(64, 48, 48), settings=Settings(), strength=1.0, breathes=True)
    return jax.tree.map(lambda a: a[:, 0], lax.map(draw, jax.random.split(jax.random.key(5), 12)))


def test_motion_does_not_fold(motions):
    for displacement in motions:
        assert np.mean(np.asarray(jacobian_determinant(displacement)) > 0) > 0.999
    size = np.linalg.norm(np.asarray(motions.between), axis=-1).mean()
    assert 1.5 < size < 6


def test_motion_between_takes_the_moving_images_points_to_the_fixed_ones(motions):
    """phi_moving o phi_between = phi_fixed, wherever it does not leave the volume."""
    found = interior(compose(motions.moving, motions.between), 10)
    error = np.linalg.norm(found - interior(motions.fixed, 10), axis=-1)
    assert error.mean() < 0.05 and np.quantile(error, 0.99) < 0.2


def test_mean_displacement_is_zero():
    draw = partial(draw_motion, shape=(20, 16, 16), settings=ANATOMIES, strength=1.0, breathes=True)
    count = 400
    u = np.asarray(lax.map(lambda key: draw(key).between[0], jax.random.split(jax.random.key(1), count)))
    error = np.abs(u.mean(0)) / (u.std(0) / np.sqrt(count))
    assert np.mean(error > 4) < 0.02 and np.abs(u.mean(0)).max() < 0.3 * u.std(0).max()


def test_breathing_moves_the_liver_along_z_and_nothing_where_there_is_no_abdomen():
    still = dataclasses.replace(ANATOMIES, amplitude=1e-6, start_amplitude=0.0, shift=0.0, rotation=0.0, scaling=0.0)
    draw = jax.jit(partial(draw_motion, jax.random.key(2), SHAPE, settings=still, strength=1.0))
    assert np.abs(draw(breathes=False).between).max() < 1e-4
    u = np.abs(draw(breathes=True).fixed[0])
    assert u[..., :2].max() < 1e-4 < 0.1 < u[..., 2].max()
    x, _, z = np.unravel_index(np.argmax(u[..., 2]), SHAPE)
    assert x > SHAPE[0] // 2 and z > SHAPE[2] // 2  # right and up, where the liver is


def test_affine_motion_is_a_rotation_and_scaling_about_the_centre():
    affine = Settings(spacing=(3.0, 6.0, 4.0), amplitude=1e-6, start_amplitude=0.0, shift=0.0, breathing=0.0)
    draw = jax.jit(partial(draw_motion, shape=SHAPE, settings=affine, strength=1.0, breathes=False))
    motion = draw(jax.random.key(3))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, affine.spacing, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    moved = points + np.asarray(motion.fixed).reshape(-1, 3) * affine.spacing
    fit, *_ = np.linalg.lstsq(points, moved, rcond=None)
    assert np.abs(points @ fit - moved).max() < 0.02  # mm
    turn = np.degrees(fit - fit.T) / 2
    assert 0.5 < np.abs(turn).max() < 4.2
    assert np.abs(np.log(np.diag(fit))).max() < 0.045


# Contrasts


@pytest.mark.parametrize("kind", [contrasts.CT, contrasts.MR, contrasts.ANY])
def test_contrast_is_in_range_and_air_is_air(kind):
    tables = np.stack([contrasts.contrast(jax.random.key(n), kind) for n in range(8)])
    assert tables.min() >= 0 and tables.max() <= 1
    assert np.all(tables[:, 0] == 0)
    assert tables.std(0)[NAMES.index("liver")] > 0.01


def test_kinds_look_like_their_modality():
    ct, mr, anything = (
        np.stack([contrasts.contrast(jax.random.key(n), kind) for n in range(40)])
        for kind in (contrasts.CT, contrasts.MR, contrasts.ANY)
    )
    fat, liver, bone, gas = (NAMES.index(name) for name in ("fat", "liver", "cortical", "gas"))
    assert np.all(ct[:, fat] < ct[:, liver]) and np.all(ct[:, bone] == 1) and np.all(ct[:, gas] == 0)
    assert 0.2 < np.mean(mr[:, fat] < mr[:, liver]) < 0.9  # with and without fat suppression
    assert np.all(mr[:, gas] < 0.1)
    assert anything[:, 1:].std() == pytest.approx(np.sqrt(1 / 12), abs=0.02)


def test_every_kind_is_drawn_as_often_as_asked():
    draw = partial(pairs._kinds, settings=Settings(ct=0.5, mr=0.2))
    drawn = np.ravel(jax.vmap(draw)(jax.random.uniform(jax.random.key(0), (500, 2))))
    assert np.bincount(drawn) / 1000 == pytest.approx([0.5, 0.2, 0.3], abs=0.06)


def test_standard_contrasts_are_venous_ct_and_t2_mr():
    ct, mr = contrasts.standard_contrast(contrasts.CT), contrasts.standard_contrast(contrasts.MR)
    liver = NAMES.index("liver")
    assert float(ct[liver]) == pytest.approx((112 + 160) / 400)
    assert float(mr[liver]) == pytest.approx(0.27)


# Acquisition


def test_blur_is_a_gaussian_along_each_axis():
    volume = np.random.default_rng(0).random((14, 12, 10)).astype(np.float32)
    found = acquisition.blurred(jnp.asarray(volume)[..., None], jnp.array([0.7, 0.0, 1.2]))[..., 0]
    expected = gaussian_filter(volume, (0.7, 0.0, 1.2), mode="nearest", truncate=6)
    np.testing.assert_allclose(np.asarray(found)[4:-4, :, 5], expected[4:-4, :, 5], atol=2e-2)


@pytest.fixture(scope="module")
def acquire():
    """Of a volume of 12 x 12 x 12 voxels, without blur."""
    return jax.jit(partial(acquisition.acquire, settings=Settings(blur=0.0, thick_slices=0.0)))


@pytest.mark.parametrize("is_ct", [True, False])
def test_nothing_is_added_at_strength_0(acquire, is_ct):
    image = jnp.asarray(np.random.default_rng(0).random((12, 12, 12)), jnp.float32)
    found = acquire(jax.random.key(0), image, strength=0.0, is_ct=jnp.asarray(is_ct))
    sample = np.sort(np.asarray(image)[::3, ::3, ::3].ravel())
    expected = image if is_ct else np.minimum(image / sample[int(0.99 * sample.size)], 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_air_stays_0_in_ct_and_has_noise_in_mr(acquire):
    image = jnp.zeros((12, 12, 12)).at[6:].set(0.5)
    ct, mr = (acquire(jax.random.key(1), image, strength=1.0, is_ct=jnp.asarray(is_ct)) for is_ct in (True, False))
    assert np.all(ct[:6] == 0) and np.std(ct[6:]) > 0
    assert np.std(mr[:6]) > 0


def test_crops_leave_everything_in_one_image():
    shown = [acquisition.draw_crops(jax.random.key(n), SHAPE, probability=1.0) for n in range(20)]
    lost = np.array([[1 - np.mean(mask) for mask in both] for both in shown])
    assert np.all(lost.min(1) == 0) and np.all(lost.max(0) > 0)
    assert lost.max() < 0.7
    assert all(np.all(mask) for mask in acquisition.draw_crops(jax.random.key(0), SHAPE, probability=0.0))


# Pairs


@pytest.mark.parametrize("settings", [ANATOMIES, SHAPES], ids=["anatomies", "shapes"])
def test_pair_is_complete_and_its_ground_truth_exact(labels, settings):
    before = after = 0.0
    for seed in range(4):
        pair = make_pairs(jax.random.split(jax.random.key(seed), len(labels)), labels, settings=settings, progress=1.0)
        assert pair.moving.shape == pair.fixed.shape == (2, *SHAPE, 1)
        assert pair.displacement.shape == (2, *SHAPE, 3)
        assert pair.clean_moving.shape == pair.clean_fixed.shape == (2, *SHAPE, 3)
        for array in pair:
            assert array.dtype == jnp.float32 and np.all(np.isfinite(array))
        for image in (pair.moving, pair.fixed, pair.clean_moving, pair.clean_fixed):
            assert image.min() >= 0 and image.max() <= 1 and np.std(image) > 0.02
        before += mean_square(pair.clean_moving - pair.clean_fixed)
        after += mean_square(warp(pair.clean_moving, pair.displacement) - pair.clean_fixed)
    assert after < 0.02 * before


def test_pairs_are_a_function_of_key_and_labels(labels):
    def make(seed):
        return make_pairs(jax.random.split(jax.random.key(seed), len(labels)), labels, settings=ANATOMIES, progress=0.5)

    first, again, other = make(0), make(0), make(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first.displacement[0], first.displacement[1])


def test_progress_0_is_an_anatomy_in_standard_contrasts_at_rest(labels):
    pair = make_pairs(jax.random.split(jax.random.key(7), len(labels)), labels, settings=SHAPES, progress=0.0)
    assert np.abs(pair.displacement).max() < 1e-5
    for image, kind, least in ((pair.moving, contrasts.CT, 0.95), (pair.fixed, contrasts.MR, 0.9)):
        expected = np.asarray(contrasts.standard_contrast(kind))[labels]
        assert np.corrcoef(image.ravel(), expected.ravel())[0, 1] > least


def test_motions_grow_with_progress(labels):
    pair = partial(make_pairs, jax.random.split(jax.random.key(8), len(labels)), labels, settings=ANATOMIES)
    sizes = [float(jnp.abs(pair(progress=progress).displacement).mean()) for progress in (0.0, 0.5, 1.0)]
    assert 0.2 * sizes[2] < sizes[0] < 0.4 * sizes[2] < 0.5 * sizes[2] < sizes[1] < 0.8 * sizes[2]


# Settings


def test_settings_come_from_a_flat_config():
    section = ConfigDict({field.name: field.default for field in dataclasses.fields(Settings)})
    section = ConfigDict({key: value for key, value in section.items() if key != "spacing"})
    section.amplitude = 3.0
    assert of_config(section, spacing=(2.0, 2.0, 3.0)) == Settings(amplitude=3.0, spacing=(2.0, 2.0, 3.0))


@pytest.mark.parametrize("wrong", [{"amplitude": 0.0}, {"start_amplitude": 9.0}, {"ct": 0.8}, {"mr": -0.1}])
def test_settings_reject_what_makes_no_sense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)
