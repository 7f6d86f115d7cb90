"""Work that the main process does for all, and processes that end with their parent."""

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


Result = TypeVar("Result")


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result | None:
    """Runs an action in the main process while the others wait.

    An error is raised in every process; otherwise the others would wait for the main one until their time-out.

    Args:
        accelerator: The process's accelerator.
        action: What to do.

    Returns:
        What `action` returned in the main process, `None` in the others.

    Raises:
        RuntimeError: In the other processes, if the main one failed, which raises its own error.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except Exception as caught:  # raised again below, when the others know
            error = caught
    if accelerator.num_processes > 1:
        (message,) = broadcast_object_list([None if error is None else f"{type(error).__name__}: {error}"])
        if message is not None and error is None:
            raise RuntimeError(f"The main process failed: {message}")
    if error is not None:
        raise error
    return result


def on_parent_death(action: Callable[[], None]) -> None:
    """Calls an action in a thread within a second after the process that started this one has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        action()

    threading.Thread(target=watch, daemon=True).start()
