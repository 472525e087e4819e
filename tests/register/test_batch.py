"""`python -m f3r_jax.register --pairs` on phantom pairs of 40 x 32 x 32 voxels."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from conftest import REPOSITORY
from f3r_jax.common import result_folder
from f3r_jax.data import nifti
from f3r_jax.data.phantom import generate
from f3r_jax.register import network_stage, scans
from f3r_jax.register.volumes import WorkingVolumes
from f3r_jax.workdir import trained_network

SHAPE, SPACING = (40, 32, 32), 8.0
QUICK = ("--affine=none", "--spacing=8", "--iterations=5", "--mind=mind_ssc_near", "--checkpoint=none")
COLUMNS = "name,fixed,moving,fixed_labels,moving_labels"
OF_THE_RUN = {"report.html", "summary.json"}  # hold seconds and the command


def _row(index, *, name=None):
    files = [f"{kind}_{index}.nii.gz" for kind in ("mr", "ct", "mr_labels", "ct_labels")]
    return ",".join([name or f"case{index}", *files])


def _table(data, name, rows, *, columns=COLUMNS):
    path = data / name
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two phantom pairs with labels; `pairs.csv` has them, `three.csv` also one whose labels are no whole numbers."""
    folder = tmp_path_factory.mktemp("data")
    affine = np.diag([SPACING] * 3 + [1])
    for index in (0, 1):
        case = generate.make_case(3, index, shape=SHAPE, spacing=(SPACING,) * 3)
        for name in ("mr", "ct", "mr_labels", "ct_labels"):
            nifti.write(folder / f"{name}_{index}.nii.gz", getattr(case, name), affine)
    nifti.write(folder / "halves.nii.gz", np.full(SHAPE, 0.5, np.float32), affine)
    _table(folder, "pairs.csv", [_row(0), _row(1)])
    bad = "bad,mr_0.nii.gz,ct_0.nii.gz,halves.nii.gz,ct_labels_0.nii.gz"
    _table(folder, "three.csv", [_row(0), bad, _row(1)])
    return folder


@pytest.fixture(scope="module")
def registered(commands, data, tmp_path_factory):
    """The folder and the result of a run over three pairs, of which one can't be registered."""
    output = tmp_path_factory.mktemp("registered") / "out"
    return output, commands.run("register", f"--pairs={data / 'three.csv'}", f"--output={output}", *QUICK)


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _assert_equal(one, other):
    """The same files, and the same numbers in the summaries."""
    one_files, other_files = _content(one), _content(other)
    assert one_files.keys() == other_files.keys()
    assert [name for name in one_files if name not in OF_THE_RUN and one_files[name] != other_files[name]] == []
    summaries = (json.loads(files["summary.json"]) for files in (one_files, other_files))
    left, right = ({key: s[key] for key in s if key not in ("seconds", "command")} for s in summaries)
    assert left == right


def _assert_close(one, other):
    """Equal but for the rounding of convolutions, which differ with the threads that a device has."""
    for name in ("displacement", "inverse_displacement"):
        left, right = (nifti.read_field(folder / f"{name}.nii.gz")[0] for folder in (one, other))
        np.testing.assert_allclose(left, right, atol=1e-4)  # mm
    labels = (nifti.read(folder / "warped_labels.nii.gz").data for folder in (one, other))
    assert np.mean(np.not_equal(*labels)) < 1e-4
    dice = [json.loads((folder / "summary.json").read_text())["mean_dice"] for folder in (one, other)]
    np.testing.assert_allclose(*dice, atol=0.1)


def _rows(output):
    with (output / "summary.csv").open() as file:
        return list(csv.DictReader(file))


def _assert_one_line(result, *words):
    assert result.status == 2 and result.err.count("\n") == 1 and result.err.startswith("error: "), result
    assert all(word in result.err for word in words), result.err


def test_a_pair_that_fails_is_named_at_the_end_and_leaves_the_others(registered, data):
    output, result = registered
    assert result.status == 1
    assert result.err.count("\n") == 1 and result.err.startswith("failed: bad: ")
    assert "halves.nii.gz" in result.err and "whole numbers" in result.err
    assert {path.name for path in output.iterdir()} == {"case0", "case1", "summary.csv", "summary.json"}
    for words in ("3 pairs, 0 finished before", "case0: Dice", "case1: Dice", "2 registered, 1 failed", "mean: Dice"):
        assert words in result.out, result.out
    assert "working grid" not in result.out and "refining" not in result.out


def test_the_summaries_hold_what_the_pairs_hold(registered):
    output, _ = registered
    rows = _rows(output)
    assert [(row["name"], row["status"]) for row in rows] == [("case0", "done"), ("bad", "failed"), ("case1", "done")]
    assert "halves.nii.gz" in rows[1]["reason"] and rows[1]["mean_dice"] == ""
    whole = json.loads((output / "summary.json").read_text())
    dice = []
    for row in (rows[0], rows[2]):
        summary = json.loads((output / row["name"] / "summary.json").read_text())
        assert float(row["mean_dice"]) == summary["mean_dice"]
        assert float(row["mean_dice_before"]) == summary["before"]["mean_dice"]
        assert float(row["similarity_before"]) == summary["similarity"]["initial"]
        assert float(row["similarity"]) == summary["similarity"]["refined"]
        assert float(row["seconds"]) == summary["seconds"]["total"] and row["tre_mm"] == ""
        dice.append(summary["mean_dice"])
    np.testing.assert_allclose(whole["mean"]["mean_dice"], np.mean(dice))
    assert whole["mean"]["tre_mm"] is None and whole["settings"]["spacing"] == SPACING
    assert not any(key.startswith(("fixed", "moving")) for key in whole["settings"])


def test_a_pair_is_registered_as_alone(commands, registered, data, tmp_path):
    sides = {"fixed": "mr", "moving": "ct"}
    given = [f"--{side}={data / name}_1.nii.gz" for side, name in sides.items()]
    given += [f"--{side}_labels={data / name}_labels_1.nii.gz" for side, name in sides.items()]
    alone = commands.run("register", *given, f"--output={tmp_path / 'out'}", *QUICK)
    assert alone.status == 0 and "refining" in alone.out, alone
    _assert_equal(registered[0] / "case1", tmp_path / "out")


def test_a_killed_run_goes_on(commands, registered, data, tmp_path):
    output = tmp_path / "out"
    given = [f"--pairs={data}", f"--output={output}", *QUICK]

    def second_half_written():
        return any(output.glob("case1/.writing-*/new/warped.nii.gz"))

    assert commands.run("register", *given, kill_when=second_half_written).status == -9
    assert [row["status"] for row in _rows(output)] == ["done", "waiting"]
    assert [path.name[:9] for path in (output / "case1").iterdir()] == [".writing-"]
    first = (output / "case0" / "summary.json").stat().st_mtime_ns
    again = commands.run("register", *given)
    assert again.status == 0 and again.err == "" and "2 pairs, 1 finished before" in again.out, again
    assert (output / "case0" / "summary.json").stat().st_mtime_ns == first
    assert {path.name for path in output.iterdir()} == {"case0", "case1", "summary.csv", "summary.json"}
    for name in ("case0", "case1"):
        _assert_equal(registered[0] / name, output / name)


def test_a_result_without_its_summary_is_made_again(commands, registered, data, tmp_path):
    """As a run leaves it that is killed while it moves the files into place."""
    output = shutil.copytree(registered[0], tmp_path / "out")
    for name in ("summary.json", "warped.nii.gz"):
        (output / "case0" / name).unlink()
    before = _content(output / "case1")
    assert commands.run("register", f"--pairs={data}", f"--output={output}", *QUICK).status == 0
    assert _content(output / "case1") == before
    _assert_equal(registered[0] / "case0", output / "case0")


def test_results_of_other_settings_are_replaced_only_if_asked(commands, registered, data, tmp_path):
    output = shutil.copytree(registered[0], tmp_path / "out")
    one = _table(data, "one.csv", [_row(0)])
    given = [f"--pairs={one}", f"--output={output}", *QUICK, "--lam=0.3"]
    before = _content(output / "case0") | {"table": (output / "summary.csv").read_bytes()}
    _assert_one_line(commands.run("register", *given), "case0", "lam is 0.2 there and 0.3 here", "--overwrite")
    assert _content(output / "case0") | {"table": (output / "summary.csv").read_bytes()} == before
    replaced = commands.run("register", *given, "--overwrite")
    assert replaced.status == 0, replaced
    assert json.loads((output / "case0" / "summary.json").read_text())["settings"]["lam"] == 0.3
    again = commands.run("register", *given, "--overwrite")
    assert again.status == 0 and "1 pair, 1 finished before" in again.out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--pairs=DATA", "--fixed=DATA/mr_0.nii.gz"], ["--fixed with --pairs", "columns"]),
        (["--pairs=DATA", "--moving_modality=ct"], ["--moving_modality with --pairs"]),
        (["--pairs=DATA/no"], ["DATA/no", "no such folder"]),
        (["--pairs=DATA/mr_0.nii.gz"], ["mr_0.nii.gz", "pairs.csv"]),
        (["--pairs=DATA/missing.csv"], ["DATA/absent.nii.gz", "no such file"]),
        (["--pairs=DATA/untold.csv"], ["DATA/halves.nii.gz", "name the modality"]),
        (["--pairs=DATA/named.csv"], ["summary.csv", "name"]),
        (["--pairs=DATA", "--checkpoint=DATA"], ["DATA", "no checkpoint"]),
        (["--pairs=DATA", "--affine=DATA/no.txt"], ["no.txt", "no such file"]),
        (["--pairs=DATA", "--output=DATA/pairs.csv"], ["DATA/pairs.csv", "is a file"]),
        (["--pairs=DATA", "--output="], ["--output"]),
        (["--pairs=DATA", "--rows=0-1"], ["--rows is '0-1'", "such as 11-20"]),
        (["--pairs=DATA", "--rows=2-3"], ["--rows is 2-3", "has 2 rows"]),
        (["--fixed=DATA/mr_0.nii.gz", "--moving=DATA/ct_0.nii.gz", "--rows=1-2"], ["--rows without --pairs"]),
        (["--pairs=DATA/missing.csv", "--dry_run"], ["DATA/absent.nii.gz", "no such file"]),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(commands, data, tmp_path, given, words):
    _table(data, "missing.csv", [_row(0), "gone,absent.nii.gz,ct_0.nii.gz,,"])
    _table(data, "untold.csv", [_row(0), "untold,halves.nii.gz,ct_0.nii.gz,,"])
    _table(data, "named.csv", [_row(0, name="summary.csv")])
    before = set(data.iterdir())
    given, words = ([text.replace("DATA", str(data)) for text in texts] for texts in (given, words))
    _assert_one_line(commands.run("register", *QUICK, f"--output={tmp_path / 'out'}", *given), *words)
    assert list(tmp_path.iterdir()) == [] and set(data.iterdir()) == before


def test_two_runs_do_not_write_to_one_folder(commands, data, tmp_path):
    with result_folder.reserved(tmp_path / "out"):
        result = commands.run("register", f"--pairs={data}", f"--output={tmp_path / 'out'}", *QUICK)
    _assert_one_line(result, "another process is writing here")
    assert list(tmp_path.iterdir()) == []


def test_rows_are_registered_next_to_other_processes(commands, registered, data, tmp_path):
    output = tmp_path / "out"
    given = [f"--pairs={data}", f"--output={output}", *QUICK]
    with result_folder.reserved(output, shared=True):
        _assert_one_line(commands.run("register", *given), "another process is writing here")
        second = commands.run("register", *given, "--rows=2-2")
    assert second.status == 0 and "1 pair, 0 finished before" in second.out and "table" not in second.out, second
    assert {path.name for path in output.iterdir()} == {"case1"}
    _assert_equal(registered[0] / "case1", output / "case1")
    with result_folder.reserved(output):
        _assert_one_line(commands.run("register", *given, "--rows=1-1"), "another process is writing here")
    planned = commands.run("register", *given, "--dry_run")
    assert planned.status == 0 and "2 pairs, 1 finished before; all checks passed" in planned.out
    assert {path.name for path in output.iterdir()} == {"case1"}


def test_a_dry_run_of_one_pair_writes_nothing(commands, data, tmp_path):
    given = [f"--fixed={data / 'mr_0.nii.gz'}", f"--moving={data / 'ct_0.nii.gz'}", f"--output={tmp_path / 'out'}"]
    result = commands.run("register", *given, "--dry_run")
    assert result.status == 0 and "nothing is registered" in result.out and list(tmp_path.iterdir()) == []
    _assert_one_line(commands.run("register", *given, "--dry_run", "--fixed_mask=no.nii.gz"), "no.nii.gz")


def test_the_folder_of_one_result_is_no_place_for_many(commands, registered, data):
    output = registered[0] / "case0"
    before = _content(output)
    result = commands.run("register", f"--pairs={data}", f"--output={output}", "--overwrite", *QUICK)
    _assert_one_line(result, str(output), "one pair")
    assert _content(output) == before


@pytest.fixture(scope="module")
def network_alone(finished):
    """Flags: a tiny network and nothing else."""
    return [f"--checkpoint={finished[0]}", "--affine=none", "--norefine", "--spacing=8", "--mind=mind_ssc_near"]


@pytest.mark.parametrize("modalities", [",", "ct,mr"])
def test_a_network_of_the_other_direction_is_refused(commands, data, network_alone, tmp_path, modalities):
    """Also where the table names no modality: then the intensities are looked at before anything is written."""
    columns = "name,fixed,moving,fixed_modality,moving_modality"
    table = _table(data, "turned.csv", [f"turned,ct_0.nii.gz,mr_0.nii.gz,{modalities}"], columns=columns)
    result = commands.run("register", f"--pairs={table}", f"--output={tmp_path / 'out'}", *network_alone)
    _assert_one_line(result, "CT as the moving scan", "mr_0.nii.gz is MR")
    assert list(tmp_path.iterdir()) == []


def _on_devices(count, *given):
    """The command in a process of its own, which heeds Ctrl-C also where the shell ignores it for its children."""
    program = "import command_server, runpy, signal\ncommand_server.register_tiny()\n"
    program += "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "runpy.run_module('f3r_jax.register', run_name='__main__', alter_sys=True)"
    path = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    environment = {"PYTHONPATH": path, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    return subprocess.Popen(
        [sys.executable, "-c", program, *given],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("devices", "finished_ones"), [(1, 0), (2, 2)])
def test_ctrl_c_ends_it_after_the_pairs_at_work_on_several_devices(
    commands, data, network_alone, tmp_path, devices, finished_ones
):
    table = _table(data, "like.csv", [_row(0, name=f"pair{n}") for n in range(3)])
    given = [f"--pairs={table}", f"--output={tmp_path / 'out'}", *network_alone]
    with _on_devices(devices, *given) as process:
        for line in process.stdout:
            if "0 finished before" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130, (out, err)
    assert err == "\ninterrupted; run the same command again to register the remaining pairs\n"
    assert ("waiting for 2 running pairs" in out) == (devices == 2)
    whole = {f"pair{n}" for n in range(finished_ones)}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"summary.csv", "summary.json", *whole}
    assert [row["status"] for row in _rows(tmp_path / "out")].count("done") == finished_ones
    if finished_ones:
        again = commands.run("register", *given)
        assert again.status == 0 and "3 pairs, 2 finished before" in again.out, again


def test_results_are_the_same_on_four_devices(commands, data, network_alone, tmp_path):
    given = [f"--pairs={data}", *network_alone]
    alone = commands.run("register", *given, f"--output={tmp_path / 'one'}")
    assert alone.status == 0 and "on CPU" in alone.out, alone
    with _on_devices(4, *given, f"--output={tmp_path / 'four'}") as process:
        out, err = process.communicate()
    assert process.returncode == 0 and err == "" and "on 4 x CPU" in out, (out, err)
    for name in ("case0", "case1"):
        _assert_close(tmp_path / "one" / name, tmp_path / "four" / name)
    settings = json.loads((tmp_path / "four" / "case0" / "summary.json").read_text())["settings"]
    assert settings["step"] == 6  # of the newest checkpoint, so that a later one counts as another setting


def test_a_network_is_compiled_once_for_pairs_of_like_size(finished, data, tiny_network):
    network = trained_network.load(finished[0]).on(jax.devices()[0])
    for index in (0, 1):
        fixed, moving = (scans.read(data / f"{name}_{index}.nii.gz") for name in ("mr", "ct"))
        volumes = WorkingVolumes(fixed, moving, fixed.image.grid, np.eye(4))
        assert np.isfinite(network_stage.predict_displacement(network, fixed, moving, volumes)).all()
    assert network.predict._cache_size() == 1
