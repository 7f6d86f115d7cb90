"""The files of a run's checkpoints: written whole or not at all, checked when they are read, the newest few kept.

`checkpoints/step-N/` holds the model after N steps, which is used as that in `final/` (`model.safetensors`, averaged
if the run averages weights, `config.json` and the image processor's file), the weights before averaging, the
optimizer's state, and `checkpoint.json`, which says which run it belongs to and lists its files with their hashes.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddep_hub.checkpoints import clone_shared_tensors
from ddep_hub.configuration_ddep import DDePConfig
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.utils.files import atomic_dir, remove_dir

from .optim import Tensors


FORMAT = 3
MODEL, UNAVERAGED = "model.safetensors", "unaveraged.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or does not belong to the run; the message says what to do."""


@dataclass
class Checkpoint:
    """What a run needs to resume.

    Args:
        step: Optimizer steps done.
        fingerprint: Arguments and data that must be the same on resuming.
        environment: Processes, threads, precision, torch: what may change, with a warning.
        progress: Counters of the loop, JSON.
        model: All parameters and buffers of the model.
        average: The same of the moving average, or `None`.
        optimizer: State of the optimizer and the gradient scaler.
        record: SHA-256 of the `checkpoint.json` that it was read from.
    """

    step: int
    fingerprint: dict[str, Any]
    environment: dict[str, Any]
    progress: dict[str, Any]
    model: Tensors
    average: Tensors | None
    optimizer: dict[str, Any]
    record: str = ""


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return output / "checkpoints" / f"step-{step}"


def checkpoint_folders(output: Path) -> list[Path]:
    """Checkpoints of a run, the one of the last step at the end."""
    paths = (output / "checkpoints").glob("step-*")
    return sorted((path for path in paths if path.name[5:].isdigit()), key=lambda path: int(path.name[5:]))


def write_checkpoint(
    output: Path,
    checkpoint: Checkpoint,
    config: DDePConfig,
    processor: DDePImageProcessor,
    *,
    limit: int,
    how_to_resume: str,
) -> Path:
    """Writes a checkpoint and removes old ones; the newest `limit` are kept.

    `config` is the model's, with its class in `architectures`. If the checkpoint cannot be written, raises a
    CheckpointError that says why and ends with `how_to_resume`; the older checkpoints are then still there.
    """
    path = checkpoint_folder(output, checkpoint.step)
    try:
        with atomic_dir(path) as folder:
            weights = checkpoint.model if checkpoint.average is None else checkpoint.average
            save_file(_to_contiguous(weights), folder / MODEL, metadata={"format": "pt"})
            if checkpoint.average is not None:
                save_file(_to_contiguous(checkpoint.model), folder / UNAVERAGED, metadata={"format": "pt"})
            torch.save(checkpoint.optimizer, folder / "optimizer.pt")
            config.save_pretrained(folder)
            processor.save_pretrained(folder)
            record = {
                "format": FORMAT,
                "step": checkpoint.step,
                "fingerprint": checkpoint.fingerprint,
                "environment": checkpoint.environment,
                "progress": checkpoint.progress,
                "files": {file.name: _digest(file) for file in sorted(folder.iterdir())},
            }
            (folder / "checkpoint.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's errors
        # Free again, now that what was written of it is gone.
        free_mb, needed_mb = shutil.disk_usage(output).free / 1e6, _checkpoint_bytes(checkpoint) / 1e6
        raise CheckpointError(
            f"{path} could not be written: {error} (it needs about {needed_mb:.0f} MB, {free_mb:.0f} MB are free "
            f"there). {_remaining_checkpoints(output)} Free some space. {how_to_resume}"
        ) from error
    for folder in checkpoint_folders(output)[:-limit]:
        if folder != path:
            remove_dir(folder)
    return path


def rename_later_checkpoints(path: Path) -> list[Path]:
    """Renames the checkpoints of later steps than that of `path`, so that `latest` is never one of them.

    Returns their new paths, `set-aside-step-N`.
    """
    step = int(path.name[5:])
    later_folders = [folder for folder in checkpoint_folders(path.parent.parent) if int(folder.name[5:]) > step]
    renamed = []
    for folder in later_folders:
        target = folder.with_name(f"set-aside-{folder.name}")
        if target.exists():
            remove_dir(target)
        renamed.append(folder.rename(target))
    return renamed


def find_checkpoint(output: Path, name: str) -> Path | None:
    """Finds the checkpoint to resume from; `name` is `latest` or the checkpoint's folder.

    Returns its folder, or `None` for `latest` if the run has no checkpoint yet. Raises a CheckpointError if `name` is
    not a checkpoint of this run.
    """
    folders = checkpoint_folders(output)
    if name == "latest":
        return folders[-1] if folders else None
    path = Path(name)
    # The run's own path: the name may be a link, or relative to a folder of the run.
    found = {folder.resolve(): folder for folder in folders}.get(path.resolve())
    if found is None:
        folder_names = ", ".join(folder.name for folder in folders) or "none"
        if path.is_dir():
            raise CheckpointError(
                f"resume_from_checkpoint: {path} is not a checkpoint of the run in {output} (it has: {folder_names}). "
                "Set output_dir to the folder of the run it belongs to."
            )
        raise CheckpointError(f"resume_from_checkpoint: {path} does not exist. {output} has: {folder_names}.")
    return found


def read_checkpoint(path: Path, fingerprint: Mapping[str, Any]) -> Checkpoint:
    """Reads a checkpoint, after checking that it is complete and has the run's `fingerprint`.

    Raises a CheckpointError that names the damaged file, or the arguments that differ.
    """
    output = path.parent.parent
    try:
        record = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        if record["format"] > FORMAT:
            raise CheckpointError(f"{path} was written by a newer ddep_hub. Update it: `pip install -U ddep-hub`.")
        for name, digest in record["files"].items():
            if _digest(path / name) != digest:
                raise ValueError(f"{name} is cut off or was changed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}. {_remaining_checkpoints(output, excluded=path)} Remove the damaged folder, "
            "then resume from the latest one."
        ) from error
    stored = record["fingerprint"]
    differences = [
        f"{name} was {stored.get(name)!r} and is {fingerprint.get(name)!r}"
        for name in {**stored, **fingerprint}
        if stored.get(name) != fingerprint.get(name)
    ]
    if differences:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(differences)}. Pass the same arguments and data to resume it, "
            "or start a new run in another output_dir."
        )
    has_average = (path / UNAVERAGED).exists()
    return Checkpoint(
        step=record["step"],
        fingerprint=stored,
        environment=record["environment"],
        progress=record["progress"],
        model=load_file(path / (UNAVERAGED if has_average else MODEL)),
        average=load_file(path / MODEL) if has_average else None,
        optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        record=_digest(path / "checkpoint.json")["sha256"],
    )


def _to_contiguous(tensors: Tensors) -> Tensors:
    unshared = clone_shared_tensors(tensors)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in unshared.items()}


def _checkpoint_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the tensors that a checkpoint is made of."""
    states = [state for states in checkpoint.optimizer["state"].values() for state in states.values()]
    tensors = [*checkpoint.model.values(), *(checkpoint.average or {}).values(), *states]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _remaining_checkpoints(output: Path, excluded: Path | None = None) -> str:
    others = [folder for folder in checkpoint_folders(output) if folder != excluded]
    return f"{others[-1]} is still there." if others else "There is no other checkpoint."
