import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from f3r_jax.common.errors import UserError
from f3r_jax.workdir import checkpoints
from f3r_jax.workdir.checkpoints import Checkpoints

PARAMS = {"conv": {"kernel": jnp.arange(24, dtype=jnp.float32).reshape(2, 3, 4) / 7, "bias": jnp.ones(4)}}


@pytest.fixture
def optimiser():
    """The state of Adam after one step."""
    adam = optax.adam(1e-3)
    return adam.update(PARAMS, adam.init(PARAMS), PARAMS)[1]


@pytest.fixture
def workdir(tmp_path, optimiser, config):
    """Checkpoints of the steps 2 and 4."""
    kept = Checkpoints(tmp_path)
    for step in (2, 4):
        kept.save(step, jax.tree.map(lambda leaf, step=step: leaf * step, PARAMS), optimiser, config)
    kept.close()
    return tmp_path


def _assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype


def test_comes_back_to_the_bit(workdir, optimiser):
    kept = Checkpoints(workdir)
    assert kept.latest() == 4
    zeros = jax.tree.map(jnp.zeros_like, (PARAMS, optimiser))
    params, state = kept.restore(4, *zeros)
    kept.close()
    _assert_same(params, jax.tree.map(lambda leaf: leaf * 4, PARAMS))
    _assert_same(state, optimiser)


def test_parameters_and_config_alone(workdir, config):
    found = checkpoints.find(workdir)
    assert found == workdir / "checkpoints" / "4"
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    _assert_same(checkpoints.load_params(checkpoints.find(workdir, 2), abstract), jax.tree.map(lambda x: x * 2, PARAMS))
    assert checkpoints.load_config(found).to_json() == config.to_json()


def test_keeps_the_newest(tmp_path, optimiser, config):
    kept = Checkpoints(tmp_path, keep=2)
    assert kept.latest() is None
    for step in (1, 2, 5, 9):
        kept.save(step, PARAMS, optimiser, config)
    kept.save(9, PARAMS, optimiser, config)  # there already
    kept.close()
    assert checkpoints.steps(tmp_path) == [5, 9]


def test_a_half_written_checkpoint_is_none(workdir, optimiser, config):
    """A kill while step 6 was written leaves a folder of another name, which is overwritten later."""
    half = workdir / "checkpoints" / "6.orbax-checkpoint-tmp"
    shutil.copytree(workdir / "checkpoints" / "4" / "params", half / "params")
    assert checkpoints.steps(workdir) == [2, 4]
    kept = Checkpoints(workdir)
    assert kept.latest() == 4
    kept.save(6, PARAMS, optimiser, config)
    assert kept.latest() == 6
    kept.close()
    _assert_same(checkpoints.load_params(checkpoints.find(workdir, 6), PARAMS), PARAMS)


def test_what_cannot_be_found(workdir, tmp_path):
    with pytest.raises(UserError, match=r"gone: no such folder, expected the --workdir"):
        checkpoints.find(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no checkpoint found"):
        checkpoints.find(tmp_path / "empty")
    with pytest.raises(UserError, match=r"no checkpoint of step 3, found 2, 4"):
        checkpoints.find(workdir, 3)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"conv": {"kernel": jnp.zeros((2, 3, 5)), "bias": jnp.ones(4)}},
            r"kernel.* is \(2, 3, 4\), expected \(2, 3, 5\)",
        ),
        ({"conv": {"kernel": PARAMS["conv"]["kernel"]}}, r"bias.* is \(4,\), expected absent"),
        (PARAMS | {"more": jnp.zeros(3)}, r"more.* is absent, expected \(3,\)"),
    ],
)
def test_another_architecture(workdir, changed, message):
    with pytest.raises(UserError, match=rf"checkpoints/4: checkpoint of another architecture: .*{message}"):
        checkpoints.load_params(checkpoints.find(workdir), changed)


@pytest.mark.parametrize("gone", ["params", "config", "params/_METADATA", "params/manifest.ocdbt", "params/d"])
def test_a_damaged_checkpoint(workdir, gone):
    path = checkpoints.find(workdir)
    if (path / gone).is_dir():
        shutil.rmtree(path / gone)
    else:
        (path / gone).unlink()
    with pytest.raises(UserError, match=r"checkpoints/4: not a readable checkpoint"):
        checkpoints.load_config(path)
        checkpoints.load_params(path, PARAMS)


def test_a_truncated_checkpoint(workdir):
    path = checkpoints.find(workdir)
    for file in (path / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/4: not a readable checkpoint"):
        checkpoints.load_params(path, PARAMS)
