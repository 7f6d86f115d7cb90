"""Determines the examples of a training step, as a pure function of seed, step and rank."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler


def example_seed(*values: int) -> int:
    """Mixes numbers in 0..2**64-1 into one seed, such as (seed, epoch, index) into the seed of an example.

    The seed, also in 0..2**64-1, is the same on every platform and with every version of NumPy. The order of the
    numbers and how many there are matter: (1,), (1, 0) and (0, 1) differ.
    """
    # SeedSequence itself splits large numbers into 32-bit words and pads with zeros, so that (1,) and (1, 0) would
    # coincide; the length and two words for every value distinguish them.
    words = [len(values)]
    for value in values:
        words += [value & 0xFFFFFFFF, value >> 32]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def seed_rng(*values: int) -> Iterator[None]:
    """Seeds torch's default CPU generator within the block, see [`example_seed`]."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the accelerators' generators as well.
        torch.default_generator.manual_seed(example_seed(*values))
        yield


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which one epoch, counted from 0, visits the examples: int64 (num_examples,), a permutation."""
    # NumPy guarantees the raw numbers of a bit generator across versions, but not the result of `permutation`.
    raw = np.random.PCG64(example_seed(seed, epoch)).random_raw(num_examples)
    return np.argsort(raw, kind="stable")


def batch_slice(global_batch_size: int, rank: int, world_size: int) -> range:
    """The positions in the global batch that one process handles.

    The ranges of all ranks form the batch, and their lengths differ by at most one. Raises a ValueError if there
    are fewer examples than processes.
    """
    if global_batch_size < world_size:
        raise ValueError(
            f"global_batch_size {global_batch_size} leaves some of {world_size} processes without an example; "
            "raise it or start fewer processes"
        )
    return range(rank * global_batch_size // world_size, (rank + 1) * global_batch_size // world_size)


def source_seed(seed: int, source: int, num_sources: int) -> int:
    """The seed of one of several sources; a single source has the run's seed."""
    return seed if num_sources == 1 else example_seed(seed, source)


class SourceMixture:
    """Which of several sources each position of an endless stream takes: a pure function of (seed, position).

    The stream is divided into blocks of `BLOCK` positions. In every block a source has the same number of positions
    (`counts`), its share of `weights` rounded by largest remainder; they are shuffled by (seed, block).
    """

    BLOCK = 1000

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not all(0 < weight < math.inf for weight in weights) or not weights:
            raise ValueError(f"weights are {list(weights)}; give a positive number for each source")
        exact = [self.BLOCK * weight / sum(weights) for weight in weights]
        self.counts = [int(share) for share in exact]
        by_remainder = sorted(range(len(exact)), key=lambda source: (self.counts[source] - exact[source], source))
        for source in by_remainder[: self.BLOCK - sum(self.counts)]:
            self.counts[source] += 1
        if min(self.counts) == 0:
            raise ValueError(
                f"weights {list(weights)} leave source {self.counts.index(0)} without one example in {self.BLOCK}; "
                "raise its weight or leave the source out"
            )
        self.seed = seed
        self._block = -1
        self._sources, self._offsets = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)

    def locate(self, position: int) -> tuple[int, int]:
        """The source of a position, and how many examples it has provided before; all counted from 0."""
        if len(self.counts) == 1:
            return 0, position
        block, offset = divmod(position, self.BLOCK)
        if block != self._block:
            shuffled = epoch_order(self.BLOCK, self.seed, block)
            self._sources = np.repeat(np.arange(len(self.counts)), self.counts)[shuffled]
            self._offsets = np.empty(self.BLOCK, dtype=np.int64)
            for source, count in enumerate(self.counts):
                self._offsets[self._sources == source] = block * count + np.arange(count)
            self._block = block
        return int(self._sources[offset]), int(self._offsets[offset])


class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for the steps `start_step`..`end_step - 1` of a run.

    The run is an endless stream of examples, one shuffled epoch after another. Position p of the stream is the example
    `epoch_order(N, seed, p // N)[p % N]`, and step s takes the positions from s * global_batch_size on: a batch may
    span epochs, and N may be smaller than the batch. A step's examples do not depend on where the run was resumed nor,
    over all ranks, on the number of processes.

    With `weights`, position p takes the n-th example of source k, of size N, where (k, n) is
    `SourceMixture.locate(p)`: `epoch_order(N, source_seed, n // N)[n % N]`. A source that runs through an epoch sooner
    than the others continues with its next one.

    Args:
        num_examples: Size N of the data set, or the sizes of concatenated sources; `index` counts over all of them, as
            in torch's `ConcatDataset`.
        global_batch_size: Examples per step over all processes, each of which gets its `batch_slice`.
        weights: Share of each source in the examples. By default the sources are shuffled as one data set.
    """

    def __init__(
        self,
        num_examples: int | Sequence[int],
        *,
        global_batch_size: int,
        seed: int,
        start_step: int,
        end_step: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        sizes = [num_examples] if isinstance(num_examples, int) else list(num_examples)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"num_examples is {num_examples}; the data set must hold at least one example")
        if weights is None:
            sizes, weights = [sum(sizes)], [1.0]
        self.sizes = sizes
        self.mixture = SourceMixture(weights, seed)
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.start_step = start_step
        self.end_step = end_step
        self.positions = batch_slice(global_batch_size, rank, world_size)

    def __len__(self) -> int:
        return self.end_step - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        offsets = [sum(self.sizes[:source]) for source in range(len(self.sizes))]
        orders = [(-1, np.empty(0, dtype=np.int64))] * len(self.sizes)
        for step in range(self.start_step, self.end_step):
            batch = []
            for position in self.positions:
                source, count = self.mixture.locate(step * self.global_batch_size + position)
                epoch, index = divmod(count, self.sizes[source])
                if epoch != orders[source][0]:
                    seed = source_seed(self.seed, source, len(self.sizes))
                    orders[source] = (epoch, epoch_order(self.sizes[source], seed, epoch))
                batch.append((epoch, offsets[source] + int(orders[source][1][index])))
            yield batch


def pair_batches(first: Iterable[Sequence[Any]], second: Iterable[Sequence[Any]]) -> Iterator[list[tuple[Any, Any]]]:
    """Pairs the batches of two samplers index by index; their batches must have the same lengths."""
    for batches in zip(first, second, strict=True):
        yield list(zip(*batches, strict=True))
