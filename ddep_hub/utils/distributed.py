"""Work that the main process does for all."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


Result = TypeVar("Result")


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result | None:
    """Runs an action in the first process while the others wait.

    An error there is raised in every process: one that went on would wait for the first one, which is gone, until its
    time-out.

    Args:
        accelerator: the process's accelerator.
        action: what to do.

    Returns:
        What `action` returned in the first process, `None` in the others.

    Raises:
        RuntimeError: in the other processes, where the first one failed; the first one raises its own error.
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
            raise RuntimeError(f"The first process failed: {message}")
    if error is not None:
        raise error
    return result
