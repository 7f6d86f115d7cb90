"""The folder of a run: checked, locked, and interrupted in order."""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ddep_hub.utils.files import locked


def check_run_dir(output: Path, *, overwrite: bool, resume: bool) -> None:
    """Makes the folder of a run.

    Args:
        output: the folder.
        overwrite: the folder may hold a run; its checkpoints go when the new one begins.
        resume: the folder may hold the run that is resumed.

    Raises:
        FileExistsError: it holds a run already.
    """
    if not (overwrite or resume) and (output / "metrics.jsonl").exists():
        raise FileExistsError(
            f"output_dir: {output} holds a run. Choose another folder, go on with it by `--resume_from_checkpoint "
            "latest`, or start anew with `--overwrite`."
        )
    output.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Locks the folder of a run against other processes, and clears away what a killed one left half-written there.

    Args:
        output: the folder.

    Raises:
        BlockingIOError: another process runs in it.
    """
    with locked(output / ".lock"):
        for folder in (output, output / "checkpoints"):
            for left in folder.glob(".*.partial"):
                replaced = folder / left.name[1:].rsplit("-", 1)[0]
                if (left / "old").is_dir() and not replaced.exists():
                    (left / "old").rename(replaced)  # killed between the two renames of `atomic_dir`
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
        yield


STARTED = time.monotonic()
# sysexits.h: a temporary failure, try again. Unlike 128 + signal it also says that the checkpoint was written.
EXIT_CODE = 75


class RunInterrupted(SystemExit):
    """The run was stopped and a checkpoint written; ends a script with exit code 75.

    Args:
        message: why, and where the checkpoint is.
    """

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interruption:
    """Turns SIGTERM, SIGINT and a time limit into a question that the loop asks between its steps.

    As a context manager it takes over the two signals in the main thread, and gives them back.

    Args:
        max_seconds: time limit, counted from the start of the program; `None` for none.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self.max_seconds = max_seconds
        self.received: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
            _end_with_launcher()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name

    @property
    def reason(self) -> str | None:
        """Why the run should stop now, or `None`."""
        if self.received is None and self.max_seconds is not None and time.monotonic() - STARTED > self.max_seconds:
            return f"max_time ({self.max_seconds:g} s)"
        return self.received


def _end_with_launcher() -> None:
    """Has the system send SIGTERM when `accelerate launch` dies, which does not pass signals on to its script."""
    if not sys.platform.startswith("linux"):
        return
    try:
        command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return
    if b"accelerate" in command:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
