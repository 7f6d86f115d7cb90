"""Processes: their memory, the state that runs share, and communication between them."""

import contextlib
import ctypes
import functools
import logging
import os
import platform
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    broadcast_object_list,
)

from ddep_hub.encoder_weights import default_dtype

from .hardware import choose_device, get_native_precision, supports_bf16_convolution


logger = logging.getLogger(__name__)


# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
TOP_PAD = 64 * 2**20


def keep_freed_memory() -> bool:
    """Makes malloc keep freed memory for the next allocation instead of returning it to the system.

    On a CPU, torch allocates activations with malloc, which by default maps each large block anew; the system then
    clears it page by page in every step. Keeping the blocks makes a training step 1.06 to 1.3 times as fast, see
    docs/performance.md. The process does not shrink below its peak.

    Returns whether it was set: not without glibc, nor if an environment variable already configures malloc.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    is_configured = any(name.startswith("MALLOC_") for name in os.environ) or "malloc" in tunables
    if is_configured or "LD_PRELOAD" in os.environ or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, TOP_PAD)]
    return min(mallopt(name, value) for name, value in settings) == 1


def get_launcher_precision() -> str | None:
    """The mixed precision of `accelerate launch`; `None` without the launcher."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION")


# Timeout of collectives: the main process may have to list or download millions of files.
TIMEOUT = timedelta(hours=2)


def build_accelerator(mixed_precision: str, *, channels: int = 3, **kwargs: Any) -> Accelerator:
    """Builds the accelerator of a run.

    `mixed_precision` is `"no"`, `"bf16"`, `"fp16"`, or `"auto"` for the setting of `accelerate launch` or, without the
    launcher, [`get_native_precision`]. A warning is given if bfloat16 gives wrong results with `channels`, the number
    of channels of the images. `kwargs` are passed on to `Accelerator`.

    Raises:
        ValueError: `accelerate launch` shards the model in a way that is not supported.
        RuntimeError: There are several processes, but no GPU, and accelerate is not configured to use CPUs.
    """
    device = choose_device()
    if mixed_precision == "auto":
        mixed_precision = get_launcher_precision() or get_native_precision(device, channels)
    if mixed_precision == "bf16" and device.type == "cpu" and not supports_bf16_convolution(channels):
        logger.warning(
            "mixed_precision: torch's bfloat16 convolutions of %d channels are wrong on this CPU for some encoders. "
            "Use `no`.",
            channels,
        )
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != mixed_precision:
        AcceleratorState._reset_state()  # from an earlier run of this process with another precision
    # A program's first accelerator initialises the process group, including its timeout.
    handlers = [*kwargs.pop("kwargs_handlers", ()), InitProcessGroupKwargs(timeout=TIMEOUT)]
    # The trainer accumulates gradients itself. Without the plugin, the environment variable of `accelerate launch`
    # would divide them a second time.
    kwargs["gradient_accumulation_plugin"] = GradientAccumulationPlugin(num_steps=1)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=handlers, **kwargs)
    _check_sharding(accelerator)
    if accelerator.num_processes == 1 < int(os.environ.get("WORLD_SIZE", "1")):
        raise RuntimeError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but accelerate found no GPU for several processes. To train "
            "on CPUs, set ACCELERATE_USE_CPU=true."
        )
    return accelerator


def _check_sharding(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and not getattr(accelerator, "is_fsdp2", False):
        raise ValueError(
            "accelerate: FSDP version 1 is not supported. Pass `--fsdp_version 2` to `accelerate launch`, or set "
            "`fsdp_version: 2` in its config file, as in examples/configs/accelerate/fsdp2.yaml."
        )
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"accelerate: {kind.value} is not supported. Use `--multi_gpu`, or FSDP version 2 for models that do not "
            "fit on one GPU."
        )


_run_lock = threading.RLock()  # reentrant, because a comparison nests its runs in one thread


@contextlib.contextmanager
def isolate_state() -> Iterator[None]:
    """Isolates a run from the program that calls it: gradients are on, and seeding has no effect outside.

    New tensors are float32, whatever the program's default. Afterwards, the generators of `random`, NumPy and torch
    (and of the current GPU) are restored, as are the mixed precision and gradient accumulation of the program's own
    `Accelerator`, which all accelerators share.

    Raises:
        RuntimeError: Another thread of the process is in such a context, with which this state would be shared.
    """
    if not _run_lock.acquire(blocking=False):
        raise RuntimeError(
            "Another thread of this process is training or evaluating, and threads share random generators and "
            "accelerate's state. Start one run after the other, or each in its own process."
        )
    # Leaving inference mode also enables gradients, whether inference mode or `no_grad` had disabled them. The
    # generator of an uninitialised GPU has no state to keep, and reading it would initialise the GPU.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python_state, numpy_state = random.getstate(), np.random.get_state()
    shared_states = [(kind._shared_state, dict(kind._shared_state)) for kind in (AcceleratorState, GradientState)]
    GradientState._shared_state.clear()  # the program may be accumulating gradients, when optimizers do not step
    try:
        random_state = torch.random.fork_rng(devices, device_type="cuda")
        with random_state, torch.inference_mode(False), default_dtype(torch.float32):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        for state, saved in shared_states:
            state.clear()
            state.update(saved)
        _run_lock.release()


Result = TypeVar("Result")


def sum_over_processes(accelerator: Accelerator, counts: np.ndarray) -> np.ndarray:
    """The sum of the counts of all processes, in each of them."""
    total: torch.Tensor = accelerator.reduce(torch.from_numpy(counts).to(accelerator.device), "sum")
    return total.cpu().numpy()


def on_main_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result | None:
    """Runs an action in the main process while the others wait; returns its result there, `None` in the others.

    An error is raised in every process, in the others as a RuntimeError; otherwise they would wait for the main
    process until the timeout.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = action()
        except Exception as caught:  # raised below, once the others know
            error = caught
    if accelerator.num_processes > 1:
        (message,) = broadcast_object_list([None if error is None else f"{type(error).__name__}: {error}"])
        if message is not None and error is None:
            raise RuntimeError(f"The main process failed: {message}")
    if error is not None:
        raise error
    return result


def on_parent_death(action: Callable[[], None]) -> None:
    """Calls an action in a thread, within a second after the parent process has ended."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        action()

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def end_with_launcher() -> None:
    """Sends SIGTERM to this process when `accelerate launch` or `torchrun` dies, which may not forward signals.

    Without a launcher, it outlives the shell as other programs do.
    """
    if {"ACCELERATE_DYNAMO_BACKEND", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        on_parent_death(lambda: os.kill(os.getpid(), signal.SIGTERM))
