import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_server import Tiny
from conftest import make_case

from f3r_jax import checkpoints
from f3r_jax.batches import batch_names, batches, load_batch, source_of
from f3r_jax.devices import mesh_for
from f3r_jax.errors import UserError
from f3r_jax.losses import Batch, Objective, gradient_l2, mind_l1
from f3r_jax.models import build
from f3r_jax.ops.fields import folding_percent
from f3r_jax.ops.warp import warp
from f3r_jax.record import Log, TrainingError, read_rows
from f3r_jax.train import (
    State,
    check_settings,
    create_state,
    make_optimiser,
    make_train_step,
    train,
    train_together,
)
from f3r_jax.validation import validate

NAMES = ("a", "b", "c", "d", "e")
LAM = jnp.float32(0.7)


@pytest.fixture(scope="module")
def network():
    return Tiny(flow_init=0.05)


@pytest.fixture(scope="module")
def descent():
    """With plain descent at rate 1 the step taken is the gradient."""
    return optax.sgd(1.0)


@pytest.fixture(scope="module")
def step(network, descent):
    return make_train_step(network, descent, Objective(mind="mind_ssc"))


@pytest.fixture
def batch():
    case = make_case("ball", 1.5)
    return Batch(jnp.asarray(case.moving)[None, ..., None], jnp.asarray(case.fixed)[None, ..., None])


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _leaves_equal(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def _epoch(seed, epoch, size=1):
    steps = range(epoch * len(NAMES) // size, (epoch + 1) * len(NAMES) // size)
    return [name for step in steps for name in batch_names(NAMES, seed=seed, step=step, size=size)]


def test_each_epoch_is_a_permutation_of_its_own():
    epochs = [_epoch(0, epoch) for epoch in range(20)]
    assert all(sorted(epoch) == list(NAMES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10


def test_batches_depend_on_seed_and_step_alone():
    assert _epoch(3, 7) == _epoch(3, 7)
    assert [_epoch(1, epoch) for epoch in range(3)] != [_epoch(2, epoch) for epoch in range(3)]


def test_batches_of_two_go_through_the_same_order():
    twos = [name for step in range(5) for name in batch_names(NAMES, seed=0, step=step, size=2)]
    assert twos == _epoch(0, 0) + _epoch(0, 1)


def test_resumed_batches_equal_those_of_a_whole_run(balls, config):
    whole = list(batches(balls, source_of(config), config, 0, mesh_for(1)))
    resumed = list(batches(balls, source_of(config), config, 4, mesh_for(1)))
    assert len(whole) == config.train.steps and len(resumed) == config.train.steps - 4
    for (names, batch), (names_again, batch_again) in zip(whole[4:], resumed, strict=True):
        assert names == names_again and _leaves_equal(batch, batch_again)


def test_a_batch_stacks_moving_and_fixed(balls, config):
    batch = load_batch(balls, source_of(config), ["ball_1", "ball_0"], mesh_for(1))
    np.testing.assert_array_equal(batch.moving[0, ..., 0], balls.load("ball_1").moving)
    np.testing.assert_array_equal(batch.fixed[1, ..., 0], balls.load("ball_0").fixed)


def test_loss_is_similarity_plus_lam_times_smoothness(network, descent, step, batch):
    state = create_state(network, descent, 0)
    u = network.apply({"params": state.params}, *batch)
    similarity = mind_l1(batch.fixed, warp(batch.moving, u), preset="mind_ssc")
    smoothness = gradient_l2(u)
    _, metrics = step(state, batch, LAM)
    np.testing.assert_allclose(metrics["similarity"], similarity, rtol=1e-5)
    np.testing.assert_allclose(metrics["smoothness"], smoothness, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], similarity + 0.7 * smoothness, rtol=1e-5)
    np.testing.assert_allclose(metrics["folding"], folding_percent(u)[0])
    assert float(smoothness) > 0


def test_runs_together_compute_one_of_two_similarities(network, descent, batch):
    """Under vmap a choice that has an axis becomes a selection: both are computed."""
    objective = Objective(mind="mind_ssc", second_similarity="pooled_mind", second_from=4)
    step = make_train_step(network, descent, objective, together=True)
    start = create_state(network, descent, 0)
    state = State(start.step, *jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), tuple(start[1:])))
    assert "stablehlo.case" in step.lower(state, batch, jnp.ones(2)).as_text()


def test_gradient_agrees_with_finite_differences(network, descent, step, batch):
    start = create_state(network, descent, 0)
    after, metrics = step(_copy(start), batch, LAM)
    gradient = jax.tree.map(lambda old, new: np.asarray(old - new, np.float64), start.params, after.params)
    norm = float(optax.global_norm(gradient))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)

    def loss(direction, length):
        params = jax.tree.map(lambda p, d: p + jnp.float32(length) * d, start.params, direction)
        return float(step(State(jnp.zeros((), jnp.int32), params, _copy(start.optimiser)), batch, LAM)[1]["loss"])

    rng = np.random.default_rng(0)
    for noise in (0.0, 1.0):
        direction = jax.tree.map(
            lambda g, noise=noise: jnp.asarray(g / norm + noise * 0.05 * rng.standard_normal(g.shape), jnp.float32),
            gradient,
        )
        expected = sum(
            np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        )
        h = 3e-3
        measured = (loss(direction, h) - loss(direction, -h)) / (2 * h)
        np.testing.assert_allclose(measured, expected, rtol=0.03)


def test_lam_is_traced_and_the_state_donated(network, descent, step, batch):
    state = create_state(network, descent, 0)
    given = jax.tree.leaves(state)
    for count, lam in enumerate((0.1, 2.0), start=1):
        state, metrics = step(state, batch, jnp.float32(lam))
        assert int(state.step) == count
        np.testing.assert_allclose(metrics["loss"], metrics["similarity"] + lam * metrics["smoothness"], rtol=1e-5)
        assert all(leaf.is_deleted() for leaf in given)
    assert step._cache_size() == 1


def test_vmap_over_lam(network, descent, step, batch):
    start = create_state(network, descent, 0)
    lams = jnp.asarray([0.0, 0.5, 2.0])
    states, metrics = jax.vmap(step, in_axes=(None, None, 0))(_copy(start), batch, lams)
    for index, lam in enumerate(lams):
        state, alone = step(_copy(start), batch, lam)
        np.testing.assert_allclose(metrics["loss"][index], alone["loss"], rtol=1e-5)
        for together, single in zip(jax.tree.leaves(states.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(together[index], single, atol=1e-6)


def _overfit(network, batch, optimiser, steps):
    step = make_train_step(network, optimiser, Objective(mind="mind_ssc"))
    state, losses = create_state(network, optimiser, 0), []
    for _ in range(steps):
        state, metrics = step(state, batch, jnp.float32(0.1))
        losses.append(float(metrics["loss"]))
    return losses


def test_overfits_one_pair(network, batch, config):
    losses = _overfit(network, batch, make_optimiser(config.optim, 30), 30)
    assert min(losses[-5:]) < 0.8 * losses[0]


@pytest.mark.slow
def test_f3rnet_overfits_one_pair(batch, config):
    config.model.name = "f3rnet"
    config.optim.learning_rate = 1e-3
    losses = _overfit(build(config.model), batch, make_optimiser(config.optim, 30), 30)
    assert min(losses[-5:]) < 0.8 * losses[0]


def test_learning_rate_warms_up_and_decays(config):
    config.optim.update(learning_rate=0.1, warmup_steps=4, clip_norm=1e9, decay="cosine")

    def lengths(steps):
        """Adam's step has the length of the learning rate for a constant gradient."""
        optimiser, params, found = make_optimiser(config.optim, steps), {"w": jnp.zeros(())}, []
        state, update = optimiser.init(params), jax.jit(optimiser.update)
        for _ in range(steps):
            updates, state = update({"w": jnp.ones(())}, state, params)
            found.append(-float(updates["w"]))
        return np.array(found)

    cosine = lengths(12)
    np.testing.assert_allclose(cosine[:5], [0, 0.025, 0.05, 0.075, 0.1], atol=1e-4)
    assert np.all(np.diff(cosine[4:]) < 0) and cosine[-1] < 0.01
    config.optim.decay = "constant"
    np.testing.assert_allclose(lengths(8)[4:], 0.1, rtol=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.learning_rate", 0.0),
        ("optim.clip_norm", -1.0),
        ("optim.warmup_steps", -1),
        ("optim.decay", "linear"),
        ("loss.lam", -0.5),
        ("loss.mind", "mind"),
        ("train.steps", 0),
        ("train.batch_size", 0),
        ("train.validate_every", 0),
        ("train.checkpoint_every", -1),
        ("train.keep_checkpoints", 0),
    ],
)
def test_settings_that_cannot_be_trained_with(config, key, value):
    check_settings(config)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"{key} is '?{value}"):
        check_settings(config)


def test_nan_is_no_setting(config):
    config.loss.lam = float("nan")
    with pytest.raises(UserError, match=r"loss\.lam is nan"):
        check_settings(config)


def test_log_drops_what_comes_after_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "kind": "train", "loss": 0.1 * step} for step in range(1, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 5, "ki')
    assert read_rows(path) == rows
    log = Log(tmp_path, 2)
    log.write({"step": 3, "kind": "train", "loss": 0.3})
    log.close()
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    assert read_rows(tmp_path / "none.jsonl") == []


def _breaking(dataset, name, error):
    """The data set without one case: loading it raises."""

    def fail():
        raise error

    return dataclasses.replace(dataset, makers=dataset.makers | {name: fail}, _cache=type(dataset._cache)())


def test_a_run_that_broke_off_ends_like_a_whole_one(balls, config, network, tmp_path):
    config.train.update(steps=6, checkpoint_every=1)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = train(network, balls, config, whole)
    # The third case of the first epoch is loaded first for step 3.
    third = batch_names(balls.split["train"], seed=config.seed, step=2, size=1)[0]
    with pytest.raises(RuntimeError, match="pulled the plug"):
        train(network, _breaking(balls, third, RuntimeError("pulled the plug")), config, broken)
    assert checkpoints.steps(broken) == [2] or checkpoints.steps(broken) == [1, 2]
    found = train(network, balls, config, broken)
    assert _leaves_equal(expected, found)
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    assert checkpoints.steps(whole) == checkpoints.steps(broken)
    again = train(network, balls, config, whole)  # nothing is left to do
    assert _leaves_equal(expected, again)


def _of_lambdas(config, lams):
    configs = [config.copy_and_resolve_references() for _ in lams]
    for each, lam in zip(configs, lams, strict=True):
        each.loss.lam = lam
    return configs


def test_runs_trained_together_end_like_runs_alone(balls, config, network, tmp_path):
    lams = (0.0, 0.5, 2.0)
    together, alone = ([tmp_path / f"{kind}{lam}" for lam in lams] for kind in ("together", "alone"))
    assert train_together(network, balls, _of_lambdas(config, lams), together) == [None, None, None]
    for folder, workdir, each in zip(together, alone, _of_lambdas(config, lams), strict=True):
        state = train(network, balls, each, workdir)
        (found,) = (checkpoints.load_params(checkpoints.find(folder, s), state.params) for s in (config.train.steps,))
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
        rows, expected = (read_rows(path / "metrics.jsonl") for path in (folder, workdir))
        assert [(row["step"], row["kind"]) for row in rows] == [(row["step"], row["kind"]) for row in expected]
        assert checkpoints.steps(folder) == checkpoints.steps(workdir)
        assert checkpoints.load_config(checkpoints.find(folder)).loss.lam == each.loss.lam


def test_runs_together_go_on_from_the_step_that_all_have(balls, config, network, tmp_path):
    config.train.update(steps=6, checkpoint_every=1)
    configs = _of_lambdas(config, (0.5, 2.0))
    whole, broken = ([tmp_path / f"{kind}{n}" for n in range(2)] for kind in ("whole", "broken"))
    assert train_together(network, balls, configs, whole) == [None, None]
    third = batch_names(balls.split["train"], seed=config.seed, step=2, size=1)[0]
    with pytest.raises(RuntimeError, match="pulled the plug"):
        train_together(network, _breaking(balls, third, RuntimeError("pulled the plug")), configs, broken)
    # As if the kill had come between the two saves of the last step.
    shutil.rmtree(broken[1] / "checkpoints" / str(checkpoints.steps(broken[1])[-1]))
    assert train_together(network, balls, configs, broken) == [None, None]
    for one, other in zip(whole, broken, strict=True):
        assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
        like = create_state(network, optax.sgd(1.0), 0).params
        assert _leaves_equal(*(checkpoints.load_params(checkpoints.find(path), like) for path in (one, other)))


def test_a_run_that_fails_leaves_those_trained_with_it(balls, config, network, tmp_path):
    folders = [tmp_path / "well", tmp_path / "ill"]
    none, error = train_together(network, balls, _of_lambdas(config, (0.5, float("inf"))), folders)
    assert none is None and re.match("lambda inf: the loss is not finite at step 1 ", str(error))
    assert checkpoints.steps(folders[0])[-1] == config.train.steps and checkpoints.steps(folders[1]) == []


def test_the_seed_decides_the_run(balls, config, network, tmp_path):
    runs = {}
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        config.seed = seed
        runs[name] = train(network, balls, config, tmp_path / name).params
    assert _leaves_equal(runs["one"], runs["same"]) and not _leaves_equal(runs["one"], runs["other"])
    texts = {name: (tmp_path / name / "metrics.jsonl").read_bytes() for name in runs}
    assert texts["one"] == texts["same"] != texts["other"]


def test_a_run_changes_its_similarity_at_the_step_that_the_config_says(balls, config, network, tmp_path):
    rows = {}
    for name, second in (("changing", "mind_and_pooled"), ("not", "")):
        config.loss.second_similarity = second
        train(network, balls, config, tmp_path / name)
        rows[name] = [row for row in read_rows(tmp_path / name / "metrics.jsonl") if row["kind"] == "train"]
    changing, steady = ([row["similarity"] for row in rows[name]] for name in ("changing", "not"))
    first = round(config.loss.second_after * config.train.steps)
    np.testing.assert_allclose(changing[:first], steady[:first], rtol=1e-5)
    assert all(abs(one - other) > 0.1 * other for one, other in zip(changing[first:], steady[first:], strict=True))
    assert len(changing) > first > 0


def test_rows_of_a_run(balls, config, network, tmp_path):
    train(network, balls, config, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [0, 3, 6]
    for row in rows:
        numbers = {"train": {"loss", "similarity", "smoothness", "gradient_norm"}, "validation": {"dice"}}[row["kind"]]
        assert numbers | {"folding"} <= set(row)
        assert all(np.isfinite(row[name]) for name in numbers)
    assert list((tmp_path / "tensorboard").iterdir())


def test_validation_is_a_mean_over_the_organs_and_cases_that_have_a_dice(balls, tmp_path):
    """The first case has no labels; the last has an organ, 2, that the others lack."""
    first, middle, last = (make_case(name, 0.0) for name in balls.split["train"])
    with_a_corner = [labels.copy() for labels in (last.fixed_labels, last.moving_labels)]
    for labels in with_a_corner:
        labels[:2, :2, :2] = 2
    last = dataclasses.replace(last, fixed_labels=with_a_corner[0], moving_labels=with_a_corner[1])
    first = dataclasses.replace(first, fixed_labels=None, moving_labels=None)
    makers = {case.name: (lambda case=case: case) for case in (first, middle, last)}
    dataset = dataclasses.replace(balls, split={"validation": tuple(makers)}, makers=makers)

    def stay(params, moving, fixed):
        return jnp.zeros((*moving.shape[:-1], 3)), moving

    organs = {"ball": (1,), "corner": (2,), "nowhere": (3,)}
    values = validate(stay, {}, dataset, organs, scratch=tmp_path / "scratch")
    dices = dict.fromkeys(("dice", "dice_ball", "dice_corner", "dice_mean_field", "dice_other_pair"), 100.0)
    assert values == dices | {"folding": 0.0, "epe_mm": 0.0, "dice_gain": 0.0}  # no correlation: nothing deviates
    assert not (tmp_path / "scratch").exists()


def test_a_loss_that_is_not_finite_names_step_and_case(balls, config, network, tmp_path):
    config.train.update(steps=6, checkpoint_every=1)
    third = batch_names(balls.split["train"], seed=config.seed, step=2, size=1)[0]
    bad = dataclasses.replace(make_case(third, 0.5), fixed=np.full_like(make_case(third, 0.5).fixed, np.nan))
    dataset = dataclasses.replace(balls, makers=balls.makers | {third: lambda: bad})
    with pytest.raises(TrainingError, match=rf"step 3 \(case {third}: loss nan.*step 2 is the last good one"):
        train(network, dataset, config, tmp_path)
    assert checkpoints.steps(tmp_path)[-1] == 2
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl") if row["kind"] == "train"] == [1, 2]
    kept = checkpoints.load_params(checkpoints.find(tmp_path), create_state(network, optax.sgd(1.0), 0).params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))
