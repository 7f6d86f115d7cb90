"""The processes that load data."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from .decoding import BadFileError


# For the main process to end a step and to write its checkpoint.
SECONDS_AFTER_SIGTERM = 120


def ignore_signals(worker: int) -> None:
    """For a `DataLoader`: a signal to all of a job's processes must not kill its workers under the loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Later it must: SIGTERM is also how a worker that hangs is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM) and None)


@contextlib.contextmanager
def reading(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """The batches of a loader, whose workers end with the block.

    After an error they would be ended as late as the interpreter does, by SIGTERM, and so stay for two minutes. A
    broken file that a worker met is named in one line, without the worker's traceback.

    Args:
        loader: with any number of workers.

    Yields:
        Its iterator.

    Raises:
        BadFileError: a worker met one.
    """
    batches = iter(loader)
    try:
        yield batches
    except BadFileError as error:
        _, marker, message = str(error).rpartition("BadFileError: ")
        if not marker:
            raise
        raise BadFileError(message.strip()) from None
    finally:
        # As Lightning does: torch has no public way to end them before the iterator is collected.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
