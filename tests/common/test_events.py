"""`--json`: every line that a command prints is an event of the schema in docs/scripts.md."""

import math
import shutil

import numpy as np
import pytest
from absl import flags

from conftest import REPOSITORY, blob
from f3r_jax.common import cli, events
from f3r_jax.common.progress import Progress
from f3r_jax.data import nifti
from json_events import events_of, fits, schema

AFFINE = np.diag([20.0, 20.0, 16.0, 1.0])
QUICK = ("--affine=none", "--spacing=20", "--iterations=5", "--mind=mind_ssc_near")


@pytest.fixture
def as_json():
    events.use_json(True)
    yield
    events.use_json(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two pairs of balls; `three.csv` also has one whose labels are no whole numbers."""
    folder = tmp_path_factory.mktemp("data")
    for index in (0, 1):
        nifti.write(folder / f"mr_{index}.nii.gz", 500 * blob(0.0), AFFINE)
        nifti.write(folder / f"ct_{index}.nii.gz", 1900 * blob(0.5 * index) - 1000, AFFINE)
    nifti.write(folder / "labels.nii.gz", (blob(0.0) > 0.3).astype(np.uint8), AFFINE)
    nifti.write(folder / "halves.nii.gz", np.full((16, 16, 16), 0.5, np.float32), AFFINE)
    rows = [f"case{n},mr_{n}.nii.gz,ct_{n}.nii.gz,," for n in (0, 1)]
    header = "name,fixed,moving,fixed_labels,moving_labels"
    bad = "bad,mr_0.nii.gz,ct_0.nii.gz,halves.nii.gz,labels.nii.gz"
    (folder / "pairs.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "three.csv").write_text("\n".join([header, rows[0], bad, rows[1]]) + "\n")
    return folder


def _good(result, status=0):
    assert result.status == status and result.err == "", result
    return events_of(result.out)


def _kinds(found):
    return [event["event"] for event in found]


def test_the_schema_refuses_what_it_does_not_describe():
    good = {"event": "verdict", "name": "a", "level": "ok", "reason": None}
    assert fits(good, schema())
    for change in ({"event": "end"}, {"level": "fine"}, {"reason": 3}, {"name": True}):
        assert not fits(good | change, schema())
    del good["level"]
    assert not fits(good, schema())


def test_text_and_events_of_one_call(capsys):
    events.emit(events.RESULT, "written: a", of="file", file="a")
    events.line("note: odd header")
    events.error("no\n  file", status=2)
    assert capsys.readouterr() == ("written: a\nnote: odd header\n", "error: no file\n")


def test_events_instead_of_text(as_json, capsys):
    events.emit(events.RESULT, "written: a", of="file", file=REPOSITORY / "a")
    events.line("note: odd header")
    events.line("affine: done")
    events.error("no\n  file", status=2)
    with Progress("training", 1) as progress:
        progress.note("step 0")
        progress.advance(loss=math.nan)
    out, err = capsys.readouterr()
    found = events_of(out)
    assert err == "" and found[0]["file"] == str(REPOSITORY / "a")
    assert found[1] == {"event": "warning", "message": "odd header"} and found[2]["message"] == "affine: done"
    assert found[3] == {"event": "error", "message": "no file", "status": 2}
    assert found[5]["values"] == {"loss": None} and (found[5]["done"], found[5]["total"]) == (1, 1)


def test_only_a_boolean_flag_chooses_json(monkeypatch):
    of_benchmark, of_register = flags.FlagValues(), flags.FlagValues()
    flags.DEFINE_string("json", None, "A file.", flag_values=of_benchmark)
    flags.DEFINE_bool("json", False, cli.JSON_HELP, flag_values=of_register)
    monkeypatch.setattr(cli.flags, "FLAGS", of_benchmark)
    assert not cli._wants_json(["--json"])
    monkeypatch.setattr(cli.flags, "FLAGS", of_register)
    given = (["--json"], ["-json"], ["--json=true"], ["--nojson", "--json"], ["--json", "--nojson"], [])
    assert [cli._wants_json(each) for each in given] == [True, True, True, True, False, False]


def test_one_pair_and_apply(commands, data, tmp_path):
    given = [f"--fixed={data / 'mr_1.nii.gz'}", f"--moving={data / 'ct_1.nii.gz'}", f"--output={tmp_path / 'out'}"]
    found = _good(commands.run("register", *given, *QUICK, "--json"))
    assert _kinds(found)[0] == "start" and _kinds(found)[-2:] == ["result", "verdict"]
    assert found[0]["command"] == "register" and "--json" in found[0]["arguments"]
    assert "progress" in _kinds(found) and found[-2]["summary"] == str(tmp_path / "out" / "summary.json")
    assert found[-2]["name"] == "out" and found[-1]["level"] == found[-2]["verdict"]
    warped = tmp_path / "warped.nii.gz"
    given = [f"--transform={tmp_path / 'out'}", f"--image={data / 'ct_1.nii.gz'}", f"--output={warped}", "--json"]
    found = _good(commands.run("apply", *given))
    assert _kinds(found) == ["start", "result"] and found[1]["file"] == str(warped) and warped.exists()
    found = _good(commands.run("apply", *given), status=2)
    assert _kinds(found) == ["start", "error"] and found[1]["status"] == 2 and "exists" in found[1]["message"]


def test_mistakes_are_events(commands, data, tmp_path):
    found = _good(commands.run("register", "--json", "--fixed=no.nii.gz"), status=2)
    assert _kinds(found) == ["start", "error"] and found[1]["message"].startswith("--moving is missing")
    found = _good(commands.run("register", "--json", "--no_such_flag"), status=2)
    assert _kinds(found) == ["error"] and "no_such_flag" in found[0]["message"]
    found = _good(commands.run("main", "--json", "--config.train.nothing=3", "--config=configs/mrb.py"), status=2)
    assert _kinds(found) == ["error"]
    found = _good(commands.run("evaluate", "--json", f"--workdir={tmp_path / 'no'}"), status=2)
    assert _kinds(found) == ["start", "error"]


def test_a_table_of_pairs(commands, data, tmp_path):
    given = [f"--output={tmp_path / 'out'}", *QUICK, "--json"]
    found = _good(commands.run("register", f"--pairs={data / 'three.csv'}", *given), status=1)
    results = [event for event in found if event["event"] == "result"]
    assert [(event["of"], event["status"]) for event in results[:3]] == [
        ("pair", state) for state in ("done", "failed", "done")
    ]
    whole = results[3]
    assert (whole["of"], whole["pairs"], whole["done"], whole["failed"]) == ("pairs", 3, 2, 1)
    assert sum(whole["verdicts"].values()) == 2 == _kinds(found).count("verdict")
    (error,) = (event for event in found if event["event"] == "error")
    assert error["name"] == "bad" and error["status"] == 1 and "whole numbers" in error["message"]
    again = _good(commands.run("register", f"--pairs={data / 'pairs.csv'}", *given))
    known = [event for event in again if event["event"] == "result"]
    assert known[0] == results[0] and known[1] == results[2] and known[2]["done"] == 2


def test_training_and_evaluation(commands, arguments, finished, tmp_path):
    changes = {"train.steps": 2, "train.validate_every": 1}
    found = _good(commands.run("main", *arguments(changes), "--json"))
    (result,) = (event for event in found if event["event"] == "result")
    assert result["of"] == "evaluation" and result["scores"]["step"] == 2
    assert result["folder"] == str(tmp_path / "run" / "evaluation")
    trained = [event for event in found if event.get("task") == "training"]
    assert trained[-1]["done"] == trained[-1]["total"] == 2 and trained[-1]["values"]["loss"] > 0
    run = shutil.copytree(finished[0], tmp_path / "copy")
    found = _good(commands.run("evaluate", f"--workdir={run}", "--pictures=0", "--json"))
    assert [event["of"] for event in found if event["event"] == "result"] == ["evaluation"]
