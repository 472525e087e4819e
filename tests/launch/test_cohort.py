"""launch/cohort.py, with a stand-in for `register` and with `register` itself."""

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

import cohort
import fake_register
from conftest import REPOSITORY, blob, wait_for
from f3r_jax.common.errors import UserError
from f3r_jax.data import nifti
from study import cohort_view, launcher


class Cohort:
    """A table of five pairs, in processes of two rows."""

    names = tuple(f"case{number}" for number in range(5))

    def __init__(self, folder):
        self.folder, self.output, self.table = folder, folder / "out", folder / "pairs.csv"
        rows = [f"{name},{name}_mr.nii.gz,{name}_ct.nii.gz" for name in self.names]
        self.table.write_text("\n".join(["name,fixed,moving", *rows]) + "\n")
        self.arguments = [str(self.table), f"--output={self.output}", "--per_task=2"]

    def behave(self, **behaviours):
        """What happens to pairs: case2="fail"."""
        for name in self.names:
            (self.folder / name).unlink(missing_ok=True)
            if name in behaviours:
                (self.folder / name).write_text(behaviours[name])

    def started(self):
        """The rows of each start, in order."""
        path = self.folder / "starts"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def launch(self, *more):
        return cohort.main([*self.arguments, *more])

    def process(self, *more):
        """The script as a process of its own, which heeds Ctrl-C also where the shell ignores it."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        heed = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        command = [*fake_register.command("launch"), *self.arguments, *more]
        return subprocess.Popen(command, **pipes, **heed, cwd=REPOSITORY)

    def rows(self):
        with (self.output / "summary.csv").open() as file:
            return {row["name"]: row for row in csv.DictReader(file)}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_COHORT", str(tmp_path))
    monkeypatch.setattr(cohort, "REGISTER", fake_register.command("register"))
    monkeypatch.setattr(launcher, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.setattr(cohort_view, "SECONDS_BETWEEN_LOOKS", 0.02)
    return Cohort(tmp_path)


def test_all_pairs_are_registered_and_a_second_launch_has_nothing_to_do(fakes, capfd):
    assert fakes.launch() == 0
    out, err = capfd.readouterr()
    assert fakes.started() == ["1-2", "3-4", "5-5"] and err == ""
    assert "5 pairs: 0 finished; 3 of 3 tasks to do" in out and "5 pairs: 5 registered, 0 failed" in out
    assert "verdicts: 4 ok, 0 check, 1 failed" in out and "verdict failed: case2: it is wrong" in out
    assert {path.name for path in fakes.output.iterdir()} == {*fakes.names, "cohort", "summary.csv", "summary.json"}
    assert [row["mean_dice"] for row in fakes.rows().values()] == ["80.0"] * 5
    summary = json.loads((fakes.output / "summary.json").read_text())
    assert summary["settings"] == {"lam": "0.2"} and len(summary["pairs"]) == 5
    before = (fakes.output / "summary.csv").read_bytes()
    assert fakes.launch() == 0 and len(fakes.started()) == 3
    assert "5 finished; 0 of 3 tasks to do" in capfd.readouterr().out
    assert (fakes.output / "summary.csv").read_bytes() == before
    assert fakes.launch("--strict") == 4


def test_failures_are_listed_and_tried_again(fakes, capfd):
    fakes.behave(case1="fail", case3="crash")
    assert fakes.launch("--jobs=2") == 1
    out, err = capfd.readouterr()
    log = fakes.output / "cohort" / "logs" / "rows_3-4.log"
    killed = f"not registered: case3: killed by signal 9: out of memory, or killed by a user (log: {log})"
    assert err.splitlines() == ["failed: case1: not a scan", killed]
    assert "case1: failed: not a scan" in out and "5 pairs: 3 registered, 1 failed" in out
    rows = fakes.rows()
    assert [rows[name]["status"] for name in fakes.names] == ["done", "failed", "done", "waiting", "done"]
    fakes.behave()
    assert fakes.launch() == 0
    assert sorted(fakes.started()[3:]) == ["1-2", "3-4"]
    assert {row["status"] for row in fakes.rows().values()} == {"done"}


def test_an_interrupted_or_killed_launch_is_resumed(fakes):
    for number, status, starts in ((signal.SIGINT, 130, 2), (signal.SIGKILL, -9, 3)):
        fakes.behave(case3="hold")
        process = fakes.process()
        wait_for(lambda: len(fakes.started()) == starts and (fakes.output / "case2" / "summary.json").exists())  # noqa: B023
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == status and "Traceback" not in err
        assert number == signal.SIGKILL or "launch again to resume" in err
    assert fakes.started() == ["1-2", "3-4", "3-4"]
    fakes.behave()
    assert fakes.launch() == 0
    assert fakes.started()[3:] == ["3-4", "5-5"] and {row["status"] for row in fakes.rows().values()} == {"done"}


def test_other_settings_are_registered_again_if_the_command_does(fakes, capfd):
    assert fakes.launch() == 0
    assert fakes.launch("--lam=0.3") == 0
    assert "0 finished; 3 of 3 tasks to do" in capfd.readouterr().out
    assert json.loads((fakes.output / "summary.json").read_text())["settings"] == {"lam": "0.3"}


def test_a_dry_run_starts_nothing(fakes, capsys):
    assert fakes.launch("--dry_run", "--spacing=2") == 0
    out = capsys.readouterr().out
    assert "\nrows_3-4\n" in out and "--spacing=2 --rows=3-4" in out
    assert fakes.started() == [] and not fakes.output.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--lam=bad"], "--lam is bad"),
        (["--per_task=0"], "--per_task is 0"),
        (["--rows=1-2"], "--rows is set by this script"),
        (["--nojson"], "--json is set by this script"),
        (["more"], "unknown argument 'more'"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(fakes, given, words):
    with pytest.raises(UserError, match=words):
        fakes.launch(*given)
    assert fakes.started() == [] and not fakes.output.exists()


def test_a_pair_cannot_have_the_name_of_the_logs(fakes):
    fakes.table.write_text("name,fixed,moving\ncohort,a.nii.gz,b.nii.gz\n")
    with pytest.raises(UserError, match="a pair is named cohort"):
        fakes.launch()


def test_two_launchers_do_not_share_an_output(fakes):
    fakes.behave(case1="hold")
    process = fakes.process()
    wait_for((fakes.output / "case0" / "summary.json").exists)
    with pytest.raises(UserError, match="another launcher is at work"):
        fakes.launch()
    fakes.behave()
    assert process.wait() == 0


@pytest.mark.slow
def test_a_cohort_continues_register_and_register_finds_it_finished(tmp_path):
    """With `register` itself, on pairs of 16 x 16 x 16 voxels: one pair by it, the others by a cohort."""
    affine = np.diag([20.0, 20.0, 16.0, 1.0])
    rows = ["name,fixed,moving,fixed_modality,moving_modality"]
    for index in range(3):
        nifti.write(tmp_path / f"mr_{index}.nii.gz", 500 * blob(0.0), affine)
        nifti.write(tmp_path / f"ct_{index}.nii.gz", 1900 * blob(0.5 * index) - 1000, affine)
        rows.append(f"case{index},mr_{index}.nii.gz,ct_{index}.nii.gz,mr,ct")
    table, output = tmp_path / "pairs.csv", tmp_path / "out"
    table.write_text("\n".join(rows) + "\n")
    given = [
        f"--output={output}",
        "--affine=none",
        "--spacing=20",
        "--iterations=5",
        "--mind=mind_ssc_near",
        "--checkpoint=none",
    ]
    register = [sys.executable, "-m", "f3r_jax.register", f"--pairs={table}", *given]

    def run(*command):
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)

    alone = run(*register, f"--output={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone
    one = run(*register, "--rows=2-2")
    assert one.returncode == 0 and {path.name for path in output.iterdir()} == {"case1"}, one
    spread = run(sys.executable, "launch/cohort.py", str(table), *given, "--per_task=2")
    assert spread.returncode == 0 and spread.stderr == "", spread
    assert "3 pairs: 1 finished; 2 of 2 tasks to do" in spread.stdout
    again = run(*register)
    assert again.returncode == 0 and "3 pairs, 3 finished before" in again.stdout, again
    for index in range(3):
        files = [
            {path.name: path for path in (folder / f"case{index}").iterdir()} for folder in (tmp_path / "alone", output)
        ]
        assert files[0].keys() == files[1].keys()
        for name in files[0].keys() - {"report.html", "summary.json"}:  # these hold seconds and the command
            assert files[0][name].read_bytes() == files[1][name].read_bytes(), name
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "alone", output)]
    assert summaries[0].keys() == summaries[1].keys() and summaries[0]["settings"] == summaries[1]["settings"]
    refused = run(sys.executable, "launch/cohort.py", str(table), *given, "--lam=0.3")
    assert refused.returncode == 2 and "lam is 0.2 there and 0.3 here" in refused.stderr
