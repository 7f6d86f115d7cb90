"""How this folder measures: two or more ways to do one thing, in turns, as ratios with their spread.

Each way lives in a process of its own, so that what one does to its process (memory settings, caches) is not given to
the others, and does one round at a time when it is told to, so that other load on the machine affects all.
"""

import csv
import ctypes
import functools
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddep_hub.utils.processes import get_native_precision


RESULTS = Path(__file__).parent / "results"
# EfficientNet-Lite0 with the shipped decoder's sizes.
LITE0: dict[str, Any] = {
    "encoder_name": "tf_efficientnet_lite0",
    "image_skip": True,
    "decoder_hidden_sizes": [192, 96, 64, 32, 16],
    "decoder_bottleneck_size": 192,
}
# What sets a way up, in a process of its own, returns one round of it.
Round = Callable[[], Any]
Make = Callable[[], Round]
Parameters = ParamSpec("Parameters")


@dataclass
class Row:
    """One line of the table: `ratio` above 1 means that this package is ahead of `peer`.

    `ours` and `theirs` are medians; `low` and `high` are the quartiles of the rounds' ratios.
    """

    question: str
    setting: str
    peer: str
    goal: float | None
    ratio: float
    low: float
    high: float
    ours: float
    theirs: float
    unit: str


def results_dir() -> Path:
    """Where the CSVs of this kind of CPU are: a table of one kind says little of another."""
    amx = getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16")
    folder = RESULTS / ("amx" if amx else torch.backends.cpu.get_cpu_capability().lower())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def machine() -> dict[str, str]:
    """What the CSVs say of machine, versions and code."""
    model = platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), model)
    capability = torch.backends.cpu.get_cpu_capability()
    amx = ", AMX" if getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16") else ""
    describe = ["git", "-C", str(RESULTS.parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True)
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "device": f"{model}, {os.cpu_count()} cores, {capability}{amx}{gpu}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip() or "unknown",
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
    }


def write_rows(name: str, rows: list[Row]) -> None:
    """Writes `<name>.csv` in [`results_dir`] and prints the rows."""
    rounded = [
        {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in asdict(row).items()} | machine()
        for row in rows
    ]
    with (results_dir() / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rounded[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rounded)
    for row in rows:
        goal = "" if row.goal is None else f" (goal {row.goal:g})"
        print(f"{row.question}, {row.setting}, against {row.peer}: {row.ratio:.2f}{goal}", flush=True)


def compare(
    question: str,
    setting: str,
    ours: float | list[float],
    peers: Mapping[str, tuple[float | list[float], float | None]],
    unit: str,
) -> list[Row]:
    """Makes a row for each peer.

    Args:
        question: What was measured.
        setting: Sizes.
        ours: Seconds or bytes of this package: one number, or one a round.
        peers: The same of each peer, and the ratio to reach.
        unit: Unit of these numbers.
    """
    rows = []
    for peer, (theirs, goal) in peers.items():
        mine = ours if isinstance(ours, list) else [ours]
        other = theirs if isinstance(theirs, list) else [theirs]
        ratios = [b / a for a, b in zip(mine, other, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        medians = statistics.median(mine), statistics.median(other)
        rows.append(Row(question, setting, peer, goal, statistics.median(ratios), low, high, *medians, unit))
    return rows


def seconds(function: Callable[[], Any]) -> float:
    """Time of one call."""
    started = time.perf_counter()
    function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def set_up(function: Callable[Parameters, Round]) -> Callable[Parameters, Make]:
    """Has a function that sets a way up, and returns one round of it, wait for the way's process."""

    @functools.wraps(function)
    def bind(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Make:
        return functools.partial(function, *args, **kwargs)

    return bind


def rounds_of(ways: Mapping[str, Make], rounds: int = 7, warm_up: int = 2) -> dict[str, list[float]]:
    """Times each way once a round, the ways in turns.

    Args:
        ways: The ways by name.
        rounds: Timed rounds.
        warm_up: Rounds before these.

    Returns:
        Seconds of each round.
    """
    processes = {name: _Process(make) for name, make in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    try:
        for number in range(warm_up + rounds):
            for name, process in processes.items():
                found = process.round()
                if number >= warm_up:
                    times[name].append(found)
    finally:
        for process in processes.values():
            process.close()
    return times


def formats(device: str) -> dict[str, str]:
    """Formats to measure by title: float32, and what `--mixed_precision auto` chooses. Asked in a child: see below."""
    native = value_of(lambda: lambda: float(get_native_precision(torch.device(device)) == "bf16"))
    return {"float32": "no", "bf16": "bf16"} if native else {"float32": "no"}


def time_and_memory(make: Make, rounds: int, warm_up: int = 1) -> tuple[float, float]:
    """Median seconds of a round, and the MiB by which its process grows at most above what it holds after its set-up.

    Args:
        make: The way.
        rounds: Timed rounds.
        warm_up: Rounds before these, whose memory counts too.
    """
    process = _Process(make)
    try:
        before = process.ask("reset memory")
        times = [process.round() for _ in range(warm_up + rounds)]
        return statistics.median(times[warm_up:]), max(0.0, process.ask("peak memory") - before)
    finally:
        process.close()


def peak_memory(make: Make, calls: int = 2) -> float:
    """MiB by which a process grows at most in `calls` rounds, see [`time_and_memory`]."""
    return time_and_memory(make, calls, warm_up=0)[1]


def value_of(make: Make) -> float:
    """What one round returns, computed in a process of its own."""
    process = _Process(make)
    try:
        return process.ask("value")
    finally:
        process.close()


def operations(make: Make) -> float:
    """Operations of one round; what is not computed is not counted."""

    def counting() -> Callable[[], float]:
        step = make()

        def count() -> float:
            with FlopCounterMode(display=False) as counter:
                step()
            return float(counter.get_total_flops())

        return count

    return value_of(counting)


class _Process:
    """A way in a forked process. The parent computes nothing: neither OpenMP nor CUDA survives a fork."""

    def __init__(self, make: Make) -> None:
        context = multiprocessing.get_context("fork")
        self.here, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, there))
        self.process.start()
        there.close()

    def ask(self, what: str) -> float:
        try:
            self.here.send(what)
            found: float = self.here.recv()
        except (EOFError, OSError):
            raise SystemExit("A way to do it has failed, see above.") from None
        return found

    def round(self) -> float:
        return self.ask("round")

    def close(self) -> None:
        self.process.terminate()
        self.process.join()


def _serve(make: Make, connection: Any) -> None:
    step = make()
    while True:
        what = connection.recv()
        if what == "round":
            connection.send(seconds(step))
        else:
            connection.send({"reset memory": _reset_memory, "peak memory": _peak_memory, "value": step}[what]())


def _reset_memory() -> float:
    """Forgets the peak; what the process holds, in MiB."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # or what the set-up has freed would be used again, unseen
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak_memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@set_up
def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> Round:
    """A product of two 2048x2048 matrices (8192 on a GPU): what the device can do at most.

    On a CPU it is a convolution of as many operations where that is faster: on AMD's, MKL multiplies float32 matrices
    without AVX-512.
    """
    side = 2048 if device == "cpu" else 8192
    a = torch.randn(side, side, device=device).to(dtype)
    if device != "cpu":
        return lambda: torch.mm(a, a)
    images = torch.randn(8, 256, 65, 65).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 2, 2).to(dtype).contiguous(memory_format=torch.channels_last)
    ways = [lambda: torch.mm(a, a), lambda: nn.functional.conv2d(images, weight)]
    for way in ways:
        way()
    return min(ways, key=lambda way: min(seconds(way) for _ in range(3)))


MATRIX_FLOP = {"cpu": 2 * 2048**3, "cuda": 2 * 8192**3}
