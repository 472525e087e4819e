"""The folder of a result: what a killed, a second or a hindered process leaves."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from f3r_jax.common import files, locks, result_folder
from f3r_jax.common.errors import UserError

NAMES = ("image", "extra", "summary")


def write(folder, text, names=NAMES):
    with result_folder.reserved(folder, NAMES), result_folder.staged(folder, NAMES) as new:
        for name in names:
            (new / name).write_text(text)


def content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_result_replaces_the_old_one_and_nothing_else(tmp_path):
    folder = tmp_path / "deep" / "out"
    write(folder, "old")
    (folder / "notes").write_text("precious")
    write(folder, "new", names=("image", "summary"))
    assert content(folder) == {"image": "new", "summary": "new", "notes": "precious"}


def test_the_staged_files_are_on_the_file_system_of_the_result(tmp_path):
    """A link or a mount point: moving between file systems would fail after the whole run."""
    (tmp_path / "scratch").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "scratch")
    with result_folder.reserved(tmp_path / "out"), result_folder.staged(tmp_path / "out", NAMES) as new:
        assert new.resolve().is_relative_to(tmp_path / "scratch")
        (new / "summary").write_text("new")
    assert content(tmp_path / "scratch") == {"summary": "new"}


def test_a_run_that_fails_leaves_the_old_result_or_no_folder(tmp_path):
    def fails(folder):
        with (
            pytest.raises(UserError),
            result_folder.reserved(folder, NAMES),
            result_folder.staged(folder, NAMES) as new,
        ):
            (new / "image").write_text("half")
            raise UserError("no overlap")

    fails(tmp_path / "deep" / "out")
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "out", "old")
    fails(tmp_path / "out")
    assert content(tmp_path / "out") == dict.fromkeys(NAMES, "old")


@pytest.mark.parametrize("step", range(1, 12))
def test_a_process_killed_at_any_step_of_the_move_loses_nothing(tmp_path, monkeypatch, step):
    """Every unlink, replace and rmdir is a step; the next run finds the old result or completes the new one."""
    folder, count = tmp_path / "out", 0
    write(folder, "old")

    class Killed(BaseException):
        pass

    def counted(function):
        def wrapped(*args, **options):
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            return function(*args, **options)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", counted(os.replace))
        for name in ("unlink", "rmdir"):
            patch.setattr(type(folder), name, counted(getattr(type(folder), name)))
        patch.setattr(shutil, "rmtree", lambda *args, **options: None)
        try:
            write(folder, "new", names=("image", "summary"))
        except Killed:
            pass
        else:
            assert count < step
    if (folder / "summary").exists() and not (folder / ".complete").exists():
        assert len({text for name, text in content_of_files(folder).items()}) == 1  # all old or all new
    with result_folder.reserved(folder, NAMES):
        assert content(folder) in (
            dict.fromkeys(NAMES, "old"),
            {"image": "new", "summary": "new"},
        )


def content_of_files(folder):
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_leftovers_of_a_killed_process_are_cleared_but_not_those_of_a_living_one(tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
from f3r_jax.common import result_folder
with result_folder.reserved(Path({str(tmp_path)!r})), result_folder.staged(Path({str(tmp_path)!r}), ["summary"]) as new:
    (new / "summary").write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "written\n"
        with pytest.raises(UserError, match="another process is writing here"), result_folder.reserved(tmp_path):
            pass
        files.clear_leftovers(tmp_path)
        assert len(list(tmp_path.glob(".writing-*"))) == 1
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.glob(".writing-*"))) == 1
    write(tmp_path, "whole")
    assert content(tmp_path) == dict.fromkeys(NAMES, "whole")


def test_a_file_next_to_which_a_process_was_killed(tmp_path):
    (tmp_path / ".writing-abcd1234").mkdir()
    files.write_text(tmp_path / "table.csv", "a,b\n")
    assert content(tmp_path) == {"table.csv": "a,b\n"}


def test_folders_that_cannot_be_written_are_one_line_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "a part of the path is a file"),
        (tmp_path / ("x" * 300), "the name is too long"),
    ):
        with pytest.raises(UserError, match=words), result_folder.reserved(folder, NAMES):
            pytest.fail("the work has begun")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        pytest.raises(UserError, match=r"out: cannot write here, the result takes about 7 MB: the disk is full"),
        result_folder.reserved(tmp_path / "out", NAMES, size=7_000_000),
    ):
        pytest.fail("the work has begun")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"), result_folder.reserved(tmp_path / "out", NAMES):
        pytest.fail("the work has begun")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_becomes_full_is_one_line_and_keeps_the_old_result(tmp_path, monkeypatch):
    write(tmp_path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result_folder, "_sync", full)
    with pytest.raises(UserError, match="cannot write the result: the disk is full"):
        write(tmp_path, "new")
    assert content(tmp_path) == dict.fromkeys(NAMES, "old")


def test_text_is_utf_8_whatever_the_locale_and_odd_names_are_escaped(tmp_path):
    files.write_text(tmp_path / "a.txt", "µm \udce9")
    assert (tmp_path / "a.txt").read_bytes() == "µm \\udce9".encode()


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "a.txt").symlink_to(tmp_path / "scratch" / "b.txt")
    files.write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "scratch" / "b.txt").read_text() == "new" and (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize(
    ("name", "words"), [("none", "no such file"), ("folder", "is a folder"), ("x" * 300, "too long"), ("a\0b", "null")]
)
def test_files_that_cannot_be_read(tmp_path, name, words):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        files.check_readable(tmp_path / name, "a CSV")
    assert "expected a CSV" in str(caught.value) and len(str(caught.value)) < 400


def test_results_are_written_where_python_has_no_locks(tmp_path, monkeypatch):
    """As on Windows."""
    monkeypatch.setattr(locks, "fcntl", None)
    assert locks.lock(tmp_path) is None
    write(tmp_path / "out", "new")
    assert content(tmp_path / "out") == dict.fromkeys(NAMES, "new")
