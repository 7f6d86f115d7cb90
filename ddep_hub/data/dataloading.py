"""Samples under random transforms, and the worker processes that read them."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from .image_io import BadFileError
from .samplers import example_seed
from .segmentation_datasets import Sample, SizedDataset


class AugmentedDataset(Dataset[dict[str, Any]]):
    """Rows under a random transform whose result depends on (seed, epoch, index) alone.

    Indices are the (epoch, index) pairs of `StepBatchSampler`. The number of workers makes no difference, and the
    process's own random numbers are neither used nor moved on.

    An example is what the transform gives, with `path`, the row's, and `skipped`, the broken files that were passed
    over for it. [`collate`] puts examples together.

    Args:
        rows: The rows to transform.
        transform: Takes a row, gives tensors; draws from torch's default CPU generator only.
        seed: Seed of the run.
        skip_bad_files: Whether the next row that can be used takes the place of a broken one.
    """

    def __init__(
        self,
        rows: SizedDataset,
        transform: Callable[[Sample], dict[str, torch.Tensor]],
        seed: int,
        *,
        skip_bad_files: bool = False,
    ) -> None:
        self.rows = rows
        self.transform = transform
        self.seed = seed
        self.skip_bad_files = skip_bad_files

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        skipped: list[str] = []
        while True:
            try:
                example = self._example(epoch, (index + len(skipped)) % len(self.rows))
            except (BadFileError, OSError) as error:  # also what the system does not let us read
                if not self.skip_bad_files:
                    raise
                skipped.append(bad_file(error))
                if len(skipped) == len(self.rows):
                    raise BadFileError(f"All {len(skipped)} files are broken, the last one: {error}") from error
            else:
                return {**example, "skipped": skipped}

    def _example(self, epoch: int, index: int) -> dict[str, Any]:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would reseed the accelerators' generators as well.
            torch.default_generator.manual_seed(example_seed(self.seed, epoch, index))
            row = self.rows[index]
            return {**self.transform(row), "path": str(row.get("path", index))}


def bad_file(error: BadFileError | OSError) -> str:
    """The file that an error is about."""
    return str(error.path if isinstance(error, BadFileError) else error.filename) or str(error)


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of examples: tensors stacked, `path` as a list, `skipped` as one list of all."""
    batch: dict[str, Any] = {
        name: torch.stack([example[name] for example in examples])
        for name, value in examples[0].items()
        if isinstance(value, torch.Tensor)
    }
    batch["path"] = [example["path"] for example in examples]
    batch["skipped"] = [path for example in examples for path in example["skipped"]]
    return batch


# For the main process to end a step and to write its checkpoint.
SECONDS_AFTER_SIGTERM = 120


def ignore_signals(worker: int) -> None:
    """For a `DataLoader`: a signal to all of a job's processes must not kill its workers under the loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Later it must: SIGTERM is also how a worker that hangs is ended.
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM) and None)


@contextlib.contextmanager
def reading(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """The batches of a loader, whose workers end with the block.

    After an error they would be ended as late as the interpreter does, by SIGTERM, and so stay for two minutes. A
    broken file that a worker met is named in one line, without the worker's traceback.

    Args:
        loader: with any number of workers.

    Yields:
        Its iterator.

    Raises:
        BadFileError: a worker met one.
    """
    batches = iter(loader)
    try:
        yield batches
    except BadFileError as error:
        _, marker, message = str(error).rpartition("BadFileError: ")
        if not marker:
            raise
        raise BadFileError(message.strip()) from None
    finally:
        # As Lightning does: torch has no public way to end them before the iterator is collected.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
