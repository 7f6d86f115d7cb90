"""The folder of a run: what is written there, and folders that appear only when they are whole."""

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its final name when the block ends without an error.

    What was there under that name stays until then. After an error nothing new is left behind; after a kill there may
    be a hidden folder, which [`running_in`] removes. Everything is on the disk, and not in the system's buffers alone,
    before the name is given.

    Args:
        path: the final name.

    Yields:
        A temporary folder beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
    try:
        new.chmod(0o755)
        yield new
        for entry in (*new.rglob("*"), new):
            _flush(entry)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent)) / "old"
            path.rename(old)
            new.rename(path)
            shutil.rmtree(old.parent)
        else:
            new.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder, which a kill never leaves half-removed under its name."""
    going = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
    path.rename(going / "going")
    shutil.rmtree(going)


@contextlib.contextmanager
def not_worth_the_run(what: Path) -> Iterator[None]:
    """Says in a warning that a picture or a line could not be written, as on a full disk, and lets the run go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{what} could not be written: {error}. The run goes on without it.", stacklevel=3)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file, text or bytes, that appears under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    # File names need not be UTF-8; they are written as they are.
    partial.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_run_folder(output: Path, *, overwrite: bool, resume: bool) -> None:
    """Makes the folder of a run.

    Args:
        output: the folder.
        overwrite: the folder may hold a run; its checkpoints go when the new one begins.
        resume: the folder may hold the run that is resumed.

    Raises:
        FileExistsError: it holds a run already.
    """
    if not (overwrite or resume) and (output / "metrics.jsonl").exists():
        raise FileExistsError(
            f"output_dir: {output} holds a run. Choose another folder, go on with it by `--resume_from_checkpoint "
            "latest`, or start anew with `--overwrite`."
        )
    output.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def running_in(output: Path) -> Iterator[None]:
    """Locks the folder of a run against other processes, and clears away what a killed one left half-written there.

    Args:
        output: the folder.

    Raises:
        BlockingIOError: another process runs in it.
    """
    with locked(output / ".lock"):
        for folder in (output, output / "checkpoints"):
            for left in folder.glob(".*.partial"):
                replaced = folder / left.name[1:].rsplit("-", 1)[0]
                if (left / "old").is_dir() and not replaced.exists():
                    (left / "old").rename(replaced)  # killed between the two renames of `whole_folder`
                if left.is_dir():
                    shutil.rmtree(left)
                else:
                    left.unlink()
        yield


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """A lock that the system takes away when the process ends, however that comes about.

    Args:
        path: the file to lock.
        wait: wait for it; else another process that has it is an error.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with path.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError) as error:
            raise BlockingIOError(
                f"output_dir: another process runs in {path.parent}. Wait until it has ended, or choose another one."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl`, each step once, also where a run was resumed.

    Args:
        path: the file; `None` on processes that do not write.
        keep: rows of an earlier part of the run up to this step are kept, later ones are written again.
    """

    def __init__(self, path: Path | None, *, keep: int = 0) -> None:
        self.path = path
        if path is not None:
            rows = read_metrics(path) if keep and path.exists() else []
            write_whole(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= keep))

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        if self.path is not None:
            with not_worth_the_run(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line that a kill cut off is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
