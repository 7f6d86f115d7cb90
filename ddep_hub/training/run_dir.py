"""The folder of a run: what it holds, and whether a run may use it."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from PIL import Image
from transformers.utils import logging

from ddep_hub.evaluation.visualization import to_png
from ddep_hub.hub.run_record import RESULTS
from ddep_hub.hub.staging import RUN
from ddep_hub.utils.arguments import write_yaml
from ddep_hub.utils.files import (
    atomic_write,
    check_output_dir,
    lock_file,
    output_dir_error,
    remove_dir,
    warn_on_write_error,
)

from .checkpointing import checkpoint_folders
from .run_arguments import RunArguments


logger = logging.get_logger(__name__)

# What a run writes into its folder.
RUN_FOLDERS = ("final", "best", "checkpoints", "pictures", "pretraining")
LISTS = ("bad_files.txt", "labelled.txt", "validation.txt")
RUN_FILES = ("config.yaml", "metrics.jsonl", *LISTS)
# Arguments in every config.yaml of a run; another program's file is unlikely to have them all.
CONFIG_FIELDS = {"output_dir", "max_steps", "encoder_name", "decoder_norm"}


def check_run_dir(args: RunArguments) -> None:
    """Checks that a run may use its folder: one that holds a run needs `overwrite` or `resume_from_checkpoint`.

    Raises a FileExistsError if not, and a ValueError if the run reads something that `overwrite` would remove.
    """
    output, resume = Path(args.output_dir), args.resume_from_checkpoint is not None
    replaced = [(output / name).resolve() for name in (*RUN_FOLDERS, *RUN_FILES)] if args.overwrite else []
    for name in ("pretrained", "split_file"):
        value = getattr(args, name, None)
        if value and Path(value).exists() and any(map(Path(value).resolve().is_relative_to, replaced)):
            raise ValueError(f"{name}: {value} is what overwrite replaces. Copy it elsewhere first.")
    links = [output / name for name in (*RUN_FOLDERS, *RUN_FILES, ".lock") if (output / name).is_symlink()]
    for folder in (output / name for name in RUN_FOLDERS):
        links += [path for path in sorted(folder.iterdir()) if path.is_symlink()] if folder.is_dir() else []
    if links:
        hint = "Choose another folder, or remove the link."
        raise output_dir_error(links[0], "is a link that a run would replace", hint)
    existing = check_output_dir(
        output, "config.yaml of a run", is_own=is_run(output), names=(*RUN_FOLDERS, *RUN_FILES)
    )
    if existing and not (args.overwrite or resume) and (output / "metrics.jsonl").exists():
        hint = (
            "Choose another folder, resume it with `--resume_from_checkpoint latest`, or replace it with "
            '`--overwrite` (in Python resume_from_checkpoint="latest", overwrite=True).'
        )
        raise output_dir_error(output, "holds a run", hint)
    if resume and is_finished(output) and not checkpoint_folders(output):
        hint = "Choose another folder, or replace it with `--overwrite` instead of `--resume_from_checkpoint`."
        raise output_dir_error(output, "holds a finished run without checkpoints", hint)


def is_finished(output: Path) -> bool:
    """Whether a folder holds the result of a run, which is written at its end."""
    return (output / "final" / RESULTS).is_file()


def remove_old_run(output: Path, keep: Sequence[str] = ()) -> None:
    """Removes what a new run does not replace by itself; the old model stays until the new one is saved.

    `keep` names folders in it that belong to the new run.
    """
    for name in RUN_FOLDERS[1:]:
        if name not in keep and (output / name).exists():
            remove_dir(output / name)
    # With results, the folder would be that of a finished run; with a record, that of the new one, see `save_final`.
    for name in (*LISTS, f"final/{RESULTS}", f"final/{RUN}"):
        (output / name).unlink(missing_ok=True)


def is_run(output: Path) -> bool:
    """Whether a folder holds the `config.yaml` of a run."""
    try:
        config = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and CONFIG_FIELDS <= config.keys()


@contextlib.contextmanager
def run_lock(output: Path) -> Iterator[None]:
    """Makes the folder of a run, locks it against other processes, and removes what a killed one left half-written.

    Raises a BlockingIOError if another process is using it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with lock_file(output / ".lock"):
        partial_paths = [path for name in (*RUN_FOLDERS, *RUN_FILES) for path in output.glob(f".{name}*.partial")]
        for path in (*partial_paths, *(output / "checkpoints").glob(".*.partial")):
            target = path.parent / path.name[1:].rsplit("-", 1)[0]
            if (path / "old").is_dir() and not target.exists():
                (path / "old").rename(target)  # killed between the two renames of `atomic_dir`
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        yield


def write_config(args: RunArguments, output: Path) -> None:
    """Writes `config.yaml`, from which the run can be repeated; what replaces or resumes a run is not repeated."""
    write_yaml(dataclasses.replace(args, overwrite=False, resume_from_checkpoint=None), output / "config.yaml")


def save_picture(picture: Image.Image, path: Path) -> bytes:
    """Saves a picture as PNG, and returns the file's content; only warns if the disk is full."""
    content = to_png(picture)
    with warn_on_write_error(path):
        path.parent.mkdir(exist_ok=True)
        atomic_write(path, content)
    return content
