"""Where the loop gets its batches: a data set of known size, or a stream; both go on at any step."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ddep_hub.data.dataloading import AugmentedDataset, collate, ignore_signals
from ddep_hub.data.samplers import StepBatchSampler
from ddep_hub.data.streaming import ImageStream

from .arguments import RunArguments


class Feed(Protocol):
    """Batches of a run for one process."""

    @property
    def identity(self) -> str:
        """Hash over what the data holds; another one is another run."""
        ...

    @property
    def description(self) -> str:
        """How many images there are, in words."""
        ...

    @property
    def elastic(self) -> bool:
        """Whether the run may go on with another number of processes."""
        ...

    def loader(
        self, accelerator: Accelerator, args: RunArguments, start_step: int, states: dict[str, Any] | None
    ) -> DataLoader:
        """Batches of this process from a step on.

        Args:
            accelerator: tells which process this is.
            args: the run's arguments.
            start_step: first step, counted from 0.
            states: what a stream needs to go on, see [`ImageStream`].
        """
        ...


@dataclass
class DatasetFeed:
    """Augmented examples of a data set of known size, in seeded epochs.

    Args:
        dataset: the examples.
        identity: see [`Feed`].
        sizes: numbers of examples of the sources that make up the data set; one source by default.
        weights: shares of the sources; by their sizes by default.
    """

    dataset: AugmentedDataset
    identity: str
    sizes: Sequence[int] = ()
    weights: Sequence[float] = ()
    elastic: bool = field(default=True, init=False)

    @property
    def description(self) -> str:
        return f"{len(self.dataset)} images"

    def loader(
        self, accelerator: Accelerator, args: RunArguments, start_step: int, states: dict[str, Any] | None
    ) -> DataLoader:
        sampler = StepBatchSampler(
            list(self.sizes) if self.weights else len(self.dataset),
            weights=self.weights or None,
            global_batch_size=args.batch_size,
            seed=args.seed,
            start_step=start_step,
            end_step=args.max_steps,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        return DataLoader(
            self.dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )


@dataclass
class StreamFeed:
    """Batches of a stream, which goes on exactly on the same number of processes.

    Args:
        make: makes the stream, with the options of [`ImageStream`] that depend on process and step.
        identity: see [`Feed`].
        description: see [`Feed`].
    """

    make: Callable[..., ImageStream]
    identity: str
    description: str
    elastic: bool = field(default=False, init=False)

    def loader(
        self, accelerator: Accelerator, args: RunArguments, start_step: int, states: dict[str, Any] | None
    ) -> DataLoader:
        stream = self.make(
            global_batch_size=args.batch_size,
            start_step=start_step,
            end_step=args.max_steps,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            states=states,
        )
        return DataLoader(
            stream,
            batch_size=None,
            num_workers=stream.usable_workers(args.dataloader_num_workers),
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )


def fingerprint_of(*parts: Any) -> str:
    """Short hash over what makes up the data of a run."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
