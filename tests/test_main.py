import csv
import json
import math
import os
import shutil
import subprocess
import sys

import jax
import nibabel
import numpy as np
import pytest

from conftest import REPOSITORY, SHAPE, blob
from f3r_jax import models
from f3r_jax.common import result_folder
from f3r_jax.data import nifti
from f3r_jax.workdir import checkpoints
from f3r_jax.workdir.log import read_rows
from f3r_jax.workdir.metadata import check_same_run, write_config

AFFINE = np.diag([20.0, 20.0, 16.0, 1.0])


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _contents(folder, *names):
    return {path.relative_to(folder): path.read_bytes() for name in names for path in folder.glob(name)}


def _assert_one_line(result, *words):
    assert result.status == 2, result
    assert "Traceback" not in result.err
    lines = result.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.err
    for word in words:
        assert str(word) in lines[0]


def _parameters(workdir):
    """Those of the newest checkpoint."""
    checkpoint = checkpoints.find(workdir)
    network = models.build(checkpoints.load_config(checkpoint).model)
    expected = jax.eval_shape(lambda key: models.initialise(network, key), jax.random.key(0))
    return checkpoints.load_params(checkpoint, expected)


def _assert_same_parameters(one, other):
    jax.tree.map(np.testing.assert_array_equal, _parameters(one), _parameters(other))


# A run that goes well


def test_a_run_leaves_its_files_and_no_noise(finished):
    workdir, result = finished
    assert result.status == 0, result.err
    assert result.err == ""
    assert sorted(path.name for path in workdir.iterdir()) == [
        "checkpoints",
        "config.json",
        "evaluation",
        "metrics.jsonl",
        "origin.json",
        "tensorboard",
    ]
    assert checkpoints.steps(workdir) == [2, 4, 6]
    for text in ("training 6/6", "step 6: validation dice", "| liver |", f"evaluation: {workdir / 'evaluation'}"):
        assert text in result.out


def test_a_loss_that_is_not_finite_ends_with_status_1(commands, arguments, tmp_path):
    diverging = {"optim.learning_rate": 1e30, "optim.warmup_steps": 0, "train.checkpoint_every": 1}
    result = commands.run("main", *arguments(diverging))
    assert result.status == 1
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("error: the loss is not finite at step ") and "phantom_000" in result.err
    last = max(row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert checkpoints.steps(tmp_path / "run")[-1] == last
    assert f"at step {last + 1} " in result.err and f"step {last} is the last good one" in result.err
    assert commands.run("evaluate", f"--workdir={tmp_path / 'run'}", "--pictures=0").status == 0


# A run without --workdir


@pytest.fixture
def elsewhere(tmp_path):
    """A folder to give commands in, with the configs."""
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "more", "folders"),
    [
        ("configs/mrb.py", [], ["runs/mrb"]),
        ("configs/mrb.py:paper", [], ["runs/mrb_paper"]),
        ("configs/vm2.py:paper", ["--lambdas=2,0.5"], ["runs/vm2_paper_lam0.5", "runs/vm2_paper_lam2"]),
    ],
)
def test_a_run_goes_to_a_folder_named_after_its_config(commands, arguments, elsewhere, spec, more, folders):
    short = {"data.source": "phantom", "train.steps": 1, "train.checkpoint_every": 1}
    given = [*arguments(short, workdir=None, config=spec), *more]
    result = commands.run("main", *given, cwd=elsewhere)
    assert result.status == 0 and result.err == ""
    assert f"no --workdir given, writing to {', '.join(folders)}" in result.out.splitlines()
    assert sorted(str(path.relative_to(elsewhere)) for path in (elsewhere / "runs").iterdir()) == folders
    assert all((elsewhere / folder / "evaluation" / "summary.json").exists() for folder in folders)
    if not more:
        refused = commands.run("main", *given, "--config.seed=7", cwd=elsewhere)
        _assert_one_line(refused, folders[0], "another config", "seed", "choose another folder with --workdir=FOLDER")
        assert refused.out == ""


# Two runs of one folder


def test_a_folder_in_which_another_process_trains_is_refused(commands, arguments, tmp_path):
    with result_folder.reserved(tmp_path / "lam2"):
        together = commands.run("main", *arguments(workdir=tmp_path / "lam{lam}"), "--lambdas=0.5,2")
        alone = commands.run("main", *arguments(workdir=tmp_path / "lam2"))
    for result in (together, alone):
        assert result.status == 2 and result.err.count("\n") == 1, result
        assert f"error: {tmp_path / 'lam2'}: another process is writing here" in result.err
        assert "training" not in result.out
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_the_training(commands, arguments, tmp_path):
    (tmp_path / "file").touch()
    result = commands.run("main", *arguments(workdir=tmp_path / "file" / "run"))
    assert result.status == 2 and result.err.count("\n") == 1 and "a part of the path is a file" in result.err, result


def test_two_evaluations_of_a_run_are_refused(commands, finished):
    with result_folder.reserved(finished[0] / "evaluation"):
        result = commands.run("evaluate", f"--workdir={finished[0]}")
    assert result.status == 2 and result.err.count("\n") == 1 and "another process is writing here" in result.err
    assert (finished[0] / "evaluation" / "summary.json").exists()


# A run that is killed


def _kill_and_end(commands, given, workdir, moment):
    """Kills a run at a moment, and its second start once the training is over."""
    assert commands.run("main", *given, kill_when=moment).status == -9
    assert commands.run("main", *given, kill_when=(workdir / "evaluation").exists).status == -9


@pytest.mark.usefixtures("tiny_network")
def test_killed_while_a_checkpoint_is_written(commands, arguments, finished, tmp_path):
    workdir = tmp_path / "run"
    _kill_and_end(commands, arguments(), workdir, lambda: any((workdir / "checkpoints").glob("4.*tmp*")))
    assert _contents(workdir, "metrics.jsonl") == _contents(finished[0], "metrics.jsonl")
    assert checkpoints.steps(workdir) == [2, 4, 6]
    _assert_same_parameters(workdir, finished[0])


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_network")
@pytest.mark.parametrize("rows", range(8))
def test_killed_after_some_rows(commands, arguments, finished, tmp_path, rows):
    workdir, log = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    _kill_and_end(commands, arguments(), workdir, lambda: log.exists() and log.read_bytes().count(b"\n") >= rows)
    assert _contents(workdir, "metrics.jsonl") == _contents(finished[0], "metrics.jsonl")
    _assert_same_parameters(workdir, finished[0])


@pytest.mark.usefixtures("tiny_network")
def test_lambdas_as_one_program_survive_a_kill(commands, arguments, tmp_path):
    whole, killed = (
        [*arguments(workdir=tmp_path / f"{kind}{{lam}}"), "--lambdas=0.5,2"] for kind in ("whole", "killed")
    )
    result = commands.run("main", *whole)
    assert result.status == 0 and result.err == "" and result.out.count("evaluation: ") == 2
    log = tmp_path / "killed2" / "metrics.jsonl"
    commands.run("main", *killed, kill_when=lambda: log.exists() and log.read_bytes().count(b"\n") >= 4)
    assert commands.run("main", *killed).status == 0
    for lam in ("0.5", "2"):
        folders = [tmp_path / f"{kind}{lam}" for kind in ("killed", "whole")]
        _assert_same_parameters(*folders)
        one, other = (_contents(folder, "metrics.jsonl") for folder in folders)
        assert one == other
        assert json.loads((folders[0] / "config.json").read_text())["loss"]["lam"] == float(lam)
        assert (folders[0] / "evaluation" / "summary.json").exists()


def test_killed_before_its_config_was_written(config, tmp_path):
    (tmp_path / "config.json.tmp").write_text('{"half')  # of an earlier version
    (tmp_path / ".writing-abc").mkdir()
    (tmp_path / ".writing-abc" / "config.json").write_text('{"half')
    check_same_run(config, tmp_path)
    write_config(config, tmp_path)
    check_same_run(config, tmp_path)
    assert _files(tmp_path) == ["config.json"]


# NIfTI pairs


def test_pairs_with_landmarks_and_no_labels(commands, arguments, pairs_folder, tmp_path):
    (pairs_folder / "points.csv").write_text("x,y,z\n100,100,100\n160,150,120\n")
    (pairs_folder / "shifted.csv").write_text("x,y,z\n103,104,100\n163,154,120\n")
    rows = (pairs_folder / "pairs.csv").read_text().splitlines()
    rows = [f"{rows[0]},fixed_landmarks,moving_landmarks", *(f"{row},points.csv,shifted.csv" for row in rows[1:])]
    (pairs_folder / "pairs.csv").write_text("\n".join(rows))
    changes = {"data.source": "nifti", "data.root": pairs_folder, "data.cases": 0, "train.steps": 1}
    result = commands.run("main", *arguments(changes))
    assert result.status == 0 and result.err == ""
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    assert summary["organs"] == {} and summary["before"]["organs"] == {} and summary["epe_mm"] is None
    assert math.isclose(summary["before"]["tre_mm"]["mean"], 5.0, rel_tol=1e-4)
    assert summary["tre_mm"]["mean"] > 0
    table = (tmp_path / "run" / "evaluation" / "table.md").read_text()
    assert "folding" in table and "landmark error 5.00" in table
    with (tmp_path / "run" / "evaluation" / "cases.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == "mr_3" and row["organ"] == "" and row["epe_mm"] == ""


@pytest.mark.slow
def test_the_real_pair(commands, arguments, tmp_path):
    """Two people's scans in unrelated frames: three steps of F3RNet-MRB at a small size, then its evaluation."""
    if "F3R_REAL_PAIR" not in os.environ:
        pytest.skip("F3R_REAL_PAIR names no folder with ct.nii.gz, mr.nii.gz and their label maps")
    folder = shutil.copytree(os.environ["F3R_REAL_PAIR"], tmp_path / "pairs", copy_function=shutil.copyfile)
    row = "mr.nii.gz,ct.nii.gz,mr_label.nii.gz,ct_label.nii.gz"
    rows = ["fixed,moving,fixed_labels,moving_labels,split", *(f"{row},{s}" for s in ("train", "train", "test"))]
    (folder / "pairs.csv").write_text("\n".join(rows))
    changes = {
        "model.name": "f3rnet",
        "data.source": "nifti",
        "data.root": folder,
        "data.cases": 0,
        "data.validation_cases": 0,
        "data.shape": (32, 32, 16),
        "data.spacing": (9.0, 9.0, 9.0),
        "train.steps": 3,
    }
    _assert_one_line(commands.run("main", *arguments(changes)), "does not overlap", "body_centre")
    result = commands.run("main", *arguments(changes | {"data.initialisation": "body_centre"}))
    assert result.status == 0 and result.err == ""
    evaluated = commands.run("evaluate", f"--workdir={tmp_path / 'run'}")
    assert evaluated.status == 0 and evaluated.err == ""
    summary = json.loads((tmp_path / "run" / "evaluation" / "summary.json").read_text())
    assert summary["cases"] == 1 and summary["parameters"] == 297289
    assert 20 < summary["before"]["organs"]["liver"]["dice"]["mean"] < 100


# Mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"foo.bar": 1}, ["foo"]),
        ({"loss.lamb": 1}, ["lamb"]),
        ({"train.steps": "many"}, ["train.steps", "many"]),
        ({"loss.lam": "heavy"}, ["loss.lam", "heavy"]),
        ({"data.shape": 5}, ["data.shape"]),
        ({"data.shape": ()}, ["data.shape"]),
        ({"data.shape": (16, 16)}, ["data.shape", "(16, 16)"]),
        ({"data.shape": (16, 15, 16)}, ["data.shape", "16 x 15 x 16", "too small"]),
        ({"data.spacing": (1.0, 0.0, 1.0)}, ["data.spacing"]),
        ({"data.cases": 4}, ["data.cases", "4 cases"]),
        ({"data.source": "dicom"}, ["data.source", "dicom", "nifti"]),
        ({"data.direction": "up"}, ["data.direction", "up", "mr_to_ct"]),
        ({"data.initialisation": "body_centre"}, ["data.initialisation", "header"]),
        ({"data.source": "nifti", "data.root": "no/such"}, ["no/such", "no such folder"]),
        ({"model.name": "unet"}, ["model.name", "unet", "f3rnet"]),
        ({"model.name": "f3rnet", "model.variant": "half"}, ["model.variant", "half", "mrb"]),
        ({"loss.mind": "ngf"}, ["loss.mind", "ngf", "mind_ssc"]),
        ({"train.steps": 0}, ["train.steps", "0"]),
        ({"train.batch_size": 0}, ["train.batch_size is 0"]),
        ({"seed": -1}, ["seed is -1", "0 to 4294967295"]),
        ({"train.lerning_rate": 1}, ["--config.train.lerning_rate", "no key 'lerning_rate'"]),
        ({"data.unoriented": "up"}, ["data.unoriented", "up", "RAS"]),
        ({"data.shape": (160000, 160000, 160000)}, ["data.shape=160000,160000,160000", "GB"]),
    ],
)
def test_a_setting_that_is_wrong(commands, arguments, tmp_path, changes, words):
    _assert_one_line(commands.run("main", *arguments(changes)), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--workdir=WORK"], ["--config"]),
        (["--config=configs/mrb.py:paper"], ["data.root"]),
        (["--config=configs/mrb.py", "--workdir=WORK", "--lambdas=1,2"], ["--workdir", "{lam}"]),
        (["--config=configs/mrb.py", "--workdir=WORK{lam}", "--lambdas=1,two"], ["--lambdas", "two"]),
        (["--config=configs/mrb.py", "--workdir=WORK{lam}", "--lambdas=-1,2"], ["loss.lam", "-1"]),
        (["--config=configs/syn.py", "--workdir=WORK{lam}", "--lambdas=1,2"], ["--lambdas", "not trained"]),
        (["--config=configs/none.py", "--workdir=WORK"], ["configs/none.py"]),
        (["--config=configs/mrb.py:foo", "--workdir=WORK"], ["foo", "paper"]),
        (["--config=configs/mrb.py:paper", "--workdir=WORK"], ["data.root"]),
        (["--config=configs/mrb.py", "--workdir=WORK", "--steps=3"], ["steps"]),
        (["--config=configs/mrb.py", "--workdir=WORK", "steps"], ["steps"]),
    ],
)
def test_a_command_line_that_is_wrong(commands, tmp_path, given, words):
    workdir = tmp_path / "run"
    _assert_one_line(commands.run("main", *(text.replace("WORK", str(workdir)) for text in given)), *words)
    assert not workdir.exists()


def _rows(folder, *rows):
    (folder / "pairs.csv").write_text("\n".join(rows) + "\n")


def _four(row, columns="fixed,moving"):
    return [columns, *[row] * 4]


def _no_column(folder):
    _rows(folder, *_four("ct_0.nii.gz", columns="moving"))
    return ["pairs.csv", "fixed"]


def _no_file(folder):
    (folder / "ct_2.nii.gz").unlink()
    return ["ct_2.nii.gz", "no such file"]


def _no_table(folder):
    (folder / "pairs.csv").unlink()
    return [folder, "pairs.csv"]


def _no_nifti(folder):
    (folder / "ct_2.nii.gz").write_text("These are no voxels.")
    return ["ct_2.nii.gz", "NIfTI"]


def _truncated(folder):
    path = folder / "ct_2.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return ["ct_2.nii.gz", "truncated"]


def _four_dimensional(folder):
    nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 2), np.float32), AFFINE), folder / "ct_2.nii.gz")
    return ["ct_2.nii.gz", "4-D", "16 x 16 x 16 x 2"]


def _label_grid(folder):
    nifti.write(folder / "labels.nii.gz", np.zeros((16, 16, 12), np.uint8), AFFINE)
    _rows(folder, *_four("mr_0.nii.gz,ct_0.nii.gz,labels.nii.gz", columns="fixed,moving,fixed_labels"))
    return ["labels.nii.gz", "mr_0.nii.gz"]


def _voxel(value):
    def break_it(folder):
        voxels = blob(0.0)
        voxels[3, 4, 5] = value
        nifti.write(folder / "mr_1.nii.gz", voxels, AFFINE)
        return ["mr_1.nii.gz", "NaN or infinite"]

    return break_it


def _singular(folder):
    image = nibabel.Nifti1Image(blob(0.0), None)
    image.header.set_sform(np.diag([2.0, 2.0, 0.0, 1.0]), code=1)
    nibabel.save(image, folder / "ct_2.nii.gz")
    return ["ct_2.nii.gz", "singular affine"]


def _swapped(folder):
    splits = ("train", "train", "validation", "test")
    _rows(folder, "fixed,moving,split", *(f"ct_0.nii.gz,mr_0.nii.gz,{split}" for split in splits))
    return ["mr_0.nii.gz", "stated to be a CT", "data.check_modality=False"]


def _no_orientation(folder):
    nibabel.save(nibabel.Nifti1Image(600 * blob(0.0) - 150, None), folder / "ct_2.nii.gz")  # both codes are 0
    return ["ct_2.nii.gz", "no orientation", "unoriented"]


def _one_to_train_on(folder):
    _rows(folder, "fixed,moving,split", "mr_0.nii.gz,ct_0.nii.gz,train", "mr_1.nii.gz,ct_1.nii.gz,test")
    return [folder, "1 train"]


def _none_to_test_on(folder):
    _rows(folder, "fixed,moving,split", *["mr_0.nii.gz,ct_0.nii.gz,train"] * 3)
    return [folder, "0 test"]


@pytest.mark.parametrize(
    "break_it",
    [
        _no_column,
        _no_file,
        _no_table,
        _no_nifti,
        _truncated,
        _four_dimensional,
        _label_grid,
        pytest.param(_voxel(np.nan), id="nan"),
        pytest.param(_voxel(np.inf), id="infinite"),
        _singular,
        _swapped,
        _no_orientation,
        _one_to_train_on,
        _none_to_test_on,
    ],
)
def test_data_that_are_wrong(commands, arguments, pairs_folder, tmp_path, break_it):
    words = break_it(pairs_folder)
    changes = {"data.source": "nifti", "data.root": pairs_folder, "data.cases": 0}
    _assert_one_line(commands.run("main", *arguments(changes)), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"loss.lam": 0.25}, ["loss.lam", "0.25", "1.0"]), ({"seed": 7}, ["seed", "7"]), ({"train.steps": 9}, ["9", "6"])],
)
def test_a_workdir_of_another_config(commands, arguments, finished, tmp_path, changes, words):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = _files(workdir)
    _assert_one_line(commands.run("main", *arguments(changes)), workdir, "another config", *words)
    assert _files(workdir) == before


def test_a_workdir_that_is_no_run(commands, arguments, tmp_path):
    workdir = tmp_path / "run"
    workdir.write_text("a file")
    _assert_one_line(commands.run("main", *arguments()), workdir, "is a file")
    workdir.unlink()
    workdir.mkdir()
    (workdir / "thesis.tex").write_text("precious")
    _assert_one_line(commands.run("main", *arguments()), workdir, "config.json")
    (workdir / "config.json").write_text("{")
    _assert_one_line(commands.run("main", *arguments()), workdir / "config.json", "not JSON")
    assert _files(workdir) == ["config.json", "thesis.tex"]


@pytest.mark.slow
def test_f3rnet_survives_kills(commands, arguments, tmp_path):
    """The real network, killed again and again, ends with the parameters of an undisturbed run, to the bit."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = {"model.name": "f3rnet", "optim.decay": "cosine"}
    assert commands.run("main", *arguments(changes, workdir=whole)).status == 0
    log = killed / "metrics.jsonl"
    moments = [
        lambda: log.exists() and log.read_bytes().count(b"\n") >= 3,
        lambda: any((killed / "checkpoints").glob("4.*tmp*")),
        lambda: any((killed / "evaluation").glob("*.png")),
    ]
    for moment in moments:
        assert commands.run("main", *arguments(changes, workdir=killed), kill_when=moment).status == -9
    assert commands.run("main", *arguments(changes, workdir=killed)).status == 0
    assert log.read_bytes() == (whole / "metrics.jsonl").read_bytes()
    _assert_same_parameters(whole, killed)


def test_as_a_user_would(tmp_path):
    """The one test that starts Python anew: the module runs from the command line, and a mistake is one line."""
    ended = subprocess.run(
        [sys.executable, "-m", "f3r_jax.main", "--config=configs/mrb.py:foo", f"--workdir={tmp_path / 'run'}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2 and ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.startswith("error: ")
