"""Errors of the machine are one line, errors of the code keep their traceback."""

import errno
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from f3r_jax.benchmark.environment import current_environment
from f3r_jax.common import memory
from f3r_jax.common.cli import exit_on_user_error
from f3r_jax.common.errors import UserError, explained


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.nii"), "a.nii: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "a.nii"), "a.nii: permission denied"),
        (ValueError("tensorstore: NOT_FOUND: No space left on device [source=x]"), "the disk is full"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), "not enough memory"),
        (RuntimeError("Unable to initialize backend 'cuda': none"), "JAX_PLATFORMS"),
        (ExceptionGroup("two", [ValueError("a"), OSError(errno.EDQUOT, "quota")]), "quota"),
    ],
)
def test_errors_of_the_machine(error, words, capsys):
    assert words in explained(error)

    def fails():
        raise error

    with pytest.raises(SystemExit) as end:
        exit_on_user_error(fails)()
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a"), RuntimeError("odd"), FileNotFoundError("a")])
def test_errors_of_the_code(error):
    assert explained(error) is None


def test_a_cause_is_looked_for_behind_the_error():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "checkpoint")
        except OSError as error:
            raise ValueError("checkpoint failed") from error
    except ValueError as error:
        assert explained(error) == "checkpoint: the disk is full"


def test_the_limit_of_a_container_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "memory.max"),))
    whole = memory.total()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.total() == whole
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    assert memory.total() == 2**30 and current_environment().machine.memory_gib == 1.0


def test_grids_that_do_not_fit_into_memory(monkeypatch):
    monkeypatch.setattr(memory, "total", lambda: 10**9)
    memory.check_voxels(1e6, "--spacing=1")
    with pytest.raises(UserError, match=r"--spacing=0.01 asks for a working grid of 1e\+12 voxels, 1e\+05 GB"):
        memory.check_voxels(1e12, "--spacing=0.01")


def run(program, **options):
    return subprocess.run(
        ["bash", "-c", program.replace("PYTHON -c", f"{sys.executable} -c")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
        **options,
    )


LONG = """PYTHON -c 'from f3r_jax.common import cli
def main(argv):
    for n in range(20000): print(n)
cli.run_main(main, {})'"""


def test_a_reader_that_has_gone_ends_the_command_quietly():
    ended = run(LONG + " | head -1; echo ${PIPESTATUS[0]}")
    assert ended.stdout == "0\n1\n" and ended.stderr == ""


def test_closed_streams_and_a_poor_encoding():
    program = """PYTHON -c 'from f3r_jax.common import cli
def main(argv):
    import sys
    print("done \\u03bb \\udce9"); print("note", file=sys.stderr); open("/dev/null")
cli.run_main(main, {})'"""
    ended = run(program + " 2>&-")
    assert ended.returncode == 0 and ended.stdout == "done λ \\udce9\n"
    assert run(program + " >&-").returncode == 0
    ended = run("PYTHONIOENCODING=ascii PYTHONUTF8=0 " + program)
    assert ended.returncode == 0 and ended.stdout == "done \\u03bb \\udce9\n" and ended.stderr == "note\n"
