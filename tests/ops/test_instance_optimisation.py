"""Refinement on synthetic pairs with a known displacement: what it finds, what masks keep out, that nothing folds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from f3r_jax.ops import instance_optimisation, sources
from f3r_jax.ops.fields import exponential, folding_percent, logarithm
from f3r_jax.ops.instance_optimisation import DEFAULT, Level
from f3r_jax.ops.losses import gradient_l2
from f3r_jax.ops.mind import PRESETS, mind
from f3r_jax.ops.warp import warp

SHAPE = (24, 22, 20)
# A small weight, as over so few voxels the true field is steep.
QUICK = dataclasses.replace(
    DEFAULT, levels=(Level(4, 20, 0.2), Level(2, 20, 0.2)), mind="mind_ssc_near", lam=0.1, diffeomorphic=False
)


def texture(seed, sigma=1.5):
    noise = np.random.default_rng(seed).normal(size=SHAPE)
    smooth = ndimage.gaussian_filter(noise, sigma)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return jnp.asarray(smooth[None, ..., None], jnp.float32)


def bump(scale):
    """A displacement of up to `scale` voxels that fades towards the border."""
    axes = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in SHAPE]
    height = np.einsum("i,j,k->ijk", *axes)
    return jnp.asarray(scale * height[None, ..., None] * np.array([1.0, -0.7, 0.5]), jnp.float32)


def pair(scale=3.0):
    """(fixed, moving, truth): the fixed image is the warped one with its contrast turned round."""
    moving, truth = texture(0), bump(scale)
    return 1 - warp(moving, truth) ** 2, moving, truth


def error(u, truth):
    return float(jnp.linalg.norm(u - truth, axis=-1)[0, 3:-3, 3:-3, 3:-3].mean())


def test_finds_a_known_displacement_across_contrasts():
    fixed, moving, truth = pair()
    losses = []
    found = instance_optimisation.refine(fixed, moving, settings=QUICK, progress=lambda *, loss: losses.append(loss))
    assert error(found, truth) < 0.35 * error(0 * truth, truth)
    assert folding_percent(found) == 0
    assert len(losses) == instance_optimisation.calls(QUICK)
    assert losses[3] < losses[0] and losses[7] < losses[4]  # of each level, as each has a loss of its own


def test_a_start_is_kept_where_it_is_right_and_improved_where_not():
    fixed, moving, truth = pair()
    kept = instance_optimisation.refine(fixed, moving, start=truth, settings=QUICK)
    assert error(kept, truth) < 0.35 * error(0 * truth, truth)  # not nearer, as the penalty pulls and voxels are few
    off = truth + 0.8
    assert error(instance_optimisation.refine(fixed, moving, start=off, settings=QUICK), truth) < 0.5 * error(
        off, truth
    )


def test_a_start_finer_than_the_grids_is_not_blurred():
    fixed, moving, _ = pair()
    fine = jnp.asarray(np.random.default_rng(1).normal(size=(1, *SHAPE, 3)), jnp.float32)
    still = dataclasses.replace(QUICK, levels=(Level(4, 5, 0.0), Level(2, 5, 0.0)))
    np.testing.assert_array_equal(instance_optimisation.refine(fixed, moving, start=fine, settings=still), fine)


@pytest.mark.parametrize("side", [0, 1])
def test_what_a_mask_leaves_out_has_no_influence(side):
    images, mask = list(pair()[:2]), np.zeros((1, *SHAPE, 1), np.float32)
    mask[:, 4:, :16] = 1
    masks = {("fixed_mask", "moving_mask")[side]: jnp.asarray(mask)}
    found = []
    for garbage in (0.0, np.nan, np.random.default_rng(2).random(mask.shape)):
        images[side] = jnp.asarray(np.where(mask > 0, images[side], garbage), jnp.float32)
        found.append(np.asarray(instance_optimisation.refine(*images, **masks, settings=QUICK)))
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_masks_that_share_nothing_leave_no_displacement():
    fixed, moving, _ = pair()
    nothing = jnp.zeros_like(fixed)
    found = instance_optimisation.refine(fixed, moving, fixed_mask=nothing, settings=QUICK)
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_diffeomorphic_does_not_fold_where_the_displacement_does():
    wild = dataclasses.replace(QUICK, lam=0.0, levels=(Level(2, 40, 1.0),))
    plain = instance_optimisation.refine(texture(3), texture(4), settings=wild)
    assert folding_percent(plain) > 1
    velocity = instance_optimisation.refine(
        texture(3), texture(4), settings=dataclasses.replace(wild, diffeomorphic=True)
    )
    assert folding_percent(velocity) < 0.02 * folding_percent(plain)


def test_diffeomorphic_finds_a_known_displacement_too_and_keeps_a_start():
    settings = dataclasses.replace(QUICK, diffeomorphic=True)
    fixed, moving, truth = pair()
    assert error(instance_optimisation.refine(fixed, moving, settings=settings), truth) < 0.35 * error(0 * truth, truth)
    kept = instance_optimisation.refine(fixed, moving, start=truth, settings=settings)
    assert error(kept, truth) < 0.35 * error(0 * truth, truth)


def test_logarithm_is_the_inverse_of_the_exponential():
    field = exponential(bump(2.0))
    np.testing.assert_allclose(exponential(logarithm(field)), field, atol=0.05)


def test_the_first_loss_is_the_one_that_is_minimised():
    """Mean square difference of the pooled descriptors plus lam times the gradient penalty, where the start is."""
    fixed, moving, truth = pair()
    settings, losses = dataclasses.replace(QUICK, levels=(Level(1, 5, 0.0),), lam=0.7), []
    instance_optimisation.refine(
        fixed, moving, start=truth, settings=settings, progress=lambda *, loss: losses.append(loss)
    )
    descriptors = [mind(image, preset=settings.mind) for image in (fixed, moving)]
    difference = jnp.mean((descriptors[0] - warp(descriptors[1], truth)) ** 2)
    # At the border the truth points beyond the grid by a hair, where less is known.
    np.testing.assert_allclose(losses[0], difference + 0.7 * gradient_l2(truth), rtol=1e-3)


@pytest.mark.parametrize("preset", PRESETS)
def test_reach_is_how_far_a_descriptor_sees(preset):
    image = texture(5)
    centre = tuple(n // 2 for n in SHAPE)
    there = jax.grad(lambda image: jnp.sum(mind(image, preset=preset)[(0, *centre)][:4]))(image)[0, ..., 0]
    # The mean that some variances are clamped about reaches everywhere, but only voxels at the clamp feel it.
    seen = np.argwhere(np.abs(there) > 1e-12) - np.array(centre)
    assert np.abs(seen).max() <= sources.reach_of(preset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ()}, "expected multiples of the last level's"),
        ({"levels": (Level(5, 20, 0.2), Level(2, 20, 0.2))}, r"spacings \[5, 2\]; expected multiples of the last"),
        ({"refresh": 3}, "a level has 20 steps; expected a multiple of refresh, 3"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(QUICK, **changes)
