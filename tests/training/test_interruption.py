"""Signals and time limits."""

import os
import signal
import subprocess
import time

import pytest
from launching import TINY, run, start_launcher

from ddep_hub import DDePForPreTraining
from ddep_hub.cli import main
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.interruption import EXIT_CODE, Interruption, RunInterrupted, parse_time, track_time
from ddep_hub.training.pretraining import pretrain


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
    received = []
    before = signal.signal(number, lambda *_: received.append(number))
    handler = signal.getsignal(number)
    try:
        with pytest.raises(RunInterrupted), Interruption(None) as stop:
            assert stop.reason is None
            os.kill(os.getpid(), number)
            assert stop.reason == number.name
            os.kill(os.getpid(), number)  # a second one must not cost the checkpoint
            raise RunInterrupted
        assert signal.getsignal(number) is handler and received == []
        with Interruption(None):  # too late for the loop to stop
            os.kill(os.getpid(), number)
        assert received == [number]
    finally:
        signal.signal(number, before)


def test_time_counts_from_the_start_of_the_command():
    with track_time(time.monotonic() - 100), track_time():
        assert Interruption(101).reason is None
        assert "max_time" in Interruption(99).reason
    with track_time():  # a later call in the same program
        assert Interruption(99).reason is None
    assert Interruption(99).reason is None


@pytest.mark.parametrize("argv", [["finetune", "--max_time", "99"], ["pretrain", "--max_time", "99"]])
def test_a_command_counts_from_its_start_and_a_call_from_the_call(argv, monkeypatch):
    now, reasons = [0.0], []

    def train(*args, **kwargs):
        now[0] += 60
        reasons.append([Interruption(seconds).reason for seconds in (99, 50)])
        raise ValueError("stopped")

    def parse(*args, **kwargs):
        now[0] += 60  # imports
        return None, {}

    monkeypatch.setattr("ddep_hub.training.interruption.time.monotonic", lambda: now[0])
    monkeypatch.setattr("ddep_hub.cli.commands.parse_command", parse)
    for name in ("ddep_hub.training.finetuning.FinetuneTrainer", "ddep_hub.training.pretraining.PretrainTrainer"):
        monkeypatch.setattr(name, train)
    assert main(argv) == 1
    with pytest.raises(ValueError, match="stopped"):
        {"finetune": finetune, "pretrain": pretrain}[argv[0]]()
    assert reasons == [["max_time (99 s)", "max_time (50 s)"], [None, "max_time (50 s)"]]


def test_the_exit_code(monkeypatch):
    """A function of the package raises no SystemExit, which would end an event loop; a command has its exit code."""

    def finetune(args):
        raise RunInterrupted("why")

    monkeypatch.setattr("ddep_hub.training.finetuning.finetune", finetune)
    assert main(["finetune"]) == EXIT_CODE == 75 and not issubclass(RunInterrupted, SystemExit)


def test_a_script_that_is_stopped_says_it_once(tmp_path):
    (tmp_path / "script.py").write_text(
        "from ddep_hub.cli import explain_mistakes\n"
        "from ddep_hub.training.interruption import RunInterrupted\n"
        "explain_mistakes('script')\n"
        "raise RunInterrupted('why')\n"
    )
    stopped = run(str(tmp_path / "script.py"))
    assert stopped.returncode == EXIT_CODE and stopped.stderr == ""


def processes_of(group):
    """Living processes of a process group; workers and scripts stay in that of the launcher."""
    listed = subprocess.run(["ps", "-e", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(group) and "Z" not in line.split()[1]]


@pytest.mark.parametrize("sent", ["Ctrl-C", "SIGKILL to the launcher", "SIGTERM to the launcher"])
def test_nothing_is_left_behind(sent, scenes, tmp_path):
    """Under `accelerate launch`, with workers. SIGTERM reaches the launcher alone, which does not pass it on."""
    source = ["--images", str(scenes / "unlabelled"), "--num_val_images", "2", "--dataloader_num_workers", "2", *TINY]
    more = ["--max_steps", "100000", "--logging_steps", "1", "--output_dir", str(tmp_path / "run")]
    more += ["--encoder_name", "test_efficientnet", "--encoder_weights", "none"]
    process = start_launcher("pretrain.py", *source, *more)
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        until = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < until:
            time.sleep(0.2)
        assert len(processes_of(process.pid)) == 4  # launcher, script, two workers
        if sent == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        else:
            os.kill(process.pid, signal.Signals[sent.split()[0]])
        until = time.monotonic() + 10
        while processes_of(process.pid) and time.monotonic() < until:
            time.sleep(0.2)
        assert processes_of(process.pid) == []
        checkpoints = list((tmp_path / "run" / "checkpoints").iterdir())
        assert len(checkpoints) >= 1
        if sent.startswith("SIGTERM"):
            stdout, stderr = process.communicate(timeout=10)
            assert process.returncode == -signal.SIGTERM
            assert "Stopped by SIGTERM" in stdout and "Traceback" not in stderr, stderr
            (checkpoint,) = checkpoints
            DDePForPreTraining.from_pretrained(checkpoint)
    finally:
        process.kill()
        process.communicate()
