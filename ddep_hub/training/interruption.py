"""What ends a run before its last step: signals, and the time it was given."""

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


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
