"""The folder of a run: what is written there, and folders that appear only when they are whole."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its final name when the block ends without an error.

    What was there under that name stays until then. After an error nothing new is left behind; after a kill there may
    be a hidden folder, which [`start_run`] removes. Everything is on the disk, and not in the system's buffers alone,
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


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    _flush(partial)
    partial.replace(path)


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def start_run(output: Path, *, overwrite: bool, resume: bool) -> None:
    """Makes the folder of a run, or clears away what a killed run left half-written there.

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
    for folder in (output, output / "checkpoints"):
        for left in folder.glob(".*.partial"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


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
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line that a kill cut off is left out."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
