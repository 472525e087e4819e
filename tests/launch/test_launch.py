import contextlib
import fcntl
import json
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import termios

import pytest

import ablation
import compare
import engine_ablation
import fake_runs
import lambda_sweep
import paper
from conftest import REPOSITORY, TINY_CONFIG, wait_for
from f3r_jax.common.errors import UserError
from f3r_jax.config import CT_PHASES, MR_SEQUENCES
from study import launcher, local, runs
from study.arguments import make_parser, parse

SETTINGS = {key: TINY_CONFIG[key] for key in TINY_CONFIG if key.startswith(("data.", "train."))}
SEVEN = ["wo_f3d", "w_f3d", "enc", "dec", "fr", "ms", "mrb"]


def options(output, *given):
    return parse(make_parser("", str(output)), list(given))


def names(plan):
    return [run.name for run in runs.unique(plan)]


def is_alive(pid):
    try:
        return "\nState:\tZ" not in open(f"/proc/{pid}/status").read()
    except FileNotFoundError:
        return False


class Study:
    """A sweep of mrb.py over three lambdas with the fake main job."""

    names = tuple(f"mrb_lam{lam}_ct_to_mr_seed0" for lam in ("0.5", "1", "2"))

    def __init__(self, folder, phantoms):
        self.folder, self.output = folder, folder / "study"
        settings = (f"--config.{key}={value}" for key, value in (SETTINGS | {"data.root": phantoms}).items())
        self.arguments = ["configs/mrb.py", "--lambdas=0.5,1,2", f"--output={self.output}", *settings]

    def starts(self):
        """(run, process, number of cores) of each start, in order."""
        path = self.folder / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, int(pid), int(cores)) for name, pid, cores in map(str.split, lines)]

    def started(self):
        return [name for name, _, _ in self.starts()]

    def behave(self, **behaviours):
        """What the runs of the lambdas do: lam2="fail"."""
        for name in self.names:
            (self.folder / name).unlink(missing_ok=True)
            if (key := name.split("_")[1].replace(".", "")) in behaviours:
                (self.folder / name).write_text(behaviours[key])

    def steps(self, name):
        return [json.loads(line)["step"] for line in (self.output / name / "metrics.jsonl").read_text().splitlines()]

    def waits(self, name):
        """Whether the run has come to the step where it is held."""
        return (self.output / name / "metrics.jsonl").exists() and self.steps(name) == [1, 2]

    def launch(self, *more):
        return lambda_sweep.main([*self.arguments, *more])

    def process(self, *more, ignored=()):
        """The launcher as a process of its own, which heeds all signals but those ignored, as under nohup."""

        def heed():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

        command = [*fake_runs.command("launch"), "lambda_sweep", *self.arguments, *more]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, **pipes, cwd=REPOSITORY, preexec_fn=heed)


@pytest.fixture
def study(tmp_path, phantoms, monkeypatch):
    monkeypatch.setenv("FAKE_RUNS", str(tmp_path))
    monkeypatch.setattr(runs, "MAIN", fake_runs.command("main"))
    monkeypatch.setattr(launcher, "REPORT_COMMAND", fake_runs.command("report"))
    monkeypatch.setattr(launcher, "SECONDS_BETWEEN_LOOKS", 0.02)
    monkeypatch.chdir(REPOSITORY)
    return Study(tmp_path, phantoms)


# Plans


def test_a_sweep_is_each_config_at_each_lambda(tmp_path):
    given = options(tmp_path, "--seeds=0,3")
    plan = lambda_sweep.plan(["configs/mrb.py", "configs/vm2.py"], given, lambdas=(0.5, 2.0), direction="mr_to_ct")
    expected = [f"{n}_lam{lam}_mr_to_ct_seed{s}" for n in ("mrb", "vm2") for lam in ("0.5", "2") for s in (0, 3)]
    assert names(plan) == expected
    assert plan[1].workdir == tmp_path / expected[1]
    assert plan[1].config.loss.lam == 0.5 and plan[1].config.seed == 3
    command = plan[1].command
    assert command[:4] == [sys.executable, "-m", "f3r_jax.main", "--config=configs/mrb.py"]
    assert "--config.loss.lam=0.5" in command and "--config.data.direction=mr_to_ct" in command


def test_lambdas_of_a_sweep_go_with_the_size(tmp_path):
    small = lambda_sweep.plan(["configs/mrb.py"], options(tmp_path))
    assert [run.config.loss.lam for run in small] == [0.1, 0.25, 0.5, 1, 2]
    for plan in (
        lambda_sweep.plan(["configs/mrb.py:paper"], options(tmp_path)),
        lambda_sweep.plan(["configs/mrb.py"], options(tmp_path, "--data=pairs")),
    ):
        assert [run.config.loss.lam for run in plan] == [0.5, 1, 1.5, 2, 3]
        assert plan[0].name == "mrb_paper_lam0.5_ct_to_mr_seed0"
        assert plan[0].config.train.steps == 40_000
    assert plan[0].config.data.root == "pairs"


def test_the_ablation_is_the_seven_variants_at_their_own_lambda(tmp_path):
    plan = ablation.plan(options(tmp_path, "--data=pairs"))
    assert [run.config.model.variant for run in plan] == SEVEN
    lambdas = {run.config.model.variant: run.config.loss.lam for run in plan}
    assert lambdas == {variant: 2.0 if variant in ("enc", "ms") else 1.5 for variant in SEVEN}


def test_the_comparison_has_six_systems_in_both_directions(tmp_path):
    plan = compare.plan(options(tmp_path))
    systems = ["syn", "voxelmorph1", "voxelmorph2", "faim", "f3rnet", "f3rnet"]
    assert [run.config.model.name for run in plan] == systems * 2
    assert [run.config.data.direction for run in plan] == ["ct_to_mr"] * 6 + ["mr_to_ct"] * 6
    assert names(plan)[0] == "syn_ct_to_mr_seed0"


def whole_study(tmp_path, *more):
    return paper.plan(paper.options_of([f"--output={tmp_path}", *more]))


def test_the_whole_study_has_each_run_once(tmp_path):
    """All systems with three seeds, in both directions of Table 3; two lambdas more for three networks and one seed."""
    found = names(whole_study(tmp_path))
    networks, both = [*SEVEN, "vm1", "vm2", "faim"], ["vm1", "vm2", "faim", "wo_f3d", "mrb"]
    expected = {f"{name}_lam0.8_ct_to_mr_seed{s}" for name in networks for s in range(3)}
    expected |= {f"{name}_lam0.8_mr_to_ct_seed{s}" for name in both for s in range(3)}
    expected |= {f"syn_{direction}_seed{s}" for direction in ("ct_to_mr", "mr_to_ct") for s in range(3)}
    expected |= {f"{name}_lam{lam}_ct_to_mr_seed0" for name in ("mrb", "wo_f3d", "vm2") for lam in (0.4, 1.6)}
    assert len(found) == len(expected) == 57 and set(found) == expected
    seeds = [int(name[-1]) for name in found]
    assert seeds == sorted(seeds)


def test_the_whole_study_trains_as_the_configs_say(tmp_path):
    plan = whole_study(tmp_path, "--seeds=7")
    assert {run.config.seed for run in plan} == {7}
    for run in plan:
        default = runs.load_config(run.spec, ())
        assert run.config.data.shape == default.data.shape
        if runs.is_trained(run.config):
            assert run.config.train.steps == default.train.steps


def test_the_quick_study_is_small_and_has_each_run_once(tmp_path):
    plan = whole_study(tmp_path, "--quick", "--config.train.steps=7")
    expected = {f"{name}_lam{lam}_ct_to_mr_seed0" for name in [*SEVEN, "vm1", "vm2", "faim"] for lam in (0.25, 0.5, 1)}
    expected |= {f"{name}_lam0.5_mr_to_ct_seed0" for name in ("vm1", "vm2", "faim", "wo_f3d", "mrb")}
    expected |= {"syn_ct_to_mr_seed0", "syn_mr_to_ct_seed0"}
    assert len(names(plan)) == len(expected) == 37 and set(names(plan)) == expected
    assert {(tuple(run.config.data.shape), run.config.data.source) for run in plan} == {((48, 32, 32), "phantom")}
    assert {run.config.train.steps for run in plan if runs.is_trained(run.config)} == {7}


def test_the_study_of_own_data_has_the_papers_size(tmp_path):
    whole = whole_study(tmp_path, "--data=pairs")
    assert {(tuple(r.config.data.shape), r.config.data.root) for r in whole} == {((144, 144, 128), "pairs")}
    # Each variant's own lambda is among those of the sweep.
    assert len(names(whole)) == 10 * 5 + 5 + 2


def test_the_quick_study_has_a_folder_of_its_own(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert paper.main(["--quick", "--dry_run"]) == 0
    assert capsys.readouterr().out.startswith("runs/paper_quick: 37 runs")
    with pytest.raises(UserError, match="--quick"):
        paper.main(["--quick", "--data=pairs"])


def engine_runs(tmp_path, *more):
    return engine_ablation.plan(parse(make_parser("", str(tmp_path)), list(more)))


def test_the_engine_ablation_changes_one_part_at_a_time(tmp_path):
    plan = engine_runs(tmp_path)
    assert len(names(plan)) == 18 and names(plan)[1] == "synthetic_no_shapes_lam0.3_ct_to_mr_seed0"
    assert [run.config.seed for run in plan] == [0] * 6 + [1] * 6 + [2] * 6
    whole = runs.flatten(plan[0].config.to_dict())
    for run in plan[1:6]:
        values = runs.flatten(run.config.to_dict())
        changed = {key for key in values if values[key] != whole[key]}
        assert changed == {setting.partition("=")[0] for setting in engine_ablation.PARTS[run.part]} != set()
    assert set(whole["data.ct_phases"] + whole["data.mr_sequences"]).isdisjoint(CT_PHASES + MR_SEQUENCES)


def test_the_table_of_the_engine_ablation_has_means_over_seeds(tmp_path, monkeypatch):
    values = {"whole": [80.0, 88.0, 79.0, 74.0, 6.0, 0.9], "no_shapes": [80.0, 86.0, 79.0, 74.0, 7.0, 0.8]}
    monkeypatch.setattr(engine_ablation, "finished_step", lambda run: 1500 if run.part in values else None)
    monkeypatch.setattr(engine_ablation, "measured", lambda run: [run.config.seed + x for x in values[run.part]])
    rows = engine_ablation.table(engine_runs(tmp_path, "--seeds=0,1")).splitlines()
    assert rows[2] == "| whole | 2 | 80.5 ± 0.7 | 88.5 ± 0.7 | 79.5 ± 0.7 | 74.5 ± 0.7 | 6.5 ± 0.7 | 1.40 ± 0.71 |"
    assert rows[3].startswith("| no shapes | 2 | 80.5 ± 0.7 | 86.5") and len(rows) == 4


def test_runs_that_differ_in_lambda_alone_become_one_program(tmp_path):
    given = options(tmp_path, "--seeds=0,3")
    plan = lambda_sweep.plan(["configs/mrb.py", "configs/vm2.py"], given, lambdas=(2.0, 0.25))
    plan += [runs.make_run(tmp_path, "configs/syn.py", (), seed=0)]
    grouped = runs.together(plan, finished={"vm2_lam2_ct_to_mr_seed3"})
    assert [run.name for run in grouped] == [run.name for run in plan]
    assert {leader.program: len(group) for leader, group in runs.programs(grouped).items()} == {
        "mrb_lam0.25+2_ct_to_mr_seed0": 2,
        "mrb_lam0.25+2_ct_to_mr_seed3": 2,
        "vm2_lam0.25+2_ct_to_mr_seed0": 2,
        "vm2_lam0.25_ct_to_mr_seed3": 1,
        "vm2_lam2_ct_to_mr_seed3": 1,
        "syn_ct_to_mr_seed0": 1,
    }
    first, second = (run for run in grouped if run.program == "mrb_lam0.25+2_ct_to_mr_seed3")
    assert first.command == second.command and first.log == second.log and first.workdir != second.workdir
    workdir = tmp_path / "mrb_lam{lam}_ct_to_mr_seed3"
    assert first.command[3:6] == ["--config=configs/mrb.py", f"--workdir={workdir}", "--lambdas=0.25,2"]
    assert not [part for part in first.command if "loss.lam" in part]


def test_runs_that_would_share_a_folder_are_a_mistake(tmp_path):
    like = "runpy.run_path('configs/mrb.py')['get_config'](option)"
    body = f"    config = {like}\n    config.model.flow_init = 0.1\n    return config\n"
    (tmp_path / "mrb.py").write_text(f"import runpy\n\n\ndef get_config(option=''):\n{body}")
    given = options(tmp_path)
    plan = lambda_sweep.plan(["configs/mrb.py", str(tmp_path / "mrb.py")], given, lambdas=(1.0,))
    with pytest.raises(launcher.UserError, match="both make a run mrb_lam1_ct_to_mr_seed0"):
        runs.unique(plan)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["configs/none.py"], ["configs/none.py", "no such file"]),
        (["configs/mrb.py:half"], ["half", "paper"]),
        (["configs/syn.py"], ["configs/syn.py", "no lambda"]),
        (["configs/mrb.py", "--lambdas=1,x"], ["1,x"]),
        (["configs/mrb.py", "--lambdas=-1"], ["-1"]),
        (["configs/mrb.py", "--lambdas=nan"], ["nan"]),
        (["configs/mrb.py", "--config.loss.lamb=1"], ["configs/mrb.py", "lamb"]),
        (["configs/mrb.py", "--config.train.steps=many"], ["train.steps", "many"]),
        (["configs/mrb.py", "--config.data.cases=3"], ["data.cases", "3 cases"]),
        (["configs/mrb.py", "--steps=3"], ["--steps=3"]),
        (["configs/mrb.py", "--jobs=0"], ["--jobs", "0"]),
        (["configs/mrb.py", "--direction=up"], ["up", "mr_to_ct"]),
        (["configs/mrb.py:paper"], ["data.root", "--data"]),
        (["configs/mrb.py", "--data=no/such"], ["no/such", "no such folder"]),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(study, capsys, given, words):
    with pytest.raises(SystemExit) as end:
        launcher.exit_on_user_error(lambda_sweep.main)([*given, f"--output={study.output}"])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words), line
    assert not study.output.exists()


def test_a_folder_with_foreign_files_is_refused(study):
    study.output.mkdir()
    (study.output / "thesis.tex").write_text("precious")
    with pytest.raises(launcher.UserError, match=r"thesis\.tex"):
        study.launch()
    assert study.starts() == [] and [path.name for path in study.output.iterdir()] == ["thesis.tex"]


def test_a_folder_of_other_settings_is_refused(study):
    assert study.launch() == 0
    with pytest.raises(launcher.UserError, match=r"train.steps is 6 there and 7 here"):
        study.launch("--config.train.steps=7")
    assert len(study.starts()) == 3


# Runs


def test_a_dry_run_shows_the_plan_and_starts_nothing(study, capsys):
    assert study.launch("--dry_run") == 0
    shown = capsys.readouterr().out
    assert "3 runs: 3 not begun" in shown
    for name, lam in zip(study.names, ("0.5", "1.0", "2.0"), strict=True):
        assert f"\n{name}: not begun\n" in shown
        assert f"--workdir={study.output / name}" in shown and f"--config.loss.lam={lam}" in shown
    assert not study.output.exists() and study.starts() == []


def test_the_command_of_a_dry_run_is_that_of_the_run(study, capsys):
    study.launch("--dry_run")
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if "--workdir=" in line]
    subprocess.run(shlex.split(shown[1]), check=True, capture_output=True)
    capsys.readouterr()
    study.launch("--dry_run")
    assert "1 finished, 2 not begun" in capsys.readouterr().out


def test_all_runs_are_done_and_a_second_launch_has_nothing_to_do(study, capfd):
    assert study.launch() == 0
    shown = capfd.readouterr()
    assert study.started() == list(study.names)
    for name in study.names:
        assert f"finished: {name}" in shown.out
        assert study.steps(name) == [1, 2, 3, 4, 5, 6]
    assert "3 of 3 runs finished" in shown.out and f"report over {study.output}" in shown.out and shown.err == ""
    assert study.launch() == 0
    assert len(study.starts()) == 3
    assert "3 runs: 3 finished" in (shown := capfd.readouterr().out) and "report over" in shown


def test_a_sweep_as_one_program(study, capfd):
    assert study.launch("--together", "--dry_run") == 0
    assert capfd.readouterr().out.count("--lambdas=0.5,1,2") == 3
    study.behave(lam1="fail")
    assert study.launch("--together") == 1
    shown = capfd.readouterr()
    assert study.started() == ["mrb_lam{lam}_ct_to_mr_seed0"]
    log = study.output / "logs" / "mrb_lam0.5+1+2_ct_to_mr_seed0.log"
    assert f"finished: {study.names[0]}" in shown.out and "1 of 3 runs finished" in shown.out
    assert f"failed: {study.names[1]}: error: the loss is not finite at step 3 (log: {log})" in shown.err
    study.behave()
    assert study.launch("--together") == 0
    assert len(study.starts()) == 2 and (study.output / "logs" / "mrb_lam1+2_ct_to_mr_seed0.log").exists()
    assert [study.steps(name) for name in study.names] == [[1, 2, 3, 4, 5, 6]] * 3


def test_as_many_runs_as_jobs_at_a_time_share_the_cores(study):
    study.behave(lam05="hold", lam1="hold", lam2="hold")
    process = study.process("--jobs=2")
    wait_for(lambda: study.waits(study.names[0]) and study.waits(study.names[1]))
    assert sorted(study.started()) == sorted(study.names[:2])
    study.behave(lam1="hold")
    wait_for(lambda: len(study.starts()) == 3)
    study.behave()
    assert process.wait() == 0
    cores = len(os.sched_getaffinity(0))
    if not local.gpus() and cores > 1:
        assert {given for _, _, given in study.starts()} <= {cores // 2, cores - cores // 2}


def test_a_failing_run_leaves_the_others_running_and_is_named_at_the_end(study, capfd):
    study.behave(lam05="fail", lam1="silent")
    assert study.launch() == 1
    shown = capfd.readouterr()
    assert "1 of 3 runs finished" in shown.out and "report over" in shown.out
    log = study.output / "logs" / f"{study.names[0]}.log"
    first, second = shown.err.splitlines()
    assert first == f"failed: {study.names[0]}: error: the loss is not finite at step 3 (log: {log})"
    assert study.names[1] in second and "without an evaluation" in second
    assert "last words" in log.read_text()
    study.behave()
    assert study.launch() == 0
    assert study.started()[3:] == list(study.names[:2])


def test_a_killed_run_leaves_the_others_running_and_goes_on_at_the_next_launch(study):
    study.behave(lam05="hold")
    process = study.process("--jobs=2")
    wait_for(lambda: study.waits(study.names[0]) and len(study.starts()) == 3)
    os.kill(study.starts()[study.started().index(study.names[0])][1], signal.SIGKILL)
    out, err = process.communicate()
    assert process.returncode == 1 and "2 of 3 runs finished" in out
    assert err.startswith(f"failed: {study.names[0]}: killed by signal 9")
    study.behave()
    assert study.launch() == 0
    assert study.started()[3:] == [study.names[0]]
    assert study.steps(study.names[0]) == [1, 2, 3, 4, 5, 6]


def test_an_evaluation_of_an_earlier_step_does_not_count(study, capsys):
    assert study.launch() == 0
    summary = study.output / study.names[1] / "evaluation" / "summary.json"
    summary.write_text('{"step": 4}')
    capsys.readouterr()
    study.launch("--dry_run")
    assert f"{study.names[1]}: failed: ended without an evaluation" in capsys.readouterr().out
    summary.write_text('{"step": ')
    assert study.launch() == 0
    assert study.started()[3:] == [study.names[1]]


def test_a_report_that_fails_is_exit_status_1(study):
    (study.folder / "report").touch()
    assert study.launch() == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_launcher_that_ends_takes_its_runs_along(study, number, capsys):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    study.behave(lam05="hold", lam1="hold")
    process = study.process("--jobs=2")
    wait_for(lambda: study.waits(study.names[0]) and study.waits(study.names[1]))
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 130)
    assert number == signal.SIGKILL or ("launch again" in err and "Traceback" not in err)
    wait_for(lambda: not any(is_alive(pid) for _, pid, _ in study.starts()), seconds=5)
    assert len(study.starts()) == 2
    study.launch("--dry_run")
    assert f"{study.names[0]}: cut off: step 2/6" in capsys.readouterr().out
    study.behave()
    assert study.launch() == 0
    assert study.steps(study.names[0]) == [1, 2, 3, 4, 5, 6]


def test_a_launcher_under_nohup_survives_the_loss_of_its_terminal(study):
    study.behave(lam05="hold")
    process = study.process(ignored=[signal.SIGHUP])
    wait_for(lambda: study.waits(study.names[0]))
    process.send_signal(signal.SIGHUP)
    study.behave()
    assert process.wait(60) == 0 and len(study.starts()) == 3


def test_two_launchers_do_not_share_a_folder(study):
    study.behave(lam05="hold")
    process = study.process()
    wait_for(lambda: study.waits(study.names[0]))
    with pytest.raises(launcher.UserError, match="another launcher is at work"):
        study.launch()
    study.behave()
    assert process.wait() == 0


def test_the_phantom_is_made_once_before_the_runs(study, tmp_path):
    assert study.launch("--jobs=3", f"--config.data.root={tmp_path / 'data'}") == 0
    (folder,) = (tmp_path / "data").iterdir()  # the fake main job makes none
    assert len(list(folder.iterdir())) == SETTINGS["data.cases"]


def test_a_terminal_shows_a_bar_a_running_run(study):
    study.behave(lam05="hold", lam1="hold")
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    command = [*fake_runs.command("launch"), "lambda_sweep", *study.arguments, "--jobs=2"]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, cwd=REPOSITORY)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # a terminal that nobody holds any more
        while piece := os.read(ours, 4096):
            shown += piece
            if all(f"{name}:  33%".encode() in shown for name in study.names[:2]):
                study.behave()
    os.close(ours)
    assert process.wait() == 0
    text = shown.decode()
    assert "2/6" in text and "loss 0.5" in text and "runs: 100%" in text and f"finished: {study.names[0]}" in text


def test_lines_tell_where_runs_are_without_a_terminal(study, capsys, monkeypatch):
    from study import view

    monkeypatch.setattr(view, "SECONDS_BETWEEN_LINES", 0.0)
    assert study.launch() == 0
    shown = capsys.readouterr().out
    assert f"  {study.names[0]}: begins" in shown and f"  {study.names[0]}: step " in shown


def test_slurm_where_there_is_none_is_a_mistake(study, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(launcher.UserError, match="no sbatch and squeue here"):
        study.launch("--slurm")
    assert not study.output.exists()


@pytest.mark.slow
def test_a_sweep_of_a_real_network_with_a_kill(phantoms, tmp_path):
    """The main job itself: two lambdas at once, one killed, and the same numbers after the second launch."""
    output = tmp_path / "study"
    changes = SETTINGS | {"data.root": phantoms}
    settings = [f"--config.{key}={value}" for key, value in changes.items()]
    command = [sys.executable, "launch/lambda_sweep.py", "configs/vm1.py", "--lambdas=0.5,1", "--jobs=2", *settings]
    command += [f"--output={output}"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = output / "vm1_lam0.5_ct_to_mr_seed0" / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= 4, seconds=300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "step" in subprocess.run([*command, "--dry_run"], cwd=REPOSITORY, capture_output=True, text=True).stdout
    again = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert "2 of 2 runs finished" in again.stdout, again.stdout + again.stderr
    for lam in ("0.5", "1"):
        folder = output / f"vm1_lam{lam}_ct_to_mr_seed0"
        assert json.loads((folder / "evaluation" / "summary.json").read_text())["step"] == changes["train.steps"]
        assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()] == [
            0,
            *range(1, 4),
            3,
            4,
            5,
            6,
            6,
        ]
