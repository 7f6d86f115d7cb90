"""Starting scripts as a user would, and in a process that has the libraries loaded already."""

import atexit
import contextlib
import functools
import gc
import importlib.util
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


ROOT = Path(__file__).parent.parent
SMALL = "--batch_size 4 --crop_size 32".split()
TINY = [*"--decoder_hidden_sizes 16 8 8 8 8 --decoder_bottleneck_size 16".split(), *SMALL]

# Loading torch and transformers takes longer than most of what the tests start: a server that has loaded them forks.
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [f"ddep_hub.{name}" for name in ("training.finetuning", "training.pretraining", "label_efficiency.runner")]
    + ["timm.models", "matplotlib.pyplot", "datasets"]
)


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


# Forks a process for each line, in which the test says what it is to be. It has loaded what reads no variable that a
# test sets: torch, torchvision and scipy, two thirds of what a process of ours loads. The rest finds nothing of it
# loaded, and reads its own variables.
_SERVER = """
import contextlib, gc, json, os, runpy, sys
import torch, torchvision.transforms.v2
with contextlib.suppress(ImportError):  # the oldest environment has none
    import scipy.optimize
own = {"ddep_hub", "transformers", "timm", "huggingface_hub", "accelerate", "datasets"}
assert own.isdisjoint(sys.modules)
for line in iter(sys.stdin.readline, ""):
    if not (child := os.fork()):
        break
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
os.setsid()
gc.freeze()  # a collection would copy all memory of the server
given = json.loads(line)
for number, path in enumerate((os.devnull, *given["outputs"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
os.environ.clear()
os.environ.update(given["environment"])
os.chdir(given["cwd"])
how, *sys.argv = given["command"]
folder = os.path.dirname(how) if how[0] != "-" else ""
sys.path[:1] = [folder, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
if how == "-c":
    code, sys.argv[0] = sys.argv[0], "-c"
    exec(code, {"__name__": "__main__"})
elif how == "-m":
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv.insert(0, how)
    runpy.run_path(how, run_name="__main__")
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", _SERVER]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)
    atexit.register(server.communicate)  # closes its input, which ends it
    return server


def run(
    *command: str, seconds: float = 300, cwd: Path | str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python with this command line, in a process that has loaded torch and nothing of ours or of transformers.

    What it started is killed with it when it takes too long. `start` runs Python itself.
    """
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    with tempfile.NamedTemporaryFile("w+") as stdout, tempfile.NamedTemporaryFile("w+") as stderr:
        given = {"command": command, "environment": variables, "outputs": [stdout.name, stderr.name]}
        server = _server()
        server.stdin.write(json.dumps(given | {"cwd": str(cwd or Path.cwd())}) + "\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        late = threading.Timer(seconds, os.killpg, (child, signal.SIGKILL))
        late.start()
        code = int(server.stdout.readline())
        if late.finished.is_set():
            raise subprocess.TimeoutExpired(command, seconds, stdout.read(), stderr.read())
        late.cancel()
        return subprocess.CompletedProcess(command, code, stdout.read(), stderr.read())


def launcher(script: str, *arguments: str) -> list[str]:
    """Command that starts a script under `accelerate launch` with the shipped configuration for a CPU."""
    config = str(ROOT / "examples" / "configs" / "accelerate" / "cpu.yaml")
    script = str(ROOT / "examples" / script)
    return ["-m", "accelerate.commands.launch", "--config_file", config, script, *arguments]


def launch(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script, in a process that loads everything, under `accelerate launch`."""
    return run(*launcher(script, *arguments))


def start_launcher(script: str, *arguments: str) -> "Fork":
    """Starts a script, in a process that loads everything, under `accelerate launch`, which is loaded already."""
    _, module, *command = launcher(script, *arguments)
    return Fork(importlib.util.find_spec(module).origin, *command, PYTHONPATH=str(ROOT))


def launch_loaded(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As `launch`, but under a launcher that is loaded already: for scripts that end before they load anything."""
    return _wait([start_launcher(script, *arguments)], 300)


def torchrun(number: int, script: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script, by its path, on CPU processes that torchrun starts."""
    command = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}")
    return run(*command, str(script), *arguments, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")


class Fork:
    """A script in a forked process with the libraries loaded, in a process group of its own; used like a Popen.

    What it says is appended to `log` if that is given, else `communicate` returns it.

    The libraries have read their environment variables before: what depends on one of theirs needs `run`.
    """

    def __init__(self, script: Path | str, *arguments: str, log: Path | str | None = None, **environment: str) -> None:
        self._outputs = [tempfile.NamedTemporaryFile("w+") for _ in range(2)]
        paths = [str(log or file.name) for file in self._outputs]
        given = (str(ROOT / "examples" / script), arguments, os.environ | environment, paths)
        self._process = _FORKS.Process(target=_script, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        for file in self._outputs:
            file.seek(0)
        return self._outputs[0].read(), self._outputs[1].read()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


def _script(script: str, arguments: tuple[str, ...], environment: dict[str, str], outputs: list[str]) -> None:
    os.setsid()
    gc.freeze()  # a collection, as commands make one at their end, would copy all memory of the server
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.fsync = lambda descriptor: None  # as in conftest.py
    # Workers start as in a process that a user starts. Otherwise they would come from the server as well, one by one.
    multiprocessing.set_start_method(None, force=True)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")


def run_fork(
    script: Path | str, *arguments: str, seconds: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script, one of `examples/` or any by its path, in a `Fork`."""
    return _wait([Fork(script, *arguments, **environment)], seconds)


def on_processes(number: int, script: Path | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script on CPU processes that talk by gloo, with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
    forks = [Fork(script, *arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(number)]
    return _wait(forks, 300)


def _wait(forks: list[Fork], seconds: float) -> subprocess.CompletedProcess[str]:
    """Waits for all, or for the first that fails: the others would wait for it."""
    until = time.monotonic() + seconds
    codes: list[int | None] = [None]
    try:
        while any(code is None for code in codes) and not any(codes) and time.monotonic() < until:
            time.sleep(0.02)
            codes = [fork.poll() for fork in forks]
    finally:
        for fork in forks:
            fork.kill()
    outputs = [fork.communicate(timeout=10) for fork in forks]
    if not any(codes) and None in codes:
        raise subprocess.TimeoutExpired("fork", seconds, *("".join(texts) for texts in zip(*outputs, strict=True)))
    failed = next((code for code in codes if code), 0)
    stdout, stderr = ("".join(texts) for texts in zip(*outputs, strict=True))
    return subprocess.CompletedProcess("fork", failed, stdout, stderr)
