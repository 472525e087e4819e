import csv
import json
import re
import shutil

import jax
import numpy as np
import pytest

from conftest import SHAPE, make_case
from f3r_jax.common import files
from f3r_jax.common.errors import UserError
from f3r_jax.data.datasets import Dataset
from f3r_jax.evaluate import evaluation, metrics, scoring
from f3r_jax.evaluate.inference import Registration
from f3r_jax.evaluate.scores import cases_csv
from f3r_jax.workdir import checkpoints

ORGANS = {"liver", "spleen", "right_kidney", "left_kidney"}
SCORES = ("dice", "asd_mm", "hd95_mm")


@pytest.fixture
def workdir(finished, tmp_path):
    """A run that ended, to be changed at will."""
    return shutil.copytree(finished[0], tmp_path / "copied")


def _summary(workdir):
    return json.loads((workdir / "evaluation" / "summary.json").read_text())


def _rows(workdir):
    with (workdir / "evaluation" / "cases.csv").open() as file:
        return list(csv.DictReader(file))


def _without_seconds(workdir):
    """Everything in the tables that two evaluations share."""
    summary = _summary(workdir)
    del summary["seconds_per_pair"], summary["origin"]  # the run's origin lies beside its checkpoints
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in _rows(workdir)]
    return summary, rows, re.sub(r"[\d.]+ s per pair", "", (workdir / "evaluation" / "table.md").read_text())


def _pictures(workdir):
    return {path.name for path in (workdir / "evaluation").glob("*.png")}


def test_files_and_keys(finished):
    workdir, _ = finished
    names = {row["case"] for row in _rows(workdir)}
    assert len(names) == 2
    drawn = {f"{name}_{kind}.png" for name in names for kind in ("overlay", "checkerboard", "deformation")}
    files = {path.name for path in (workdir / "evaluation").iterdir()}
    kept = {f"{name}.npz" for name in names}
    assert files == {"cases.csv", "summary.json", "table.md", "training.png"} | drawn | kept
    summary = _summary(workdir)
    assert "f3r_jax.main --config=configs/mrb.py" in summary["origin"]["command"]
    assert summary["versions"]["jax"] == jax.__version__ == summary["origin"]["versions"]["jax"]
    assert set(summary) >= {
        *("method", "direction", "cases", "parameters", "step", "seconds_per_pair", "device"),
        *("folding_percent", "sd_log_jacobian", "epe_mm", "organs", "before", "controls"),
    }
    assert (summary["direction"], summary["cases"], summary["step"], summary["device"]) == ("ct_to_mr", 2, 6, "cpu")
    assert set(summary["organs"]) == set(summary["before"]["organs"]) == ORGANS
    for side in (summary, summary["before"]):
        assert set(side["epe_mm"]) == {"mean", "std"}
        assert all(set(scores) == set(SCORES) for scores in side["organs"].values())
    assert summary["seconds_per_pair"] > 0


def test_what_is_kept_of_a_case_is_what_was_scored(finished):
    workdir, _ = finished
    row = _rows(workdir)[0]
    with np.load(workdir / "evaluation" / f"{row['case']}.npz") as kept:
        assert set(kept) == {"displacement", "warped", "warped_labels"}
        assert kept["displacement"].shape == (*SHAPE, 3) and kept["displacement"].dtype == np.float32
        np.testing.assert_allclose(metrics.sd_log_jacobian(kept["displacement"]), float(row["sd_log_jacobian"]))


def test_the_summary_follows_from_the_rows(finished):
    summary, rows = _summary(finished[0]), _rows(finished[0])
    for organ in ORGANS:
        of_organ = [row for row in rows if row["organ"] == organ]
        assert len(of_organ) == 2
        for score in SCORES:
            for side, column in ((summary, score), (summary["before"], f"{score}_before")):
                values = np.array([float(row[column]) for row in of_organ])
                found = side["organs"][organ][score]
                np.testing.assert_allclose(found["mean"], values.mean(), rtol=1e-9)
                assert np.isclose(found["std"], values.std()) or np.isclose(found["std"], values.std(ddof=1))
    cases = list({row["case"]: row for row in rows}.values())
    for key in ("folding_percent", "sd_log_jacobian", "epe_mm"):
        np.testing.assert_allclose(summary[key]["mean"], np.mean([float(row[key]) for row in cases]), rtol=1e-9)
    before = np.mean([float(row["epe_mm_before"]) for row in cases])
    np.testing.assert_allclose(summary["before"]["epe_mm"]["mean"], before, rtol=1e-9)


def test_the_table_shows_the_summary(finished):
    summary, text = _summary(finished[0]), (finished[0] / "evaluation" / "table.md").read_text()
    liver = summary["organs"]["liver"]["dice"]
    (line,) = [line for line in text.splitlines() if line.startswith("| liver |")]
    assert f"{liver['mean']:.2f} ± {liver['std']:.2f}" in line
    means = np.mean([summary["organs"][organ]["dice"]["mean"] for organ in ORGANS])
    (line,) = [line for line in text.splitlines() if line.startswith("| mean |")]
    assert line.split("|")[3].strip() == f"{means:.2f}"


def test_from_the_checkpoint_alone(commands, finished, workdir):
    for path in workdir.iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = commands.run("evaluate", f"--workdir={workdir}", "--pictures=1")
    assert result.status == 0 and result.err == ""
    assert _without_seconds(workdir) == _without_seconds(finished[0])
    assert len(_pictures(workdir) - {"training.png"}) == 3


def test_an_earlier_step(commands, finished, workdir):
    result = commands.run("evaluate", f"--workdir={workdir}", "--step=2", "--pictures=0")
    assert result.status == 0
    assert _summary(workdir)["step"] == 2 and "step 2" in result.out
    assert _summary(workdir)["epe_mm"] != _summary(finished[0])["epe_mm"]


def test_refined_it_is_an_evaluation_of_its_own(commands, finished, workdir):
    before = _without_seconds(workdir)
    result = commands.run("evaluate", f"--workdir={workdir}", "--refine")
    assert result.status == 0, result.err
    assert str(workdir / "evaluation_refined") in result.out
    summary = json.loads((workdir / "evaluation_refined" / "summary.json").read_text())
    assert summary["method"].endswith(" + instance optimisation") and summary["controls"] is not None
    name = next((workdir / "evaluation").glob("*.npz")).name
    fields = [np.load(workdir / folder / name)["displacement"] for folder in ("evaluation", "evaluation_refined")]
    assert np.abs(fields[0] - fields[1]).max() > 0.01
    assert _without_seconds(workdir) == before


def test_killed_half_way_it_goes_on(commands, finished, workdir):
    shutil.rmtree(workdir / "evaluation")
    scored = workdir / "evaluation" / "scored.jsonl"

    def one_done():
        return scored.exists() and scored.read_bytes().count(b"\n") == 1

    assert commands.run("evaluate", f"--workdir={workdir}", "--pictures=0", kill_when=one_done).status == -9
    assert not (workdir / "evaluation" / "summary.json").exists()
    scored.write_bytes(scored.read_bytes() + b'{"step": 6, "na')  # as if killed while it wrote a row
    first = json.loads(scored.read_bytes().splitlines()[0])
    assert commands.run("evaluate", f"--workdir={workdir}", "--pictures=0").status == 0
    assert _without_seconds(workdir) == _without_seconds(finished[0])
    kept = {float(row["seconds"]) for row in _rows(workdir) if row["case"] == first["name"]}
    assert kept == {first["scores"]["seconds"]}  # the case was not scored again
    assert not scored.exists()


def test_killed_after_one_prediction_it_resumes(commands, finished, workdir):
    shutil.rmtree(workdir / "evaluation")
    predictions = workdir / "evaluation" / ".predictions_6"

    def one_done():
        return any(predictions.glob("*.npz"))

    assert commands.run("evaluate", f"--workdir={workdir}", "--pictures=0", kill_when=one_done).status == -9
    assert not (workdir / "evaluation" / "summary.json").exists()
    assert commands.run("evaluate", f"--workdir={workdir}", "--pictures=0").status == 0
    assert _without_seconds(workdir) == _without_seconds(finished[0])
    assert not predictions.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], ["--workdir"]),
        (["--workdir=no/such"], ["no/such", "no such folder"]),
        (["--workdir=RUN", "--step=3"], ["no checkpoint of step 3", "2, 4, 6"]),
        (["--workdir=RUN", "--step=last"], ["step", "last"]),
        (["--workdir=RUN", "more"], ["--workdir"]),
    ],
)
def test_mistakes(commands, workdir, given, words):
    before = sorted(workdir.rglob("*"))
    result = commands.run("evaluate", *(text.replace("RUN", str(workdir)) for text in given))
    assert result.status == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in words)
    assert sorted(workdir.rglob("*")) == before


def test_a_checkpoint_of_another_architecture(commands, workdir):
    path = checkpoints.find(workdir) / "config" / "metadata"
    config = json.loads(path.read_text())
    config["model"]["name"] = "f3rnet"
    path.write_text(json.dumps(config))
    result = commands.run("evaluate", f"--workdir={workdir}")
    assert result.status == 2 and result.err.count("\n") == 1
    assert result.err.startswith(f"error: {workdir}/checkpoints/6: checkpoint of another architecture: ")


@pytest.mark.usefixtures("tiny_network")
def test_no_test_cases(workdir):
    with pytest.raises(UserError, match=r"no test cases"):
        evaluation.evaluate(workdir, dataset=Dataset({"train": (), "validation": (), "test": ()}, {}))


def test_scores_of_a_known_shift():
    """The moving ball lies 2 voxels further along each axis, and so does the field that is judged."""
    case = make_case("ball", 2.0)
    u = np.full((*case.fixed.shape, 3), 2.0, np.float32)
    registered = Registration(u, case.fixed, case.fixed_labels)
    scores = scoring.score(case, registered, {"ball": (1,), "none": (7,)}, seconds=1.0)
    assert scores.after.organs["ball"]["dice"] == 100 and scores.after.organs["ball"]["asd_mm"] == 0
    assert scores.after.epe_mm == 0 and scores.folding_percent == 0
    np.testing.assert_allclose(scores.before.epe_mm, np.linalg.norm([4.0, 4.0, 6.0]), rtol=1e-6)
    assert scores.before.organs["ball"]["dice"] < 80
    assert scores.after.tre_mm is None
    table = cases_csv({"ball": scores})
    assert table.splitlines()[2].startswith("ball,none,")


def test_a_lost_organ_is_null_in_the_summary():
    assert files.json_safe({"a": {"mean": float("nan"), "std": 1.0}, "b": [1]}) == {
        "a": {"mean": None, "std": 1.0},
        "b": [1],
    }
