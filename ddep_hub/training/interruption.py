"""Graceful interruption of a run, by signals or its time limit."""

import contextlib
import math
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any


# Start of the outermost call or command in this thread, from which nested runs count too.
_START_TIME: ContextVar[float | None] = ContextVar("_START_TIME", default=None)


@contextlib.contextmanager
def track_time(start: float | None = None) -> Iterator[None]:
    """Starts the clock for `max_time`; nested in another such context, the outer one's start counts.

    `start` sets an earlier start, in seconds of `time.monotonic`.
    """
    outer_start = _START_TIME.get()
    if outer_start is None:
        outer_start = time.monotonic() if start is None else start
    token = _START_TIME.set(outer_start)
    try:
        yield
    finally:
        _START_TIME.reset(token)


def parse_time(text: str | None) -> float | None:
    """Seconds of `"5400"`, `"1:30:00"` or `"2-12:00:00"` (days-hours:minutes:seconds); `None` for `None`."""
    if text is None:
        return None
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):)?(\d+(?:\.\d+)?)", text.strip())
    seconds = 0.0
    if match:
        days, hours, minutes, seconds_part = (float(part or 0) for part in match.groups())
        seconds = ((days * 24 + hours) * 60 + minutes) * 60 + seconds_part
    if seconds <= 0:
        raise ValueError(f"max_time is {text!r}. Write seconds, or [days-]hours:minutes:seconds such as 11:30:00.")
    return seconds


# EX_TEMPFAIL in sysexits.h: try again later. Unlike 128 + signal, it means that a checkpoint was written.
EXIT_CODE = 75


class RunInterrupted(RuntimeError):
    """The run was stopped; the message says why, and where its checkpoint is. Commands exit with `exit_code`."""

    exit_code = EXIT_CODE


class Interruption:
    """Records SIGTERM, SIGINT or the end of the time limit; the training loop checks it between steps.

    As a context manager, it handles the two signals in the main thread, and restores the handlers on exit; a signal
    that arrived too late for the loop to stop is then raised again, because more may follow, such as another stage.
    `max_seconds` is the time limit, `None` for none; it counts from the start of [`track_time`] or, outside of it,
    from now on.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self.max_seconds = max_seconds
        start = _START_TIME.get()
        start = time.monotonic() if start is None else start
        self.stop_at = math.inf if max_seconds is None else start + max_seconds
        self.received: str | None = None
        self._previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[signum] = signal.signal(signum, self._handle_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        for signum, handler in self._previous_handlers.items():
            signal.signal(signum, handler)
        if self.received is not None and error is None:
            signal.raise_signal(signal.Signals[self.received])

    def _handle_signal(self, signum: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(signum).name

    @property
    def reason(self) -> str | None:
        """Why the run should stop now, or `None`."""
        if self.received is None and time.monotonic() > self.stop_at:
            return f"max_time ({self.max_seconds:g} s)"
        return self.received
