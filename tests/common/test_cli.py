import os
import re
import shutil
import subprocess
import sys

import pytest
from absl import flags

from conftest import REPOSITORY
from f3r_jax import __version__
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
            cli.run_main(main, {})
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


COMMANDS = ("main", "evaluate", "register", "apply", "report", "benchmark")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_every_flag_in_a_group_with_its_default(commands, command):
    result = commands.run(command, "--help")
    assert result.status == 0 and result.err == ""
    source = REPOSITORY / "f3r_jax" / command
    source = source / "__main__.py" if source.is_dir() else source.with_suffix(".py")
    defined = set(re.findall(r'DEFINE_\w+\(\s*f?"(\w+)"', source.read_text()))
    shown = set(re.findall(r"^  --(?:\[no\])?(\w+)", result.out, re.MULTILINE))
    assert defined - {"config"} <= shown and len(shown) > 0
    assert f"python -m f3r_jax.{command}" in result.out
    assert all(len(line) <= 120 for line in result.out.splitlines())


def test_help_names_choices_and_defaults(commands):
    text = commands.run("register", "--help").out
    assert "--[no]refine\n" in text and "(default: true)" in text
    assert "--fixed_modality={ct,mr}" in text and "--lam=X" in text and "(default: 0.2)" in text


def test_the_home_folder_is_replaced_after_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    given = ["--fixed=~/mr.nii", "--organs=liver=1", "~", "--output=a~b"]
    assert cli.with_home(given) == ["--fixed=/somewhere/mr.nii", *given[1:]]


LAZY = """
import atexit, runpy, sys

heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "numpy", "scipy", "nibabel", "matplotlib"}
atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("flag", ["--help", "--version"])
@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "benchmark"])
def test_help_and_version_import_nothing_heavy(command, flag):
    given = [sys.executable, "-c", LAZY, f"f3r_jax.{command}", flag]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run(given, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr) == (0, "[]\n")
    assert f"python -m f3r_jax.{command}" in result.stdout or result.stdout == f"f3r_jax {__version__}\n"


LOSES = """
import gc, os, signal, sys, time
from f3r_jax.common import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have ignored it for this process


def callback(phase, info):
    if not callback.sent:
        callback.sent = True
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # the KeyboardInterrupt is raised here, where Python drops it


callback.sent = False


def main(argv):
    gc.callbacks.append(callback)
    gc.collect()
    assert callback.sent
    time.sleep(30)
    print("never interrupted")


cli.run_main(main, {})
"""


def test_ctrl_c_in_a_callback_of_the_garbage_collector_is_not_lost():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    result = subprocess.run([sys.executable, "-c", LOSES], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "\ninterrupted\n")


def test_the_version(run, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "--version"])
    cli.run_main(_raise(AssertionError("not reached")), {})
    assert capsys.readouterr() == (f"f3r_jax {__version__}\n", "")
