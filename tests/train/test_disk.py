"""A training whose disk becomes full: one line, the checkpoints before it stay good, and it resumes."""

import contextlib
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from command_server import Tiny
from f3r_jax.common.errors import UserError
from f3r_jax.train.loop import train
from f3r_jax.workdir import checkpoints
from f3r_jax.workdir.log import Curves

LARGE = 30_000  # kB


@pytest.fixture(scope="module")
def network():
    return Tiny(flow_init=0.05)


@pytest.fixture
def training(balls, config, network):
    """A function that trains in a folder; it returns the message of a UserError."""
    config.train.update(steps=8, checkpoint_every=2, validate_every=4)

    def run(folder):
        try:
            assert train(network, balls, [config], [folder]).errors == [None]
        except UserError as error:
            return str(error)
        return None

    return run


def check_and_resume(training, folder, whole, make_space, capfd, *, quiet=True):
    """What holds after the disk was full: a line with the cause, good checkpoints, and the same log in the end."""
    capfd.readouterr()
    message = training(folder)
    if quiet:
        assert capfd.readouterr().err == ""  # Orbax would log hundreds of lines
    assert message is not None and "\n" not in message and str(folder) in message
    steps = checkpoints.steps(folder)
    good = f"the checkpoint of step {steps[-1]} is the last good one" if steps else "there is no checkpoint yet"
    assert f"{good}: make space and run the same command again" in message
    for step in steps:
        assert checkpoints.load_config(folder / "checkpoints" / str(step)).train.steps == 8
    make_space()
    assert training(folder) is None
    assert (folder / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert checkpoints.steps(folder) == checkpoints.steps(whole)
    assert [path.name for path in (folder / "checkpoints").iterdir() if not path.name.isdigit()] == []
    return message


@pytest.fixture
def whole(training, tmp_path):
    """A training without a fault."""
    assert training(tmp_path / "whole") is None
    return tmp_path / "whole"


@pytest.mark.parametrize("size", [500, 1500])
def test_a_limit_of_the_size_of_files(training, whole, tmp_path, size, capfd):
    """With 500 bytes the log cannot be written, with 1500 a checkpoint cannot."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        message = check_and_resume(
            training, tmp_path / "run", whole, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before), capfd
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "the file would be larger than is allowed" in message


@pytest.fixture
def small_disk(tmp_path):
    """A function: a folder on a file system of so many kB, and a function that makes it large."""
    with contextlib.ExitStack() as mounted:

        def mount(size):
            folder = tmp_path / "disk"
            folder.mkdir()
            command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                pytest.skip("only root may mount file systems")
            mounted.callback(subprocess.run, ["umount", str(folder)], check=True)
            larger = ["mount", "-o", f"remount,size={LARGE}k", str(folder)]
            return folder, lambda: subprocess.run(larger, check=True)

        yield mount


@pytest.mark.parametrize("size", [8, 24, 96, 340])
def test_a_full_disk(training, whole, small_disk, size, capfd):
    """From the first file of the log to the second checkpoint."""
    disk, make_space = small_disk(size)
    message = check_and_resume(training, disk / "run", whole, make_space, capfd)
    assert "the disk is full" in message
    assert ("there is no checkpoint yet" in message) == (size < 340)


@pytest.mark.parametrize("size", [48, 96, 160])
def test_a_disk_that_becomes_full_during_a_save(training, whole, small_disk, size, capfd, monkeypatch):
    """Another program may take the space after the check; threads of TensorStore may then print tracebacks."""
    monkeypatch.setattr(checkpoints, "reserve_space", lambda folder, size: None)
    disk, make_space = small_disk(size)
    message = check_and_resume(training, disk / "run", whole, make_space, capfd, quiet=False)
    assert "the disk is full" in message


def test_the_curves_of_tensorboard(tmp_path):
    curves = Curves(tmp_path / "tensorboard", 5)
    curves.write(5, {"train/loss": 0.5, "train/folding": 0.0})
    curves.flush()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content, events = file.read_bytes(), []
    while content:  # length, checksum, event, checksum
        length = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    assert events[0].file_version == "brain.Event:2" and "tfevents" in file.name
    assert (events[1].session_log.status, events[1].step) == (1, 5)  # START: later points of earlier files are hidden
    points = [(event.step, event.summary.value[0].tag, event.summary.value[0].simple_value) for event in events[2:]]
    assert points == [(5, "train/loss", 0.5), (5, "train/folding", 0.0)]
    curves.close()


def test_only_late_writes_are_not_printed(monkeypatch):
    """A thread of TensorStore may end a write after the event loop of a failed save was closed."""
    shown, reported = [], []
    monkeypatch.setattr(sys, "excepthook", lambda *found: shown.append(str(found[1])))
    monkeypatch.setattr(sys, "unraisablehook", lambda found: reported.append(str(found.exc_value)))
    for _ in range(2):  # a second call changes nothing
        checkpoints._ignore_late_writes()
        hooks = sys.excepthook, sys.unraisablehook
    for message in ("Event loop is closed", "another"):
        error = RuntimeError(message)
        sys.excepthook(RuntimeError, error, None)
        sys.unraisablehook(SimpleNamespace(exc_type=RuntimeError, exc_value=error))
    assert shown == reported == ["another"]
    checkpoints._ignore_late_writes()
    assert hooks == (sys.excepthook, sys.unraisablehook)
