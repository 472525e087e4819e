"""Augmentation: what each change does, that none leaves [0, 1], and that a key decides all of it."""

import dataclasses
import runpy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import REPOSITORY, blob
from f3r_jax.common.errors import UserError
from f3r_jax.ops.fields import folding_percent
from f3r_jax.ops.losses import Batch
from f3r_jax.ops.warp import warp
from f3r_jax.train.augment import Augmentation, augment, of_config, random_displacement
from f3r_jax.train.batches import example_keys, source_of

NONE = Augmentation(*[0.0] * 8)
ALL = Augmentation(3.0, 3.0, 0.04, 3.0, 0.2, 0.2, 0.03, 0.6)
SPACING = (4.0, 5.0, 6.0)
VOLUMES = tuple(jnp.asarray(np.stack([blob(c), blob(-c)]))[..., None].clip(0) + 0.2 for c in (0.0, 2.0))


def changed(settings, seed=0):
    """What the network is given."""
    return both(settings, seed)[0]


def both(settings, seed=0):
    draw = jax.jit(partial(augment, settings=settings, spacing=SPACING))
    return draw(jax.random.split(jax.random.key(seed)), Batch(*VOLUMES))


def fields(settings, count=100, shape=(24, 20, 16)):
    def draw(key):
        return random_displacement(key, shape=shape, settings=settings, spacing=SPACING)

    return np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(1), count))) * SPACING


def test_nothing_changes_with_all_off():
    for before, after in zip(VOLUMES, changed(NONE), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_key_decides_everything():
    for one, same, other in zip(changed(ALL), changed(ALL), changed(ALL, seed=1), strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.abs(one - other).max() > 0.05


def test_examples_of_a_batch_are_changed_differently_and_by_their_position():
    twice = [jnp.concatenate([volume[:1]] * 2) for volume in VOLUMES]
    (moving, _), _ = augment(jax.random.split(jax.random.key(0)), Batch(*twice), ALL, spacing=SPACING)
    assert np.abs(moving[0] - moving[1]).max() > 0.05
    (alone, _), _ = augment(
        jax.random.split(jax.random.key(0))[:1], Batch(*(volume[:1] for volume in VOLUMES)), ALL, spacing=SPACING
    )
    np.testing.assert_allclose(moving[:1], alone, atol=1e-5)


def test_stays_in_the_range_of_intensities():
    for seed in range(5):
        for volume in changed(dataclasses.replace(ALL, noise=0.5, bias=1.0), seed):
            assert np.isfinite(volume).all() and volume.min() >= 0 and volume.max() <= 1


@pytest.mark.parametrize("name", ["deformation", "rotation", "scaling", "shift"])
def test_geometry_moves_the_moving_volume_alone(name):
    moving, fixed = changed(dataclasses.replace(NONE, **{name: getattr(ALL, name)}))
    assert np.abs(moving - VOLUMES[0]).max() > 0.01
    np.testing.assert_array_equal(fixed, VOLUMES[1])


@pytest.mark.parametrize("name", ["gamma", "bias", "noise", "blur"])
def test_intensities_of_both_change_and_nothing_moves(name):
    settings = dataclasses.replace(NONE, **{name: getattr(ALL, name)})
    for before, after in zip(VOLUMES, changed(settings), strict=True):
        assert 0.001 < np.abs(before - after).max() < 0.5
        assert np.corrcoef(np.ravel(before), np.ravel(after))[0, 1] > 0.85


def test_the_loss_compares_intensities_as_they_were():
    moves = dataclasses.replace(ALL, gamma=0.0, bias=0.0, noise=0.0, blur=0.0)
    given, compared = both(ALL)
    assert np.abs(given.moving - compared.moving).max() > 0.01
    np.testing.assert_array_equal(compared.fixed, VOLUMES[1])
    np.testing.assert_allclose(compared.moving, changed(moves)[0], atol=1e-6)


def test_strengths_are_in_millimetres():
    smooth = fields(dataclasses.replace(NONE, deformation=3.0))
    np.testing.assert_allclose(np.sqrt(np.mean(smooth**2)), 3 / np.sqrt(3), rtol=0.1)  # uniform from 0 to 3
    assert np.abs(smooth.mean(axis=0)).max() < 1
    shift = fields(dataclasses.replace(NONE, shift=3.0))
    np.testing.assert_allclose(shift.std(axis=0), 3, rtol=0.25)
    assert np.ptp(shift, axis=(1, 2, 3)).max() < 1e-4


def test_rotation_and_scaling_are_about_the_middle():
    turned = fields(dataclasses.replace(NONE, rotation=3.0), shape=(25, 21, 17))
    grown = fields(dataclasses.replace(NONE, scaling=0.04), shape=(25, 21, 17))
    for field in (turned, grown):
        assert np.abs(field[:, 12, 10, 8]).max() < 1e-3
    x = 12 * SPACING[0]
    np.testing.assert_allclose(grown[:, -1, 10, 8, 0].std(), 0.04 * x, rtol=0.25)
    np.testing.assert_allclose(np.linalg.norm(turned[:, -1, 10, 8, 1:], axis=-1).mean(), 0.065 * x, rtol=0.25)
    start = x * np.array([1, 0, 0])
    np.testing.assert_allclose(np.linalg.norm(start + turned[:, -1, 10, 8], axis=-1), x, rtol=1e-4)


def test_default_deformations_do_not_fold(config):
    settings = of_config(config.augment)
    drawn = fields(settings, 20, shape=(64, 48, 48)) / SPACING
    assert float(folding_percent(jnp.asarray(drawn)).max()) == 0


def test_the_step_sees_the_augmented_pair(config):
    config.augment.deformation = 20.0
    source, batch = source_of(config), Batch(*VOLUMES)
    found, again, other = (source.prepare(batch, jnp.int32(step), 0) for step in (3, 3, 4))
    assert found.truth is None
    np.testing.assert_array_equal(found.given.moving, again.given.moving)
    assert np.abs(found.given.moving - other.given.moving).max() > 0.01
    key = jax.random.split(example_keys(config.seed, 3, 0, 2)[0], 3)[0]
    u = random_displacement(
        key, shape=batch.moving.shape[1:4], settings=of_config(config.augment), spacing=tuple(config.data.spacing)
    )
    np.testing.assert_allclose(found.compared.moving[:1], warp(batch.moving[:1], u[None]), atol=1e-5)


@pytest.mark.parametrize(("name", "value"), [("noise", -0.1), ("blur", 1.5), ("shift", float("nan"))])
def test_a_strength_that_makes_no_sense_is_refused(config, name, value):
    config.augment[name] = value
    with pytest.raises(UserError, match=f"augment.{name} is {value}"):
        of_config(config.augment)


def test_the_papers_setting_has_none(config):
    assert of_config(config.augment).moves
    paper = runpy.run_path(str(REPOSITORY / "configs" / "mrb.py"))["get_config"]("paper")
    assert of_config(paper.augment) == NONE
