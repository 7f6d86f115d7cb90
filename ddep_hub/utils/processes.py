"""A process, its machine and the processes beside it: number format, memory, state, work that one does for all."""

import contextlib
import ctypes
import os
import platform
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list


# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Has malloc keep freed memory for the next allocation instead of returning it to the system.

    On a CPU, torch allocates each activation by malloc, which by default maps every large block anew; the system then
    clears it page by page, in each step again. Keeping the blocks makes a training step 1.06 to 1.3 times as fast, see
    docs/performance.md. The process does not shrink below its peak.

    Returns:
        Whether it does: not without glibc, nor where an environment variable sets up malloc already.
    """
    chosen = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if chosen or "LD_PRELOAD" in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, TOP_PAD)]
    return min(mallopt(name, value) for name, value in settings) == 1


def native_precision(device: torch.device) -> str:
    """Returns `"bf16"` for devices with units for products of bfloat16 matrices, else `"no"`.

    These are GPUs from Ampere on and CPUs with AMX. Elsewhere bfloat16 is emulated: hundreds of times slower on a CPU.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases have none
    return "bf16" if device.type == "cpu" and capabilities.get("amx_bf16") else "no"


def launched_precision() -> str | None:
    """The number format that `accelerate launch` has been told, `None` without the launcher."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION")


def build_accelerator(mixed_precision: str, **kwargs: Any) -> Accelerator:
    """Builds the accelerator of a run.

    Args:
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`; `"auto"` for what `accelerate launch` has been told, or, without
            the launcher, for [`native_precision`].
        **kwargs: Passed on to `Accelerator`.
    """
    if mixed_precision == "auto":
        native = native_precision(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        mixed_precision = launched_precision() or native
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != mixed_precision:
        AcceleratorState._reset_state()  # an earlier run of this process, which had another format
    return Accelerator(mixed_precision=mixed_precision, **kwargs)


@contextlib.contextmanager
def own_state() -> Iterator[None]:
    """Context for a run in a program of others: it trains even where gradients are off, and may seed at will.

    The generators of `random`, NumPy and torch are as before afterwards; of GPUs, that of the current one. So are the
    number format and the micro-batches of the program's own `Accelerator`, which all accelerators share.
    """
    # Leaving inference mode also turns gradients on, whether inference mode or `no_grad` had turned them off. The
    # generator of a GPU that is not in use yet has no state to keep, and asking for it would initialise the GPU.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    drawn, numpy_drawn = random.getstate(), np.random.get_state()
    shared = [(kind._shared_state, dict(kind._shared_state)) for kind in (AcceleratorState, GradientState)]
    try:
        with torch.random.fork_rng(devices, device_type="cuda"), torch.inference_mode(False):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(numpy_drawn)
        for state, before in shared:
            state.clear()
            state.update(before)


Result = TypeVar("Result")


def hardware() -> str:
    """What the processes of this run run on, in words."""
    threads, info = torch.get_num_threads(), Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    processor = found[1].strip() if found else platform.processor() or platform.machine()
    device = f"{threads} thread{'s' if threads > 1 else ''} of {processor}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    processes = PartialState().num_processes
    return device if processes == 1 else f"{processes} processes, each on {device}"


def sum_over_processes(accelerator: Accelerator, counts: np.ndarray) -> np.ndarray:
    """The sum of the counts of all processes, in each of them."""
    total: torch.Tensor = accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), "sum")
    return total.cpu().numpy()


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
        except Exception as caught:  # raised again below, once the others know
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
