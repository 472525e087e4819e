import shutil

import pytest
from absl import flags

from f3r_jax.common import cli
from f3r_jax.common.errors import UserError


@pytest.fixture
def run(monkeypatch):
    """Runs an entry point in this process; returns its exit status."""
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: None)

    def ended(main, *arguments):
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        flags.FLAGS.unparse_flags()
        with pytest.raises(SystemExit) as end:
            cli.run_main(main)
        return end.value.code

    yield ended
    flags.FLAGS.unparse_flags()


def _raise(error):
    def main(argv):
        raise error

    return main


def test_the_status_is_what_main_returns(run, capsys):
    assert run(lambda argv: 1) == 1
    assert run(lambda argv: None) in (None, 0)
    assert capsys.readouterr() == ("", "")


def test_main_gets_what_is_no_flag(run):
    got = []
    run(got.append, "one", "two")
    assert got == [["program", "one", "two"]]


def test_a_mistake_is_one_line_and_status_2(run, capsys):
    assert run(_raise(UserError("a.nii.gz: 4-D,\n  expected 3-D"))) == 2
    assert capsys.readouterr() == ("", "error: a.nii.gz: 4-D, expected 3-D\n")


def test_an_unknown_flag_is_one_line_and_status_2(run, capsys):
    assert run(_raise(AssertionError("not reached")), "--no_such_flag=3") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "no_such_flag" in err and err.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(run):
    with pytest.raises(ZeroDivisionError):
        run(_raise(ZeroDivisionError()))


def test_library_chatter_is_off_unless_asked_for(commands, finished, tmp_path):
    assert finished[1].err == ""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    asked = commands.run("evaluate", f"--workdir={workdir}", "--pictures=0", "--verbosity=0")
    assert asked.status == 0 and "checkpoint" in asked.err


def test_help_shows_the_flags(commands):
    shown = commands.run("evaluate", "--help")
    assert shown.status in (0, 1) and "--workdir" in shown.out and "Traceback" not in shown.err
