import json
import pickle
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

from conftest import REPOSITORY
from f3r_jax.common.errors import UserError
from f3r_jax.models import build, initialise
from f3r_jax.workdir import checkpoints, weights
from f3r_jax.workdir.log import read_rows
from f3r_jax.workdir.trained_network import load_network, params_from


@pytest.fixture
def run(finished, tiny_network):
    return finished[0]


@pytest.fixture
def file(run, tmp_path):
    """The weights of the finished run."""
    path = tmp_path / "tiny.npz"
    _, params, config, step = load_network(run)
    weights.write(path, params, config, step)
    return path


def _assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_comes_back_to_the_bit(run, file):
    _, params, config, step = load_network(run)
    _, found, found_config, found_step = load_network(file)
    _assert_same(found, params)
    assert (found_config.to_json(), found_step) == (config.to_json(), step)
    assert list(file.parent.iterdir()) == [file]


def test_the_script_writes_the_same(run, file, tmp_path):
    script, output = REPOSITORY / "launch" / "export_weights.py", tmp_path / "script.npz"
    start = "import command_server, runpy; command_server.register_tiny(); "
    program = f"{start}runpy.run_path({str(script)!r}, run_name='__main__')"
    command = [sys.executable, "-c", program, f"--workdir={run}", f"--output={output}"]
    environment = {"PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}", "JAX_PLATFORMS": "cpu", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "parameters of step 6" in done.stdout and done.stderr == ""
    _assert_same(weights.read(output)[0], weights.read(file)[0])
    again = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert again.returncode == 2 and "exists" in again.stderr and len(again.stderr.splitlines()) == 1


@pytest.mark.parametrize("damage", ["absent", "text", "pickle", "cut", "other"])
def test_another_file_gets_one_line(file, tmp_path, damage):
    path = tmp_path / f"{damage}.npz"
    if damage == "text":
        path.write_text("no weights")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"params": 1}))
    elif damage == "cut":
        path.write_bytes(file.read_bytes()[:-50])
    elif damage == "other":
        np.savez(path, a=np.ones(3))
    with pytest.raises(UserError, match=rf"{damage}\.npz: (no such file|not a file of weights)"):
        weights.read(path)


def test_weights_of_another_step_and_architecture(file):
    with pytest.raises(UserError, match="holds step 6, expected step 4"):
        load_network(file, 4)
    other = build(runpy.run_path(str(REPOSITORY / "configs" / "vm1.py"))["get_config"]().model)
    with pytest.raises(UserError, match=r"tiny\.npz: checkpoint of another architecture: .* parameters differ"):
        params_from(file, other)


# config.init


@pytest.fixture(params=["run", "file"])
def source(request, run, file):
    return run if request.param == "run" else file


def test_training_starts_from_the_weights(commands, arguments, source, run, tmp_path):
    settings = {"init": source, "train.steps": 2, "train.checkpoint_every": 1, "optim.learning_rate": 1e-12}
    result = commands.run("main", *arguments(settings))
    assert result.status == 0 and result.err == "", result
    assert f"init: {source}, step 6: all 4 arrays, " in result.out
    _, started, _, _ = load_network(run)
    _, trained, config, _ = load_network(tmp_path / "run")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), started, trained)
    assert config.init == str(source)
    random = initialise(load_network(run)[0], jax.random.key(0))
    differ = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), random, trained))
    assert max(differ) > 1e-4  # so the run's weights aren't the random ones
    validation = {
        row["step"]: row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "validation"
    }
    before = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "validation"][-1]
    assert validation[0]["dice"] == pytest.approx(before["dice"], abs=1e-3)


def test_without_steps_the_weights_are_evaluated(commands, arguments, source, run, tmp_path):
    result = commands.run("main", *arguments({"init": source, "train.steps": 0}))
    assert result.status == 0 and result.err == "", result
    assert "step 0" in result.out and checkpoints.steps(tmp_path / "run") == [0]
    _assert_same(load_network(tmp_path / "run")[1], load_network(run)[1])
    found, known = (json.loads((each / "evaluation/summary.json").read_text()) for each in (tmp_path / "run", run))
    assert found["organs"] == known["organs"] and found["epe_mm"] == known["epe_mm"] is not None
    again = commands.run("main", *arguments({"init": source, "train.steps": 0}))
    assert again.status == 0 and checkpoints.steps(tmp_path / "run") == [0], again
    refused = commands.run("main", *arguments({"train.steps": 0}, workdir=tmp_path / "other"))
    assert refused.status == 2 and "train.steps is 0, expected a number above 0" in refused.err, refused


def test_a_resumed_run_does_not_need_its_source(commands, arguments, file, tmp_path):
    settings = {"init": file, "train.steps": 2, "train.checkpoint_every": 1}
    assert commands.run("main", *arguments(settings)).status == 0
    file.unlink()
    again = commands.run("main", *arguments(settings))
    assert again.status == 0 and "init:" not in again.out, again


def test_a_wrong_source_is_one_line_and_nothing_is_written(commands, arguments, file, tmp_path):
    for source, words in ((tmp_path / "absent", "no such folder"), (tmp_path / "absent.npz", "no such file")):
        result = commands.run("main", *arguments({"init": source}))
        assert result.status == 2 and len(result.err.splitlines()) == 1, result
        assert words in result.err and not (tmp_path / "run").exists()
    other = commands.run("main", *arguments({"init": file, "model.name": "voxelmorph1"}, config="configs/vm1.py"))
    assert other.status == 2 and "another architecture" in other.err and len(other.err.splitlines()) == 1


def test_configs_from_before_have_no_source(run, tmp_path):
    stored = json.loads((run / "config.json").read_text())
    del stored["init"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    from f3r_jax.workdir.metadata import read_config

    assert read_config(tmp_path).init == ""
    assert checkpoints.load_config(checkpoints.find(run)).init == ""
