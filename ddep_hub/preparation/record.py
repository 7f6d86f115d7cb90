"""The record of what `ddep-hub prepare` wrote, by which a folder that holds anybody's own work is not replaced."""

import zlib
from pathlib import Path
from typing import Any

from ddep_hub.utils.files import (
    SYSTEM_FILES,
    changed_output_error,
    check_output_dir,
    output_dir_error,
    read_json,
    write_json,
)


# Marks a folder written by this command, which may be replaced.
RECORD_FILE = "prepared.json"


def check_output(source: Path, output: Path, *, overwrite: bool) -> None:
    """Raises an error if the output folder must not be written, or replaced."""
    if output.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"output_dir: {output} is inside the source. Choose another folder.")
    record = f"{RECORD_FILE} of this command"
    if check_output_dir(output, record, is_own=(output / RECORD_FILE).is_file()):
        if not overwrite:
            raise output_dir_error(output, "is not empty", "Replace it with --overwrite.")
        _check_unchanged(output)


def _check_unchanged(output: Path) -> None:
    """Refuses to replace a folder that holds the user's own work beside what was written."""
    record = read_json(output / RECORD_FILE)
    written_classes = record.get("classes")
    classes_path = output / "classes.json"
    if written_classes and classes_path.is_file() and classes_path.read_text(encoding="utf-8") != written_classes:
        hint = "Save it elsewhere and remove it, or choose another folder; pass it as --classes to keep names and "
        raise output_dir_error(classes_path, "was edited", f"{hint}colours of masks.")
    written = record.get("files", {})
    changed = [name for name, checksum in _checksums(output).items() if written.get(name) != checksum]
    if changed:
        raise changed_output_error(output, changed)


def write_record(folder: Path, **record: Any) -> None:
    """Writes what a folder was made from, and the checksums that [`_check_unchanged`] compares."""
    write_json(folder / RECORD_FILE, {**record, "files": _checksums(folder)})


def _checksums(folder: Path) -> dict[str, int]:
    """A checksum of each file below a folder but the record, by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in SYSTEM_FILES)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: zlib.crc32(path.read_bytes()) for name, path in names.items() if name != RECORD_FILE}
