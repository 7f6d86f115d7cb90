"""Checkpoints of a run: written atomically, verified when read, with the newest few kept.

`checkpoints/step-N/` has the model after N steps, which loads like `final/` (`model.safetensors`, the EMA weights if
the run has them, `config.json` and the image processor's file), the raw weights of a run with EMA, the optimizer
state, and `checkpoint.json`, which identifies the run and lists the files with their hashes.
"""

import copy
import dataclasses
import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ddep_hub.checkpoints import clone_shared_tensors
from ddep_hub.configuration_ddep import DDePConfig
from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.utils.arguments import list_field_names
from ddep_hub.utils.files import atomic_dir, remove_dir, write_json
from ddep_hub.utils.processes import on_main_process

from .optim import Tensors, Weights
from .run_arguments import RunArguments


FORMAT = 3
MODEL, UNAVERAGED = "model.safetensors", "unaveraged.safetensors"
RECORDED = ("step", "fingerprint", "environment", "progress")  # fields of a [`Checkpoint`] in `checkpoint.json`


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read, or does not belong to the run; the message says what to do."""


@dataclass
class Checkpoint:
    """The state from which a run resumes.

    Args:
        step: Optimizer steps done.
        fingerprint: Arguments and data that must be the same on resuming.
        environment: Processes, threads, precision and torch version, which may change, with a warning.
        progress: Counters of the training loop, as JSON values.
        model: All parameters and buffers of the model.
        average: Those of the EMA model, or `None`.
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
    """The folder of a step's checkpoint."""
    return output / "checkpoints" / f"step-{step}"


def checkpoint_folders(output: Path) -> list[Path]:
    """Checkpoints of a run, in the order of their steps."""
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
    CheckpointError that says why and ends with `how_to_resume`; the older checkpoints are kept.
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
                **{name: getattr(checkpoint, name) for name in RECORDED},
                "files": {file.name: _digest(file) for file in sorted(folder.iterdir())},
            }
            write_json(folder / "checkpoint.json", record)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the system's errors
        # After the partial checkpoint has been removed.
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
    """Renames the checkpoints later than `path`, so that `latest` is never one of them.

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
    # Resolved, because the name may be a link, or relative to a folder of the run.
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
                raise ValueError(f"{name} is truncated or was changed")
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
        **{name: record[name] for name in RECORDED},
        model=load_file(path / (UNAVERAGED if has_average else MODEL)),
        average=load_file(path / MODEL) if has_average else None,
        optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
        record=_digest(path / "checkpoint.json")["sha256"],
    )


def _to_contiguous(tensors: Tensors) -> Tensors:
    unshared = clone_shared_tensors(tensors)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in unshared.items()}


def _checkpoint_bytes(checkpoint: Checkpoint) -> int:
    """Size of a checkpoint's tensors in bytes."""
    states = [state for states in checkpoint.optimizer["state"].values() for state in states.values()]
    tensors = [*checkpoint.model.values(), *(checkpoint.average or {}).values(), *states]
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _remaining_checkpoints(output: Path, excluded: Path | None = None) -> str:
    others = [folder for folder in checkpoint_folders(output) if folder != excluded]
    return f"{others[-1]} still exists." if others else "There is no other checkpoint."


class Checkpointer:
    """Writes and reads the checkpoints of one run, in all of its processes.

    `fingerprint` is the hash of the training data; `any_world_size` says whether the run can resume on a different
    number of processes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        weights: Weights,
        optimizer: Any,
        args: RunArguments,
        processor: DDePImageProcessor,
        *,
        fingerprint: str,
        any_world_size: bool,
    ) -> None:
        self.accelerator, self.weights, self.args, self.any_world_size = accelerator, weights, args, any_world_size
        self.processor = processor
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        resumable = list_field_names(type(args), "resumable")
        fields = {name: value for name, value in dataclasses.asdict(args).items() if name not in resumable}
        # As read from JSON, for example with lists instead of tuples.
        self.fingerprint = json.loads(json.dumps({"script": type(args).__name__, **fields, "data": fingerprint}))
        self.environment = {
            "processes": accelerator.num_processes,
            "micro-batches": args.gradient_accumulation_steps,
            "threads": torch.get_num_threads(),
            "mixed precision": accelerator.mixed_precision,
            "device": accelerator.device.type,
            "torch": str(torch.__version__),
        }

    def load(self) -> dict[str, Any]:
        """Loads the weights and the optimizer of the checkpoint to resume from, in every process.

        Returns the `progress` that [`save`] was given, with this process's `states`; an empty dictionary if the run
        starts from the beginning. Raises a CheckpointError if the checkpoint is damaged or belongs to another run.
        """
        if self.args.resume_from_checkpoint is None:
            return {}
        output, name = Path(self.args.output_dir), self.args.resume_from_checkpoint
        # The main process searches for all, because another node may see a different folder.
        main_path = on_main_process(self.accelerator, lambda: find_checkpoint(output, name))
        (path,) = broadcast_object_list([main_path])
        if path is None:
            self.accelerator.print(f"resume_from_checkpoint: {output} has no checkpoint yet. Starting at step 0.")
            return {}
        checkpoint = self._read(path)
        processes = checkpoint.environment["processes"]
        if not self.any_world_size and processes != self.accelerator.num_processes:
            raise CheckpointError(
                f"{path}: a stream can only be resumed with the same number of processes: launch {processes}, not "
                f"{self.accelerator.num_processes}."
            )
        for renamed_path in on_main_process(self.accelerator, lambda: rename_later_checkpoints(path)) or []:
            self.accelerator.print(f"A checkpoint of a later step was renamed to {renamed_path}.")
        differences = [
            f"{name} ({checkpoint.environment.get(name)} then, {current} now)"
            for name, current in self.environment.items()
            if checkpoint.environment.get(name) != current
        ]
        if differences and self.accelerator.is_main_process:
            warnings.warn(
                f"{path} was written with different {', '.join(differences)}. The examples of each step are the same; "
                "the weights may differ by rounding, and by more if a BatchNorm is trained.",
                stacklevel=2,
            )
        optimizer = dict(checkpoint.optimizer)
        scaler = optimizer.pop("scaler", None)
        self.weights.load_state_dict(self.optimizer, checkpoint.model, checkpoint.average, optimizer)
        if self.accelerator.scaler is not None and scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        streams = checkpoint.progress.pop("streams")
        states = {} if self.any_world_size else streams[self.accelerator.process_index]
        return {**checkpoint.progress, "states": states}

    def _read(self, path: Path) -> Checkpoint:
        """Reads a checkpoint in every process."""
        checkpoint, error = None, None
        try:
            checkpoint = read_checkpoint(path, self.fingerprint)
        except CheckpointError as caught:
            error = caught
        failures = gather_object([None if error is None else str(error)])
        if error is not None:
            raise error
        if any(failures):
            raise CheckpointError(f"Another process cannot resume: {next(filter(None, failures))}")
        assert checkpoint is not None
        records = gather_object([checkpoint.record])
        if len(set(records)) > 1:
            raise CheckpointError(f"{path} differs between processes. Put output_dir on storage that all nodes share.")
        return checkpoint

    def save(self, progress: Mapping[str, Any], states: Mapping[str, Any]) -> Path:
        """Writes a checkpoint; called in every process. Raises a CheckpointError if it cannot be written.

        `progress` holds the loop's counters as JSON values, `step` among them; `states` is the state of this
        process's stream, if it has one.
        """
        streams = gather_object([dict(states)])
        model, average, optimizer = self.weights.gather(self.optimizer)
        if self.accelerator.scaler is not None:
            optimizer = {**optimizer, "scaler": self.accelerator.scaler.state_dict()}
        checkpoint = Checkpoint(
            step=progress["step"],
            fingerprint=self.fingerprint,
            environment=self.environment,
            progress={**progress, "streams": streams},
            model=model,
            average=average,
            optimizer=optimizer,
        )
        output, trained = Path(self.args.output_dir), self.weights.model
        # The run's config names the class of the model that it started from. FSDP renames that of the trained one.
        config = copy.deepcopy(trained.config)
        config.architectures = [type(trained).__name__.removeprefix("FSDP")]
        options: dict[str, Any] = {"limit": self.args.save_total_limit, "how_to_resume": self.args.how_to_resume}
        on_main_process(
            self.accelerator, lambda: write_checkpoint(output, checkpoint, config, self.processor, **options)
        )
        return checkpoint_folder(output, checkpoint.step)
