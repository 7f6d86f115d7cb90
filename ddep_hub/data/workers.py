"""The processes that load data."""

import signal


# For the main process to end a step and to write its checkpoint.
SECONDS_AFTER_SIGTERM = 120


def ignore_signals(worker: int) -> None:
    """For a `DataLoader`: a signal to all of a job's processes must not kill its workers under the loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Later it must: SIGTERM is also how a worker that hangs is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM) and None)
