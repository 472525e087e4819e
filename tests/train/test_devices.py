"""A batch shared by several devices or processes, on simulated devices of the CPU: the same training as on one."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from conftest import TINY_CONFIG, free_port, wait_for
from f3r_jax.common.errors import UserError
from f3r_jax.train.devices import AXIS, describe, mesh_for
from f3r_jax.workdir import checkpoints
from f3r_jax.workdir.log import read_rows

HERE = Path(__file__).parent.parent
EIGHT = {"train.batch_size": 8, "train.steps": 4, "data.cases": 11, "train.checkpoint_every": 2}
MAIN = """
import command_server, runpy
command_server.register_tiny()
runpy.run_module("f3r_jax.main", run_name="__main__")
"""

# One step of F3RNet-MRB on each number of devices; prints the metrics and how far the parameters lie apart.
STEPS = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import Mesh, AxisType
from scipy.ndimage import gaussian_filter
from f3r_jax.train import devices
from f3r_jax.models.f3rnet import VARIANTS, F3RNet
from f3r_jax.ops.losses import Batch, Objective
from f3r_jax.train.step import create_state, make_train_step

network = F3RNet(VARIANTS["mrb"], flow_init=0.05)
generator = np.random.default_rng(0)
# Smooth, so that a voxel's gradient hardly jumps where rounding carries its position across the edge of a cell.
volumes = gaussian_filter(generator.random((2, 4, 16, 16, 16, 1), dtype=np.float32), (0, 0, 2, 2, 2, 0))
found = {}
for count in (1, 4):
    mesh = Mesh(np.array(jax.devices()[:count]), (devices.AXIS,), axis_types=(AxisType.Auto,))
    descent = optax.sgd(1.0)  # the step taken is the gradient
    step = make_train_step(network, descent, Objective(mind="mind_ssc"), mesh=mesh)
    state = devices.replicate(mesh, create_state(network, descent, 0))
    batch = Batch(*(devices.shard_batch(mesh, volume) for volume in volumes))
    assert len(batch.moving.sharding.device_set) == count
    state, metrics = step(state, batch, jnp.float32(0.7))
    found[count] = devices.local_copy(state.params), {name: float(value) for name, value in metrics.items()}
(one, of_one), (four, of_four) = found.values()
start = create_state(network, descent, 0).params
size = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), one, start)))
apart = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), one, four)))
print(json.dumps({"one": of_one, "four": of_four, "apart": apart / size}))
"""


def simulated(count):
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={count}", "JAX_PLATFORMS": "cpu"}


def rows_of(workdir):
    return read_rows(workdir / "metrics.jsonl")


def assert_same_run(workdir, expected):
    """Metrics and parameters agree within the rounding of float32, which a few steps of Adam multiply."""
    rows, expected_rows = rows_of(workdir), rows_of(expected)
    assert [row.keys() for row in rows] == [row.keys() for row in expected_rows]
    first, *_ = (row for row in rows if row["kind"] == "train")
    first_expected, *_ = (row for row in expected_rows if row["kind"] == "train")
    for name in set(first) - {"step", "kind"}:
        assert first[name] == pytest.approx(first_expected[name], rel=1e-6, abs=1e-7), name
    for row, expected_row in zip(rows, expected_rows, strict=True):
        if row["kind"] == "train":
            assert row["loss"] == pytest.approx(expected_row["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def on_one(commands, phantoms, tmp_path_factory):
    """A run with batches of eight on one device."""
    return run(commands, phantoms, tmp_path_factory.mktemp("one") / "run")


def run(commands, phantoms, workdir, *, count=1, changes=None, more=()):
    values = TINY_CONFIG | {"data.root": phantoms} | EIGHT | (changes or {})
    settings = [f"--config.{key}={value}" for key, value in values.items()]
    result = commands.run(
        "main", "--config=configs/mrb.py", f"--workdir={workdir}", *settings, *more, env=simulated(count)
    )
    assert result.status == 0, result.err
    return workdir, result.out


@pytest.mark.parametrize("count", [4, 8])
def test_devices_that_share_a_batch_train_as_one_does(on_one, commands, phantoms, tmp_path, count):
    workdir, out = run(commands, phantoms, tmp_path / "run", count=count)
    assert f"training on {count} of {count} devices, train.batch_size is 8\n" in out
    assert_same_run(workdir, on_one[0])
    assert "training on" not in on_one[1]


def test_lambdas_together_on_several_devices(on_one, commands, phantoms, tmp_path):
    lam = TINY_CONFIG["loss.lam"]
    run(commands, phantoms, tmp_path / "{lam}", count=4, more=(f"--lambdas=0.5,{lam:g}",))
    assert_same_run(tmp_path / f"{lam:g}", on_one[0])
    small, large = ([row for row in rows_of(tmp_path / name) if row["kind"] == "train"][-1] for name in ("0.5", "1"))
    assert small["smoothness"] > large["smoothness"]


def test_idle_devices_are_told(commands, phantoms, tmp_path):
    _, out = run(commands, phantoms, tmp_path / "run", count=4, changes={"train.batch_size": 6, "train.steps": 2})
    assert "training on 3 of 4 devices, train.batch_size is 6; the others stay idle" in out


@pytest.mark.slow
def test_a_step_of_the_real_network_on_four_devices_is_that_on_one():
    env = os.environ | simulated(4) | {"PYTHONPATH": str(HERE.parent)}
    env["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiled in half the time
    done = subprocess.run([sys.executable, "-c", STEPS], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for name, value in found["one"].items():
        assert found["four"][name] == pytest.approx(value, rel=2e-6), name
    assert found["apart"] < 1e-5


def test_one_device_takes_any_batch():
    mesh = mesh_for(3)
    assert mesh.axis_names == (AXIS,) and describe(mesh, 3) is None


# Processes


@contextlib.contextmanager
def started(arguments, *, processes=2, count=2):
    """The main job as several processes of one training."""
    coordinator = f"--coordinator=localhost:{free_port()}"
    env = os.environ | simulated(count) | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    with contextlib.ExitStack() as stack:
        children = []
        for n in range(processes):
            flags = ["--distributed", coordinator, f"--processes={processes}", f"--process={n}"]
            command = [sys.executable, "-c", MAIN, *arguments, *flags]
            child = subprocess.Popen(
                command, cwd=HERE.parent, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            stack.callback(child.kill)
            children.append(child)
        yield children


def together(arguments, *, seconds=300):
    """Runs the processes to their end; (status, standard output, standard error) of each."""
    with started(arguments) as children:
        outputs = [child.communicate(timeout=seconds) for child in children]
        return [(child.returncode, *output) for child, output in zip(children, outputs, strict=True)]


@pytest.mark.slow
def test_processes_that_share_a_batch_train_as_one_does_and_go_on(on_one, arguments, tmp_path):
    workdir, given = tmp_path / "run", arguments(EIGHT)
    (status, out, err), (other_status, other_out, other_err) = together(given)
    assert (status, other_status) == (0, 0), err + other_err
    assert "training on 4 of 4 devices, train.batch_size is 8" in out and "Dice" in out
    assert "Dice" not in other_out and "training" not in other_out, "process 0 tells for all"
    assert_same_run(workdir, on_one[0])
    whole = rows_of(workdir)

    shutil.rmtree(workdir / "checkpoints" / "4")
    (status, out, err), (other_status, *_) = together(given)
    assert (status, other_status) == (0, 0), err
    assert "resuming from the checkpoint of step 2" in out
    assert checkpoints.steps(workdir)[-1] == 4
    assert rows_of(workdir) == whole, "not the same to the bit"


@pytest.mark.slow  # the other process hears of a death after a minute
def test_where_one_process_is_killed_the_other_ends_and_both_go_on(arguments, tmp_path):
    workdir, steps = tmp_path / "run", 100
    given = arguments(EIGHT | {"train.steps": steps, "train.checkpoint_every": 10, "train.validate_every": 50})
    with started(given) as (first, second):
        wait_for(lambda: checkpoints.steps(workdir) or first.poll() is not None, seconds=240)
        second.kill()
        _, err = first.communicate(timeout=240)
    assert first.returncode not in (0, None), "went on alone"
    assert "another task died" in err
    cut_off = rows_of(workdir)
    kept = checkpoints.steps(workdir)[-1]
    assert kept < steps

    (status, out, err), (other_status, *_) = together(given)
    assert (status, other_status) == (0, 0), err
    assert f"resuming from the checkpoint of step {kept}" in out
    rows = [row for row in rows_of(workdir) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, steps + 1)), "each step once"
    assert rows[:kept] == [row for row in cut_off if row["kind"] == "train"][:kept]


def test_a_batch_that_hosts_cannot_divide(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"train\.batch_size is 3, expected a multiple of 2, the number of processes"):
        mesh_for(3)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--processes=2"], "--processes is given, expected --distributed with it"),
        (["--distributed", "--coordinator=localhost:1"], "--processes is missing, expected it with --coordinator"),
        (
            ["--distributed", "--coordinator=localhost:1", "--processes=2", "--process=2"],
            "--process is 2, expected 0 to 1",
        ),
        (["--distributed"], "--distributed: "),
    ],
)
def test_mistakes_about_processes_get_one_line(commands, arguments, tmp_path, flags, told):
    result = commands.run("main", *arguments(), *flags)
    (line,) = result.err.splitlines()
    assert result.status == 2 and told in line
    assert not (tmp_path / "run").exists()
