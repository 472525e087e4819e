"""Labels that drive a training: the soft Dice loss, and label maps that move with their volumes."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import REPOSITORY, TINY_CONFIG
from f3r_jax.common.errors import UserError
from f3r_jax.data.datasets import open_dataset
from f3r_jax.ops.losses import LabelMaps, Objective, Prepared, soft_dice_loss, terms
from f3r_jax.ops.warp import warp
from f3r_jax.train.augment import moved, of_config
from f3r_jax.train.batches import check_labels, example_keys, load_batch, source_of
from f3r_jax.train.devices import mesh_for
from f3r_jax.train.step import check_settings, objective_of


@pytest.fixture
def config(phantoms):
    made = runpy.run_path(str(REPOSITORY / "configs" / "mrb.py"))["get_config"]()
    made.update_from_flattened_dict(TINY_CONFIG | {"data.root": str(phantoms), "loss.labels_weight": 0.5})
    return made


def prepared_pairs(config):
    dataset, source = open_dataset(config.data, seed=config.seed), source_of(config)
    names = list(dataset.split["train"][:2])
    return names, dataset, jax.jit(source.prepare)(load_batch(dataset, source, names, mesh_for(1)), jnp.int32(3), 0)


def boxes(*starts):
    volume = np.zeros((1, 12, 10, 8, len(starts)), np.float32)
    for channel, start in enumerate(starts):
        volume[0, start : start + 4, 2:6, 2:6, channel] = 1
    return jnp.asarray(volume)


def test_soft_dice_of_known_overlaps():
    np.testing.assert_allclose(soft_dice_loss(boxes(2, 5), boxes(2, 5)), 0, atol=1e-6)
    np.testing.assert_allclose(soft_dice_loss(boxes(2, 5), boxes(3, 7)), (0.25 + 0.5) / 2, rtol=1e-6)
    nothing = boxes(2, 5).at[..., 1].set(0)
    np.testing.assert_allclose(soft_dice_loss(nothing, boxes(3, 7)), 0.25, rtol=1e-6)
    assert float(soft_dice_loss(0 * boxes(2), boxes(2))) == 0


def test_its_gradient_moves_labels_together():
    def loss(shift):
        return soft_dice_loss(boxes(2), warp(boxes(5), jnp.zeros((1, 12, 10, 8, 3)).at[..., 0].set(shift)))

    assert float(jax.grad(loss)(1.5)) < 0 and float(loss(3.0)) == 0


def test_the_terms_contain_labels_only_where_they_drive(config):
    _, _, prepared = prepared_pairs(config)
    u = jnp.zeros((*prepared.given.moving.shape[:4], 3))
    objective = objective_of(config.loss, config.train.steps)
    assert objective.labels_weight == 0.5
    values = terms(objective, prepared, u, jnp.float32(1))
    np.testing.assert_allclose(values["loss"], values["similarity"] + 0.5 * values["labels"], rtol=1e-6)
    np.testing.assert_allclose(values["labels"], soft_dice_loss(prepared.labels.fixed, prepared.labels.moving))
    assert "labels" not in terms(Objective(mind="mind_ssc"), prepared._replace(labels=None), u, jnp.float32(1))


def test_labels_move_with_the_moving_volume(config):
    """The moving labels are those of the case, deformed by the displacement that the volume got."""
    config.augment.shift, config.augment.rotation = 8.0, 5.0
    names, dataset, prepared = prepared_pairs(config)
    plain = jnp.stack([jnp.asarray(dataset.load(name).moving_labels == 1, jnp.float32)[..., None] for name in names])
    volumes = jnp.stack([jnp.asarray(dataset.load(name).moving)[..., None] for name in names])
    keys = example_keys(config.seed, jnp.int32(3), 0, 2)
    how = {"settings": of_config(config.augment), "spacing": tuple(config.data.spacing)}
    np.testing.assert_allclose(prepared.labels.moving[..., :1], moved(keys, plain, **how), atol=1e-5)
    np.testing.assert_allclose(prepared.compared.moving, moved(keys, volumes, **how), atol=1e-5)
    assert np.abs(prepared.labels.moving[..., :1] - plain).max() > 0.5
    assert prepared.labels.fixed.shape[-1] == len(config.data.organs)


def test_without_a_weight_nothing_is_loaded(config):
    config.loss.labels_weight = 0.0
    _, _, prepared = prepared_pairs(config)
    assert isinstance(prepared, Prepared) and prepared.labels is None


def test_a_part_keeps_the_whole_moving_labels(config):
    config.train.crop = (8, 8, 8)
    _, _, prepared = prepared_pairs(config)
    labels = prepared.labels
    assert isinstance(labels, LabelMaps)
    assert labels.fixed.shape[1:4] == (8, 8, 8) and labels.moving.shape[1:4] == tuple(config.data.shape)


def test_what_cannot_drive_is_refused(config, monkeypatch):
    dataset = open_dataset(config.data, seed=config.seed)
    check_labels(dataset, config)
    name = dataset.split["train"][0]
    case = dataset.load(name)
    object.__setattr__(case, "fixed_labels", None)
    with pytest.raises(UserError, match=f"{name}: has no label maps"):
        check_labels(dataset, config)
    config.loss.labels_weight = -1.0
    with pytest.raises(UserError, match=r"loss\.labels_weight is -1"):
        check_settings(config)
    config.loss.labels_weight, config.data.source = 1.0, "synthetic"
    with pytest.raises(UserError, match=r"loss\.labels_weight needs label maps"):
        check_settings(config)
