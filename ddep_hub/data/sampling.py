"""Which examples make up a training step: a pure function of seed, step and rank."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def example_seed(*values: int) -> int:
    """Mixes whole numbers into one seed, such as (seed, epoch, index) into the seed of an example.

    Args:
        values: Numbers in 0..2**64-1. Their order and how many there are matter: (1,), (1, 0) and (0, 1) differ.

    Returns:
        A seed in 0..2**64-1, the same on every platform and with every version of NumPy.

    Raises:
        ValueError: A value is outside 0..2**64-1.
    """
    # SeedSequence itself splits large numbers into 32-bit words and fills up with zeros, so that (1,) and (1, 0)
    # would be one; the length and two words for every value tell them apart.
    words = [len(values)]
    for value in values:
        if not 0 <= value < 2**64:
            raise ValueError(f"cannot make a seed from {value}; seeds, epochs and indices are in 0..2**64-1")
        words += [value & 0xFFFFFFFF, value >> 32]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The order in which one epoch visits the examples.

    Args:
        num_examples: Size N of the data set.
        seed: Seed of the run.
        epoch: Counted from 0.

    Returns:
        int64 array (N,), a permutation of 0..N-1.
    """
    # NumPy promises to keep the raw numbers of a bit generator between versions, not what `permutation` makes of them.
    raw = np.random.PCG64(example_seed(seed, epoch)).random_raw(num_examples)
    return np.argsort(raw, kind="stable")


def slice_of_batch(global_batch_size: int, rank: int, world_size: int) -> range:
    """The positions in the global batch that one process works on.

    Args:
        global_batch_size: Examples a step, over all processes.
        rank: This process, in 0..world_size-1.
        world_size: Number of processes.

    Returns:
        A contiguous range; the ranges of all ranks make up the batch and differ in length by one at most.

    Raises:
        ValueError: `rank` is out of range, or there are fewer examples than processes.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in 0..{world_size - 1} (world_size {world_size})")
    if global_batch_size < world_size:
        raise ValueError(
            f"global_batch_size {global_batch_size} leaves some of {world_size} processes without an example; "
            "raise it or start fewer processes"
        )
    return range(rank * global_batch_size // world_size, (rank + 1) * global_batch_size // world_size)


class StepBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) for the steps `start_step`..`end_step - 1` of a run.

    The run is an endless stream of examples, one shuffled epoch after another. Position p of the stream is the
    example `epoch_order(N, seed, p // N)[p % N]`, and step s takes the positions from s * global_batch_size on: a
    batch may span epochs, and N may be smaller than the batch. What a step holds does not depend on where the run
    was resumed, nor, taken over all ranks, on the number of processes.

    Args:
        num_examples: Size N of the data set.
        global_batch_size: Examples a step, over all processes.
        seed: Seed of the run.
        start_step: First step to yield, counted from 0.
        end_step: One past the last step.
        rank: This process.
        world_size: Number of processes; each gets its `slice_of_batch`.

    Raises:
        ValueError: A number is out of range; the message names it.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        global_batch_size: int,
        seed: int,
        start_step: int,
        end_step: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_examples < 1:
            raise ValueError(f"num_examples is {num_examples}; the data set must hold at least one example")
        if not 0 <= start_step <= end_step:
            raise ValueError(f"start_step {start_step} and end_step {end_step} must be in order and not negative")
        self.num_examples = num_examples
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.start_step = start_step
        self.end_step = end_step
        self.positions = slice_of_batch(global_batch_size, rank, world_size)

    def __len__(self) -> int:
        return self.end_step - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.end_step):
            batch = []
            for position in self.positions:
                epoch, place = divmod(step * self.global_batch_size + position, self.num_examples)
                if epoch != order_epoch:
                    order_epoch, order = epoch, epoch_order(self.num_examples, self.seed, epoch)
                batch.append((epoch, int(order[place])))
            yield batch
