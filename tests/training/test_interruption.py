"""Signals and time limits."""

import os
import signal
import time

import pytest

from ddep_hub.training import run_dir as interruption
from ddep_hub.training.arguments import parse_time
from ddep_hub.training.run_dir import EXIT_CODE, Interruption, RunInterrupted


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("90", 90), ("0.5", 0.5), ("1:30:00", 5400), ("100:00:01", 360001), ("2-12:00:00", 216000)],
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-3", "1h", "1:30", "1:2:3:4", "0:00:00", "nan"])
def test_what_is_no_time_is_said(text):
    with pytest.raises(ValueError, match="max_time"):
        parse_time(text)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_handlers_are_given_back(number):
    before = signal.getsignal(number)
    with Interruption(None) as stop:
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.reason == number.name
        os.kill(os.getpid(), number)  # a second one must not cost the checkpoint
    assert signal.getsignal(number) == before


def test_time_counts_from_the_start_of_the_program(monkeypatch):
    monkeypatch.setattr(interruption, "STARTED", time.monotonic() - 100)
    assert Interruption(101).reason is None
    assert "max_time" in Interruption(99).reason


def test_the_exit_code():
    error = RunInterrupted("why")
    assert isinstance(error, SystemExit) and error.code == EXIT_CODE == 75 and str(error) == "why"
