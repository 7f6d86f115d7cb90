"""Finds files, checks output folders, and writes files and folders atomically."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError


SYSTEM_FILES = {".DS_Store", "Thumbs.db", "desktop.ini"}  # left in folders by operating systems


def is_url(name: str) -> bool:
    """Whether this is a URL, for example of the Hub or a bucket, and not a path."""
    return "://" in name


def resolve_data(name: str) -> str:
    """Resolves a folder, relative to `DDEP_DATA` if it does not exist; URLs are unchanged."""
    if is_url(name):
        return name
    root, path = os.environ.get("DDEP_DATA"), Path(name)
    if root and not path.exists() and (root / path).exists():
        return str(root / path)
    return str(path)


def read_text(path: Path) -> str:
    """Reads a UTF-8 file, with or without a byte order mark; for other encodings, a ValueError names the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}. Save it as UTF-8.") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file, in UTF-8 or UTF-16, with or without a byte order mark.

    A ValueError names a file that is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Write or export it again.") from error


def format_list(names: Sequence[object], limit: int = 5) -> str:
    """The first names or numbers of a list, for a message."""
    return ", ".join(map(str, names[:limit])) + (", ..." if len(names) > limit else "")


def path_below(name: str) -> str:
    """Converts a sample's name to a relative path inside any folder, without root and `..`."""
    path = PurePosixPath(re.sub("^[A-Za-z]:", "", name.replace("\\", "/")))
    return "/".join(part for part in path.parts if part not in ("..", path.anchor))


def output_dir_error(path: str | Path, reason: str, hint: str = "Choose another folder.") -> FileExistsError:
    """The error for an output folder, or a file in it, that must not be written to."""
    return FileExistsError(f"output_dir: {path} {reason}. {hint}")


def changed_output_error(output: Path, names: Sequence[str]) -> FileExistsError:
    """The error for an output folder that a new output would replace, with the user's own files in it."""
    reason = f"holds files that were added or edited since it was written: {format_list(names)}"
    return output_dir_error(output, reason, "Move them first, or choose another folder.")


def check_not_file(output: str | Path) -> None:
    """Raises a FileExistsError if an output folder is a file."""
    if os.path.lexists(output) and not Path(output).is_dir():
        raise output_dir_error(output, "is a file")


def check_output_dir(
    output: str | Path, record: str | None = None, *, is_own: bool = False, names: Iterable[str] | None = None
) -> list[str]:
    """Raises a FileExistsError if an output folder is a file, or holds what a call must not replace.

    Args:
        output: The folder, which need not exist.
        record: The file by which an earlier output is recognised, such as `config.yaml of a run`.
        is_own: Whether the folder holds that file, so that it may be replaced.
        names: The files and folders that the call writes. By default it replaces the whole folder, which then must be
            neither a link nor, unless it is empty, the current folder or a mount point: these cannot be renamed.

    Returns:
        Those of `names`, or by default the names of all files, that exist.
    """
    output = Path(output)
    check_not_file(output)
    if names is not None:
        existing = [name for name in names if os.path.lexists(output / name)]
    elif output.is_symlink():
        raise output_dir_error(output, "is a link", "Pass the folder that it points to.")
    else:
        existing = _list_files(output)
        if existing and _is_fixed(output):
            reason = "is the current folder or a mounted one, and not empty, so it cannot be replaced"
            raise output_dir_error(output, reason, "Choose a folder inside it.")
    if existing and not is_own:
        reason = "is not empty, but holds no" if names is None else f"holds {', '.join(existing)}, but no"
        raise output_dir_error(output, f"{reason} {record}" if record else "is not empty")
    return existing


def _list_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in SYSTEM_FILES) if folder.exists() else []


def _is_fixed(path: Path) -> bool:
    return path.exists() and (os.path.ismount(path) or path.samefile(os.curdir))


@contextlib.contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `path` if the block ends without an error.

    An existing folder of that name is kept until then. If there was none, but another process has created one in the
    meantime, that one is kept and a FileExistsError is raised. After an error nothing new is left; after a kill there
    may be a hidden folder, which [`run_lock`] removes. Everything is flushed to disk before the folder is renamed.

    The current folder and mount points cannot be renamed. If they are empty, they are filled instead; otherwise, and
    for files and links, [`check_output_dir`] raises a FileExistsError.
    """
    path = Path(os.path.abspath(path))
    is_new = not check_output_dir(path, is_own=True)
    is_fixed = _is_fixed(path)
    parent = path if is_fixed else path.parent
    parent.mkdir(parents=True, exist_ok=True)
    temp_dir = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=parent))
    try:
        umask = os.umask(0o077)  # can only be read by setting it
        os.umask(umask)
        temp_dir.chmod(0o777 & ~umask)
        yield temp_dir
        for weights in temp_dir.rglob("*.safetensors"):  # safetensors 0.8 makes them readable only by the owner (#782)
            weights.chmod(0o666 & ~umask)
        for entry in (*temp_dir.rglob("*"), temp_dir):
            _flush(entry)
        if is_fixed:
            for entry in list(temp_dir.iterdir()):
                entry.rename(path / entry.name)
        elif path.exists():
            if is_new:
                check_output_dir(path)
            backup = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent)) / "old"
            path.rename(backup)
            temp_dir.rename(path)
            shutil.rmtree(backup.parent)
        else:
            temp_dir.rename(path)
        _flush(path.parent)
    finally:
        shutil.rmtree(temp_dir, ignore_errors=True)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Names the output file or folder in write errors, which may lack it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(
            f"output_dir: {path} could not be written: {reason}. Free some space, or choose another folder."
        ) from error


def remove_dir(path: Path) -> None:
    """Removes a folder; it is renamed first, so that a kill leaves no partial folder under its name."""
    trash = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".partial", dir=path.parent))
    path.rename(trash / "going")
    shutil.rmtree(trash)


@contextlib.contextmanager
def warn_on_write_error(path: Path) -> Iterator[None]:
    """Turns the error of writing a figure or a line, for example on a full disk, into a warning."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        warnings.warn(f"{path} could not be written: {error}. The run continues without it.", stacklevel=3)


@contextlib.contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file that is renamed to `path` if the block ends without an error, and removed otherwise."""
    # Another process or thread may be writing the same file, whose name may have the maximum length.
    partial = path.with_name(f".{path.name[:50]}-{os.getpid()}-{threading.get_ident()}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes a file, text or bytes, that gets its name only when it is complete and on the disk."""
    with partial_file(path) as partial:
        # File names need not be UTF-8; they are written as they are.
        partial.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
        _flush(partial)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically, see [`atomic_write`]."""
    atomic_write(path, json.dumps(content, indent=1) + "\n")


def _flush(path: Path) -> None:
    """Flushes a file or folder to disk."""
    is_windows = os.name == "nt"
    if is_windows and path.is_dir():  # folders cannot be opened on Windows
        return
    fd = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)  # Windows flushes only writable files
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def lock_file(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks a file; the operating system releases the lock when the process ends for any reason.

    If another process holds the lock, waits if `wait` is set, and raises a BlockingIOError otherwise.
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
                f"output_dir: another process is running in {path.parent}. Wait until it ends, or choose another "
                "folder."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
