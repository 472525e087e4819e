import io
import sys

import pytest

from f3r_jax.common import progress
from f3r_jax.common.progress import Progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_now_and_then_with_the_time_left(clock, capsys):
    with Progress("training", 40) as shown:
        for step in range(40):
            clock[0] += 2.0
            shown.advance(loss=1 / (step + 1))
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0] == "training 1/40  loss 1  78 s left"
    assert lines[1] == "training 9/40  loss 0.1111  62 s left"
    assert lines[-1] == "training 40/40  loss 0.025  0 s left"
    assert len(lines) == 6


def test_a_resumed_run_counts_its_own_steps_for_the_time_left(clock, capsys):
    with Progress("training", 40, done=30) as shown:
        clock[0] += 3.0
        shown.advance()
    assert capsys.readouterr().out == "training 31/40  27 s left\n"


def test_notes_stand_alone(capsys):
    with Progress("training", 2) as shown:
        shown.note("step 1: something")
    assert capsys.readouterr().out == "step 1: something\n"


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("training", 2) as shown:
        shown.advance(loss=0.25)
        shown.note("half way")
        shown.advance(loss=0.125)
    text = terminal.getvalue()
    assert "training" in text and "2/2" in text and "loss 0.125" in text
    assert "half way" in text + capsys.readouterr().out
