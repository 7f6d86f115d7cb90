"""Randomly augmented samples, and the worker processes that read them."""

import contextlib
import errno
import hashlib
import multiprocessing.queues
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ddep_hub.utils.processes import on_parent_death

from .image_io import BadFileError
from .samplers import seed_rng
from .segmentation_datasets import Sample, SizedDataset


# Stop reading after this many broken or missing files in a row.
MAX_CONSECUTIVE_BAD = 100


@dataclass(eq=False)
class AugmentedDataset(Dataset[dict[str, Any]]):
    """Samples with a random transform whose result depends only on (seed, epoch, index).

    Indices are the (epoch, index) pairs of `StepBatchSampler`. The number of workers makes no difference, and the
    process's own random state is preserved; `transform` may draw only from torch's default CPU generator.

    An example is the output of `transform`, with the sample's `path` and `skipped`, a list of broken files: with
    `skip_bad_files`, a broken sample is replaced by the next usable one; otherwise its error is raised.
    """

    samples: SizedDataset
    transform: Callable[[Sample], dict[str, torch.Tensor]]
    seed: int
    skip_bad_files: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        skipped: list[str] = []
        num_unreadable = 0
        while True:
            try:
                example = self._load_example(epoch, (index + len(skipped)) % len(self.samples))
            except (BadFileError, OSError) as error:  # also files that the system does not let us read
                if not self.skip_bad_files:
                    raise
                skipped.append(bad_file_path(error))
                if len(skipped) == len(self.samples):
                    raise BadFileError(f"All {len(skipped)} files are broken, the last one: {error}") from error
                # Files that cannot even be opened more likely mean a missing disk than broken files.
                num_unreadable = num_unreadable + 1 if isinstance(error, OSError) else 0
                if num_unreadable == MAX_CONSECUTIVE_BAD:
                    raise BadFileError(
                        f"{num_unreadable} files in a row cannot be read, the last one: {error}. Check the disk."
                    ) from error
            else:
                return {**example, "skipped": skipped}

    def _load_example(self, epoch: int, index: int) -> dict[str, Any]:
        with seed_rng(self.seed, epoch, index):
            sample = self.samples[index]
            return {**self.transform(sample), "path": str(sample.get("path", index))}


@dataclass(eq=False)
class PairedDataset(Dataset[dict[str, Any]]):
    """Pairs each labelled example with an unlabelled one; an index is a pair of their indices.

    An example is the labelled one, plus `unlabelled`, the pixels of the unlabelled one, and the latter's other values.
    """

    labelled: AugmentedDataset
    unlabelled: AugmentedDataset

    def __getitem__(self, keys: tuple[tuple[int, int], tuple[int, int]]) -> dict[str, Any]:
        labelled, unlabelled = self.labelled[keys[0]], self.unlabelled[keys[1]]
        skipped = unlabelled["skipped"] + labelled["skipped"]
        return {**unlabelled, "unlabelled": unlabelled["pixel_values"], **labelled, "skipped": skipped}


def bad_file_path(error: BadFileError | OSError) -> str:
    """The file that caused an error."""
    return str((error.path if isinstance(error, BadFileError) else error.filename) or error)


def share_tensors(example: dict[str, Any]) -> dict[str, Any]:
    """Moves the tensors of an example or a batch into shared memory, in a worker.

    A full one is an error here. The thread that moves them otherwise fails silently, and the run waits for ever.
    """
    if get_worker_info() is not None:
        for value in example.values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()
    return example


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collates examples: stacks tensors, lists `path`, and concatenates `skipped`."""
    batch: dict[str, Any] = {
        name: torch.stack([example[name] for example in examples])
        for name, value in examples[0].items()
        if isinstance(value, torch.Tensor)
    }
    batch["path"] = [example["path"] for example in examples]
    batch["skipped"] = [path for example in examples for path in example["skipped"]]
    return share_tensors(batch)


# Seconds for the main process to finish a step and write its checkpoint.
SECONDS_AFTER_SIGTERM = 120


def init_worker(worker_id: int) -> None:
    """Keeps a `DataLoader` worker alive after a signal to all processes of a job, until the main process has ended.

    A worker ends a second after the main process; a hanging worker, some time after SIGTERM; and one whose batch
    cannot be sent, at once, as the main process would wait for it for ever.
    """

    def schedule_exit(signum: int, frame: FrameType | None) -> None:
        timer = threading.Timer(SECONDS_AFTER_SIGTERM, os._exit, [1])
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, schedule_exit)
    on_parent_death(lambda: os._exit(1))
    # The threads that send a batch and the file descriptors of its tensors only print their errors.
    sys.excepthook = lambda kind, error, traceback: _end_worker(error)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(  # type: ignore[attr-defined]
        lambda error, batch: _end_worker(error)
    )


def _end_worker(error: BaseException) -> None:
    """Ends a worker, with the exit code EMFILE if it has too many open files; prints other errors."""
    if "Too many open files" in str(error):
        os._exit(errno.EMFILE)
    traceback.print_exception(error)
    os._exit(1)


def train_dataloader(
    dataset: Dataset[Any], sampler: Iterable[Any] | None = None, *, num_workers: int, device: torch.device
) -> DataLoader[Any]:
    """Builds the dataloader of a run, whose batches will be moved to `device`.

    `dataset` is an [`AugmentedDataset`], with a batch `sampler`, or an [`ImageStream`], which yields whole batches and
    needs none.
    """
    batch_options: dict[str, Any] = {"batch_size": None} if sampler is None else {"batch_sampler": sampler}
    return DataLoader(
        dataset,
        **batch_options,
        collate_fn=share_tensors if sampler is None else collate,
        num_workers=num_workers,
        worker_init_fn=init_worker,
        pin_memory=device.type == "cuda",
    )


def compute_fingerprint(*parts: Any) -> str:
    """Short hash of the data of a run."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def iterate_batches(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Iterates over a dataloader whose workers end with the block, not with the program.

    An error of a worker is raised again in one line; its cause is torch's, with the worker's traceback.
    """
    batches: Any = None
    try:
        batches = iter(loader)
        yield batches
    except Exception as error:
        message = _explain_worker_error(error, getattr(loader, "num_workers", 0))
        if message is None:
            raise
        cause = None if isinstance(error, BadFileError) else error  # a file is named, and needs no traceback
        raise type(error)(message) from cause
    finally:
        # As in Lightning, because torch has no public way to stop them.
        if hasattr(batches, "_shutdown_workers"):
            with contextlib.suppress(RuntimeError):  # if a worker has died meanwhile, also of what is explained above
                batches._shutdown_workers()


def _explain_worker_error(error: Exception, num_workers: int) -> str | None:
    """What an error of a worker, or of starting one, says, in a line; `None` for other errors."""
    text, with_cause = str(error), f"{error} {error.__cause__}"
    if num_workers and ("Too many open files" in text or f"exit code {errno.EMFILE}." in with_cause):
        return (
            "dataloader_num_workers: too many open files. Raise the limit (`ulimit -n`), or use fewer workers, or 0."
        )
    if "DataLoader worker" not in text:
        return None
    if "shared memory" in with_cause:
        return (
            "dataloader_num_workers: the shared memory (/dev/shm) is full. Use fewer workers, or 0, or enlarge it, "
            "such as with `docker run --shm-size 8g`."
        )
    # What follows the frames of the last traceback that torch puts into the text, which are indented.
    *others, last = re.split(r"Traceback \(most recent call last\):\n(?: .*\n)+", text)
    return " ".join(last.partition(": ")[2].split()) or None if others else None
