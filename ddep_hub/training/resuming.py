"""Between the loop and its checkpoints: what a run is, and how it goes on."""

import dataclasses
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from .arguments import FREE_ON_RESUMING, RunArguments
from .feeds import Feed
from .processes import in_first_process
from .run_checkpoints import (
    Checkpoint,
    CheckpointError,
    checkpoint_folder,
    find_checkpoint,
    read_checkpoint,
    set_aside_later,
    write_checkpoint,
)
from .weights import Weights


class Resumer:
    """Writes and reads the checkpoints of one run.

    Args:
        accelerator: the process's accelerator.
        weights: the weights of the run.
        optimizer: its optimizer, prepared.
        feed: its examples.
        args: its arguments.
    """

    def __init__(
        self, accelerator: Accelerator, weights: Weights, optimizer: Any, feed: Feed, args: RunArguments
    ) -> None:
        self.accelerator, self.weights, self.args = accelerator, weights, args
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self.elastic = feed.elastic
        self.identity = run_identity(args, feed)
        self.circumstances = {
            "processes": accelerator.num_processes,
            "micro-batches": args.gradient_accumulation_steps,
            "threads": torch.get_num_threads(),
            "mixed precision": accelerator.mixed_precision,
            "device": accelerator.device.type,
            "torch": str(torch.__version__),
        }

    def load(self) -> dict[str, Any]:
        """Puts the weights and the optimizer back to a checkpoint, in every process.

        Returns:
            What [`save`] was given, with this process's `states`; empty where the run starts.

        Raises:
            CheckpointError: it is damaged, or belongs to another run.
        """
        if self.args.resume_from_checkpoint is None:
            return {}
        output, name = Path(self.args.output_dir), self.args.resume_from_checkpoint
        # One process looks, and all read what it found: another node may see another folder.
        found = in_first_process(self.accelerator, lambda: find_checkpoint(output, name))
        (path,) = broadcast_object_list([found])
        if path is None:
            self.accelerator.print(f"resume_from_checkpoint: {output} has no checkpoint yet; starting at step 0.")
            return {}
        checkpoint = self._read(path)
        changed = [
            f"{name} ({checkpoint.circumstances.get(name)} then, {now} now)"
            for name, now in self.circumstances.items()
            if checkpoint.circumstances.get(name) != now
        ]
        processes = checkpoint.circumstances["processes"]
        if not self.elastic and processes != self.accelerator.num_processes:
            raise CheckpointError(
                f"{path}: a stream goes on exactly on the number of processes it was read with, {processes}, and not "
                f"on {self.accelerator.num_processes}. Launch as many."
            )
        for later in in_first_process(self.accelerator, lambda: set_aside_later(path)) or []:
            self.accelerator.print(f"A checkpoint of a later step is now called {later}.")
        if changed and self.accelerator.is_main_process:
            warnings.warn(
                f"{path} was written with other {', '.join(changed)}: the examples of each step are the same, the "
                "last digits of the weights may not be.",
                stacklevel=2,
            )
        states = dict(checkpoint.optimizer)
        scaler = states.pop("scaler", None)
        self.weights.put_back(self.optimizer, checkpoint.model, checkpoint.average, states)
        if self.accelerator.scaler is not None and scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)
        progress = checkpoint.progress
        streams = progress.pop("streams")
        return {**progress, "states": streams[self.accelerator.process_index] if not self.elastic else {}}

    def _read(self, path: Path) -> Checkpoint:
        """Reads a checkpoint in every process.

        Raises:
            CheckpointError: it cannot be read in this process, or in another one.
        """
        checkpoint, error = None, None
        try:
            checkpoint = read_checkpoint(path, self.identity)
        except CheckpointError as caught:
            error = caught
        failures = gather_object([None if error is None else str(error)])
        if error is not None:
            raise error
        if any(failures):
            raise CheckpointError(f"Another process cannot go on: {next(filter(None, failures))}")
        assert checkpoint is not None
        records = gather_object([checkpoint.record])
        if len(set(records)) > 1:
            raise CheckpointError(f"{path} is not the same for all processes. Put output_dir where all nodes see it.")
        return checkpoint

    def save(self, progress: Mapping[str, Any], states: Mapping[str, Any]) -> Path:
        """Writes a checkpoint; called in every process.

        Args:
            progress: counters of the loop, JSON, with `step`.
            states: the state of this process's stream, if it has one.

        Raises:
            CheckpointError: it could not be written.
        """
        streams = gather_object([dict(states)])
        model, average, optimizer = self.weights.gather(self.optimizer)
        if self.accelerator.scaler is not None:
            optimizer = {**optimizer, "scaler": self.accelerator.scaler.state_dict()}
        checkpoint = Checkpoint(
            step=progress["step"],
            identity=self.identity,
            circumstances=self.circumstances,
            progress={**progress, "streams": streams},
            model=model,
            average=average,
            optimizer=optimizer,
        )
        output, limit = Path(self.args.output_dir), self.args.checkpoints_total_limit
        config = self.weights.model.config
        in_first_process(self.accelerator, lambda: write_checkpoint(output, checkpoint, config, limit=limit))
        return checkpoint_folder(output, checkpoint.step)


def run_identity(args: RunArguments, feed: Feed) -> dict[str, Any]:
    """What must be the same for a run to go on: its script, the arguments that its weights depend on, and its data."""
    fields = {name: value for name, value in dataclasses.asdict(args).items() if name not in FREE_ON_RESUMING}
    return json.loads(json.dumps({"script": type(args).__name__, **fields, "data": feed.identity}))
