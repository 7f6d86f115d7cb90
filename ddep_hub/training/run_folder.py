"""The folder of a run: its metrics, and folders that appear only when they are whole."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its final name when the block ends without an error.

    What was there under that name stays until then. After an error nothing new is left behind.

    Args:
        path: the final name.

    Yields:
        A temporary folder beside it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        new.chmod(0o755)
        yield new
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.parent)) / "folder"
            path.rename(old)
            new.rename(path)
            shutil.rmtree(old.parent)
        else:
            new.rename(path)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def start_run(output: Path, *, overwrite: bool) -> None:
    """Makes the folder of a run.

    Raises:
        FileExistsError: it holds a run already.
    """
    if not overwrite and (output / "metrics.jsonl").exists():
        raise FileExistsError(f"output_dir: {output} holds a run. Choose another folder, or pass `--overwrite`.")
    output.mkdir(parents=True, exist_ok=True)


class MetricsLog:
    """Appends one JSON object a step to `metrics.jsonl`.

    Args:
        path: the file; `None` on processes that do not write.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            path.write_text("", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row."""
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
