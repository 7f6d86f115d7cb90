"""Hardware: the device of a run, the precision it computes in natively, and its description."""

import functools
import platform
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.nn import functional


# Kernel and stride of the first convolutions of encoders: stems, and patches with and without overlap.
_FIRST_CONVOLUTIONS = ((2, 2), (3, 2), (4, 4), (7, 4), (8, 8), (12, 12), (14, 14), (16, 16), (16, 8), (32, 32))


@functools.cache
def supports_bf16_convolution(channels: int) -> bool:
    """Whether bfloat16 convolutions of images with this number of channels are correct on this CPU.

    With AMX, oneDNN returns noise for some even numbers of channels and kernels of 4 to 32 pixels, such as 4 channels
    and patches of 16 (torch 2.11 to 2.14). RGB images are not affected.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, channels, 128, 128, generator=generator)
    for kernel, stride in _FIRST_CONVOLUTIONS:
        weight = torch.randn(64, channels, kernel, kernel, generator=generator)
        expected = functional.conv2d(images, weight, stride=stride)
        actual = functional.conv2d(images.bfloat16(), weight.bfloat16(), stride=stride)
        if (actual.float() - expected).norm() > 0.1 * expected.norm():
            return False
    return True


def get_native_precision(device: torch.device, channels: int = 3) -> str:
    """Returns `"bf16"` for devices with hardware support for bfloat16 matrix products, else `"no"`.

    These are GPUs from Ampere on, and CPUs with AMX or AVX512_BF16 (AMD's from Zen 4 on). Elsewhere bfloat16 is
    emulated: hundreds of times slower on a CPU.
    `channels` are those of the images, see [`supports_bf16_convolution`].
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # missing in older releases
    is_native = device.type == "cpu" and (capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return "bf16" if is_native and supports_bf16_convolution(channels) else "no"


def choose_device() -> torch.device:
    """The device for models loaded from a folder: the process's CUDA GPU, or else the CPU.

    Other GPUs, such as a Mac's, are not used, because torch lacks some operators for them; nor is any GPU if
    `accelerate launch` is configured to use the CPU.
    """
    uses_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return torch.device("cuda" if uses_gpu else "cpu")


def describe_hardware() -> str:
    """Describes the hardware of the run's processes."""
    threads, info = torch.get_num_threads(), Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*: (.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    processor = match[1].strip() if match else platform.processor() or platform.machine()
    device, state = f"{threads} thread{'s' if threads > 1 else ''} of {processor}", PartialState()
    if state.device.type == "cuda":
        device = torch.cuda.get_device_name()
    return device if state.num_processes == 1 else f"{state.num_processes} processes, each on {device}"
