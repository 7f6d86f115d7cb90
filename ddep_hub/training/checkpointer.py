"""Checkpoints of one run, in all of its processes: what goes into them, and what a resumed run takes from one."""

import copy
import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ddep_hub.image_processing_ddep import DDePImageProcessor
from ddep_hub.utils.arguments import list_field_names
from ddep_hub.utils.processes import on_main_process

from .checkpointing import (
    Checkpoint,
    CheckpointError,
    checkpoint_folder,
    find_checkpoint,
    read_checkpoint,
    rename_later_checkpoints,
    write_checkpoint,
)
from .optim import Weights
from .run_arguments import RunArguments


class Checkpointer:
    """Writes and reads the checkpoints of one run.

    `fingerprint` is the hash of the training data; `elastic` says whether the run can resume on another number of
    processes.
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
        elastic: bool,
    ) -> None:
        self.accelerator, self.weights, self.args, self.elastic = accelerator, weights, args, elastic
        self.processor = processor
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        resumable = list_field_names(type(args), "resumable")
        fields = {name: value for name, value in dataclasses.asdict(args).items() if name not in resumable}
        # As JSON has it, such as lists for tuples.
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
        # The main process looks, and all others use what it found: another node may see another folder.
        main_path = on_main_process(self.accelerator, lambda: find_checkpoint(output, name))
        (path,) = broadcast_object_list([main_path])
        if path is None:
            self.accelerator.print(f"resume_from_checkpoint: {output} has no checkpoint yet. Starting at step 0.")
            return {}
        checkpoint = self._read(path)
        processes = checkpoint.environment["processes"]
        if not self.elastic and processes != self.accelerator.num_processes:
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
                "the last digits of the weights may differ, and more where a BatchNorm is trained.",
                stacklevel=2,
            )
        optimizer = dict(checkpoint.optimizer)
        scaler = optimizer.pop("scaler", None)
        self.weights.load_state_dict(self.optimizer, checkpoint.model, checkpoint.average, optimizer)
        if self.accelerator.scaler is not None and scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        streams = checkpoint.progress.pop("streams")
        states = {} if self.elastic else streams[self.accelerator.process_index]
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
            raise CheckpointError(
                f"{path} is not the same for all processes. Put output_dir on storage that all nodes share."
            )
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
        # The run's own names the class of the model that it started from. FSDP renames that of the trained one.
        config = copy.deepcopy(trained.config)
        config.architectures = [type(trained).__name__.removeprefix("FSDP")]
        options: dict[str, Any] = {"limit": self.args.save_total_limit, "how_to_resume": self.args.how_to_resume}
        on_main_process(
            self.accelerator, lambda: write_checkpoint(output, checkpoint, config, self.processor, **options)
        )
        return checkpoint_folder(output, checkpoint.step)
