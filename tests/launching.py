"""Starting scripts as a user would."""

import os
import signal
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parent.parent
SMALL = "--batch_size 4 --crop_size 32".split()
TINY = [*"--decoder_hidden_sizes 16 8 8 8 8 --decoder_bottleneck_size 16".split(), *SMALL]


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    """Starts a command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        start_new_session=True,
    )


def run(*command: str, seconds: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command; what it started is killed with it when it takes too long."""
    process = start(*command, **environment)
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def launcher(script: str, *arguments: str) -> list[str]:
    """Command that starts a script under `accelerate launch` with the shipped configuration for a CPU."""
    config = str(ROOT / "examples" / "configs" / "accelerate" / "cpu.yaml")
    script = str(ROOT / "examples" / script)
    return ["-m", "accelerate.commands.launch", "--config_file", config, script, *arguments]


def launch(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script under `accelerate launch`."""
    return run(*launcher(script, *arguments))


def on_processes(number: int, script: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script on CPU processes that talk by gloo; one of `examples/`, or any by its path."""
    command = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}")
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return run(*command, str(ROOT / "examples" / script), *arguments, **environment)
