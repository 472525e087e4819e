"""Synthetic pairs as a source of batches, and the terms of the loss that need their ground truth."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY, TINY_CONFIG

from f3r_jax.batches import check_batches, crop_of, cropped, example_keys, load_batch, source_of
from f3r_jax.data.datasets import open_dataset
from f3r_jax.devices import mesh_for
from f3r_jax.errors import UserError
from f3r_jax.losses import Batch, GroundTruth, Objective, Prepared, terms
from f3r_jax.metrics import end_point_error_mm
from f3r_jax.ops.warp import warp
from f3r_jax.record import read_rows
from f3r_jax.train import check_settings

TINY_SYNTHETIC = TINY_CONFIG | {
    "data.cases": 3,
    "loss.lam": 0.1,
    "synthesis.amplitude": 0.5,
    "synthesis.start_amplitude": 0.2,
    "synthesis.breathing": 0.5,
    "synthesis.shift": 0.5,
    "synthesis.curriculum_steps": 4,
}


@pytest.fixture
def synthetic(phantoms):
    made = runpy.run_path(str(REPOSITORY / "configs" / "synthetic.py"))["get_config"]()
    made.update_from_flattened_dict(TINY_SYNTHETIC | {"data.root": str(phantoms)})
    return made


def loaded(config, names=("anatomy_0000", "anatomy_0001")):
    return load_batch(open_dataset(config.data, seed=config.seed), source_of(config), list(names), mesh_for(1))


def test_trains_on_anatomies_and_is_tested_on_phantoms(synthetic):
    dataset = open_dataset(synthetic.data, seed=0)
    assert dataset.split["train"] == ("anatomy_0000", "anatomy_0001", "anatomy_0002")
    held_out = [*dataset.split["validation"], *dataset.split["test"]]
    assert len(held_out) == 3 and all(name.startswith("phantom_") for name in held_out)
    assert set(dataset.makers) == set(held_out)


def test_anatomies_are_painted_once_and_kept(synthetic, tmp_path):
    synthetic.data.root = str(tmp_path)
    first = open_dataset(synthetic.data, seed=0).tissue_map("anatomy_0001")
    (path,) = tmp_path.glob("*/anatomy_0001.npz")
    before = path.stat().st_mtime_ns
    again = open_dataset(synthetic.data, seed=0).tissue_map("anatomy_0001")
    np.testing.assert_array_equal(first, again)
    assert path.stat().st_mtime_ns == before
    assert first.dtype == np.uint8 and len(np.unique(first)) > 8


def test_the_step_decides_the_pair(synthetic):
    source, labels = source_of(synthetic), loaded(synthetic)
    prepare = jax.jit(source.prepare)
    found, same, other = (prepare(labels, jnp.int32(step), 0) for step in (2, 2, 3))
    batch, truth = found.given, found.truth
    assert isinstance(batch, Batch) and isinstance(truth, GroundTruth)
    assert batch.moving.shape == batch.fixed.shape == (2, 16, 16, 16, 1)
    assert truth.displacement.shape == truth.clean_moving.shape == (2, 16, 16, 16, 3)
    np.testing.assert_array_equal(batch.fixed, same.given.fixed)
    assert np.abs(batch.fixed - other.given.fixed).max() > 0.05
    sizes = [float(jnp.abs(prepare(labels, jnp.int32(step), 0).truth.displacement).mean()) for step in (0, 4, 400)]
    assert sizes[0] < 0.7 * max(sizes[1:])


def test_the_ground_truth_has_the_least_loss(synthetic):
    prepared = jax.jit(source_of(synthetic).prepare)(loaded(synthetic), jnp.int32(8), 0)
    u = prepared.truth.displacement
    objective = Objective(mind="mind_ssc_near", similarity="clean", epe=0.1)
    found = [terms(objective, prepared, s * u, jnp.float32(0)) for s in (0.0, 0.5, 1.0, 1.5)]
    losses = [float(values["loss"]) for values in found]
    assert np.argmin(losses) == 2
    assert float(found[2]["epe"]) == 0


def test_terms_add_up(synthetic):
    prepared = jax.jit(source_of(synthetic).prepare)(loaded(synthetic), jnp.int32(8), 0)
    truth = prepared.truth
    u = 0.3 * truth.displacement
    values = terms(Objective(mind="mind_ssc", epe=0.2), prepared, u, jnp.float32(0.5))
    expected = values["similarity"] + 0.5 * values["smoothness"] + 0.2 * values["epe"]
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-6)
    errors = [end_point_error_mm(*map(np.asarray, pair), [1, 1, 1]) for pair in zip(u, truth.displacement, strict=True)]
    assert values["epe"] >= np.mean(errors) ** 2
    assert set(terms(Objective(mind="mind_ssc"), prepared._replace(truth=None), u, jnp.float32(0.5))) == {
        "loss",
        "similarity",
        "smoothness",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synthesis.ct": 0.8, "synthesis.mr": 0.4}, "synthesis: ct is 0.8"),
        ({"synthesis.curriculum_steps": -1}, "synthesis.curriculum_steps is -1"),
        ({"loss.similarity": "clear"}, "loss.similarity is 'clear', expected one of mind, pooled_mind, mind_and_pooled, clean"),
        ({"loss.epe": -0.1}, "loss.epe is -0.1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(synthetic, changes, message):
    synthetic.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        check_settings(synthetic)
        check_batches(synthetic)


def test_pairs_without_ground_truth_have_no_loss_that_needs_it(config):
    config.loss.epe = 0.1
    with pytest.raises(UserError, match="ground truth"):
        check_settings(config)


def test_a_training_needs_anatomies(synthetic):
    synthetic.data.cases = 1
    with pytest.raises(UserError, match=r"data.cases is 1, expected the number of anatomies"):
        open_dataset(synthetic.data, seed=0)


@pytest.mark.slow
def test_a_killed_run_on_synthetic_pairs_resumes_to_the_same_end(commands, phantoms, tmp_path):
    values = TINY_SYNTHETIC | {"data.root": phantoms}
    changes = [f"--config.{key}={value}" for key, value in values.items()]

    def run(folder, **options):
        return commands.run("main", "--config=configs/synthetic.py", f"--workdir={folder}", *changes, **options)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(whole).status == 0
    assert run(killed, kill_when=(killed / "checkpoints" / "2").exists).status < 0
    assert run(killed).status == 0
    rows = [read_rows(folder / "metrics.jsonl") for folder in (whole, killed)]
    assert rows[0] == rows[1]
    assert {"similarity", "epe", "folding"} <= set(rows[0][-2])


def test_a_step_sees_a_random_part_and_the_same_of_all_volumes():
    axes = np.meshgrid(*map(np.arange, (12, 10, 8)), indexing="ij")
    place = jnp.asarray(np.stack(axes, axis=-1), jnp.float32)[None].repeat(2, axis=0)
    batch = Batch(place[..., :1], place[..., 1:2])
    prepared = Prepared(batch, batch, GroundTruth(place, place, place))
    starts = set()
    for seed in range(20):
        found = cropped(jax.random.split(jax.random.key(seed)), prepared, (6, 10, 3))
        whole = (found.compared.moving, found.truth.clean_moving)
        assert {leaf.shape[1:4] for leaf in whole} == {(12, 10, 8)}
        parts = (*found.given, found.compared.fixed, found.truth.displacement, found.truth.clean_fixed)
        assert {leaf.shape[1:4] for leaf in parts} == {(6, 10, 3)}
        corner = found.truth.displacement[:, :1, :1, :1]
        offsets = np.stack(np.meshgrid(*map(np.arange, (6, 10, 3)), indexing="ij"), axis=-1)
        np.testing.assert_array_equal(found.truth.displacement, corner + offsets)
        np.testing.assert_array_equal(found.start, corner)
        np.testing.assert_array_equal(found.given.moving, found.truth.displacement[..., :1])
        np.testing.assert_array_equal(found.compared.fixed, found.truth.clean_fixed[..., 1:2])
        starts |= {tuple(one) for one in np.asarray(corner).reshape(2, 3).astype(int).tolist()}
    assert {x for x, _, _ in starts} == set(range(7)) and {z for _, _, z in starts} == set(range(6))
    assert {y for _, y, _ in starts} == {0}
    assert cropped(jax.random.split(jax.random.key(0)), prepared, (12, 10, 8)) is prepared


def test_the_loss_of_a_part_reads_the_moving_volume_outside_it():
    """A displacement that points out of the part has the loss that its voxels have in the whole volume."""
    random = np.random.default_rng(0)
    moving = jnp.asarray(random.random((1, 20, 18, 16, 1)), jnp.float32)
    u = jnp.broadcast_to(jnp.array([4.0, -3.0, 2.0]), (1, 20, 18, 16, 3))
    batch = Batch(moving, warp(moving, u))
    truth = GroundTruth(u, moving, batch.fixed)
    keys, prepared = jax.random.split(jax.random.key(3), 1), Prepared(batch, batch, truth)
    found = cropped(keys, prepared, (8, 8, 8))
    assert {int(n) for n in found.start.ravel()} != {0}
    for similarity in ("mind", "clean"):
        objective = Objective(mind="mind_ssc_near", similarity=similarity, epe=1.0)
        none, true = (terms(objective, found, s * found.truth.displacement, jnp.float32(0)) for s in (0.0, 1.0))
        assert float(true["loss"]) < 1e-6 < 0.01 < float(none["similarity"])
        # With the part alone of the moving volume the true displacement reads its border.
        part = jax.lax.dynamic_slice(moving, (0, *map(int, found.start.ravel()), 0), (1, 8, 8, 8, 1))
        alone = Prepared(found.given, Batch(part, found.compared.fixed), found.truth._replace(clean_moving=part))
        assert float(terms(objective, alone, found.truth.displacement, jnp.float32(0))["similarity"]) > 0.01


def test_the_crop_of_a_config(config):
    config.data.shape = (32, 16, 48)
    config.train.crop = (16, 0, 100)
    assert crop_of(config) == (16, 16, 48)
    batch = jax.tree.map(lambda leaf: jnp.zeros((1, *leaf.shape)), source_of(config).example)
    assert source_of(config).prepare(batch, jnp.int32(0), 0).given.fixed.shape == (1, 16, 16, 48, 1)
    for crop, message in (((-1, 0, 0), "expected three sizes"), ((8, 8), "expected three sizes"), ((8, 0, 0), "small")):
        config.train.crop = crop
        with pytest.raises(UserError, match=rf"train.crop.*{message}"):
            check_batches(config)


def test_a_share_of_a_batch_has_the_keys_of_its_places():
    keys = [jax.random.key_data(example_keys(3, 5, first, count)) for first, count in ((0, 4), (2, 2))]
    np.testing.assert_array_equal(keys[0][2:], keys[1])
    assert len({tuple(key) for key in np.asarray(keys[0]).tolist()}) == 4


def test_a_share_of_a_batch_of_synthetic_pairs_is_what_the_whole_holds(synthetic):
    source, labels = source_of(synthetic), loaded(synthetic)
    prepare = jax.jit(source.prepare)
    whole, second = prepare(labels, jnp.int32(2), 0), prepare(labels[1:], jnp.int32(2), 1)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one[1:], other, atol=1e-5)
