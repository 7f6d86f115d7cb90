"""Batches streamed from shards, by virtual workers with their own position and shuffle buffer in every source."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .dataloading import MAX_CONSECUTIVE_BAD
from .image_io import BadFileError
from .samplers import SourceMixture, batch_slice, epoch_order, example_seed, seed_rng, source_seed
from .segmentation_datasets import Sample


State = dict[str, Any]
MAX_EMPTY_EPOCHS = 100
MAX_VIRTUAL_WORKERS = 8
# Separates the random numbers of the augmentation from those of the noise, which is seeded by (seed, step, position).
AUGMENTATION = 1


class ShardedDataset(Protocol):
    """A source of samples in numbered shards, each readable from any offset, such as `ShardedImages`."""

    name: str
    num_shards: int

    def samples(self, shard: int, start: int = 0) -> Iterator[Sample]:
        """The undecoded samples of one shard from sample `start` on, always in the same order."""
        ...


@dataclass(kw_only=True)
class ShardReader:
    """Iterates endlessly over one virtual worker's samples of one source.

    Args:
        seed: Seed of the run and the source.
        virtual_worker: Index of the virtual worker, counted over all processes.
        num_virtual_workers: Number of virtual workers of all processes, at most the source's shards.
        window: Size of the shuffle buffer in samples.
        num_validation: Maps each shard to the number of its first samples to skip.
        resumed: State from [`state`] to resume from; None at the start.
    """

    source: ShardedDataset
    seed: int
    virtual_worker: int
    num_virtual_workers: int
    window: int
    num_validation: Mapping[int, int]
    resumed: InitVar[State | None]

    def __post_init__(self, resumed: State | None) -> None:
        self.window_start: State = {"epoch": 0, "shard": 0, "offset": 0, "window": 0}
        self.next = dict(self.window_start)  # where the window after the current one starts
        self.samples: list[Sample | None] = []
        self.order: list[int] = []
        self.position = 0
        self.shard_iterator: Iterator[Sample] | None = None
        if resumed is not None:
            self.next = {name: resumed[name] for name in self.window_start}
            self._next_window()
            self.position = resumed["position"]

    def state(self) -> State:
        """The state to resume from: the window starts at sample `offset` of the `shard`-th shard of this worker."""
        return {**self.window_start, "position": self.position}

    def read_sample(self) -> Sample:
        """The next sample, undecoded."""
        if self.position == len(self.samples):
            self._next_window()
        index = self.order[self.position]
        sample, self.samples[index] = self.samples[index], None  # frees its bytes
        self.position += 1
        assert sample is not None
        return sample

    def _next_window(self) -> None:
        for _ in range(MAX_EMPTY_EPOCHS):
            self.window_start = dict(self.next)
            self.samples = []
            shards = epoch_order(self.source.num_shards, self.seed, self.window_start["epoch"])
            shards = shards[self.virtual_worker :: self.num_virtual_workers]
            while len(self.samples) < self.window and self.next["shard"] < len(shards):
                shard = int(shards[self.next["shard"]])
                if self.shard_iterator is None:
                    self.next["offset"] = max(self.next["offset"], self.num_validation.get(shard, 0))
                    self.shard_iterator = self.source.samples(shard, self.next["offset"])
                sample = next(self.shard_iterator, None)
                if sample is None:
                    self.shard_iterator = None
                    self.next = {**self.next, "shard": self.next["shard"] + 1, "offset": 0}
                else:
                    self.samples.append(sample)
                    self.next["offset"] += 1
            self.next["window"] += 1
            if self.next["shard"] == len(shards):
                self.next = {"epoch": self.window_start["epoch"] + 1, "shard": 0, "offset": 0, "window": 0}
            if self.samples:
                seed = example_seed(self.seed, self.window_start["epoch"], self.virtual_worker)
                self.order = epoch_order(len(self.samples), seed, self.window_start["window"]).tolist()
                self.position = 0
                return
        raise ValueError(
            f"{self.source.name} gave no image in {MAX_EMPTY_EPOCHS} epochs: the shards of a process are empty or all "
            "held out for validation; add shards, or set a smaller num_validation"
        )


@dataclass(eq=False)
class ImageStream(IterableDataset[dict[str, Any]]):
    """Batches of one process for the steps `start_step`..`end_step - 1`, read from shards.

    Use it as `DataLoader(stream, batch_size=None, num_workers=stream.usable_workers(n))`; the batches come in the
    order of the steps. A batch is

    ```
    {"pixel_values": (n, C, h, w), "path": list of n str, "skipped": list of str, "virtual_worker": int, "state": dict}
    ```

    Each process has `virtual_workers` virtual workers, and step s gets its batch from virtual worker s mod
    `virtual_workers`, so that the batches do not depend on the number of actual workers. In each epoch, the shards are
    permuted by (seed, epoch) and distributed over the virtual workers of all processes; each reads its shards in order
    and shuffles the samples in windows. Shards differ in length, so virtual workers finish an epoch at different
    times, but each yields every example of its shards once per epoch.

    To resume, keep `states[batch["virtual_worker"]] = batch["state"]` for each batch *used*, store `states` as JSON,
    and pass it with the next step as `start_step` to a stream with the same other arguments: the batches are those of
    the uninterrupted run. A resumed virtual worker reads its current window again.

    Args:
        sources: The sources, see [`ShardedDataset`]; `open_images` makes them.
        transform: Takes an undecoded sample and gives `pixel_values`, as `PretrainTransform` does; draws from torch's
            default CPU generator only, which is seeded by (seed, step, position in the global batch) for each example.
        global_batch_size: Examples per step over all processes, each of which gets its `batch_slice`.
        states: State of each virtual worker after the step before `start_step`; None at the run's start.
        weights: Share of each source in the examples, see [`SourceMixture`]; equal shares by default, as the
            sources' sizes are not known.
        window: Size of the shuffle buffer of each source and process, in examples, over all virtual workers. They are
            kept undecoded: 1000 photographs of 100 kB take 100 MB for each source and process.
        skip_bad_files: Whether to replace an example that cannot be decoded by the next one; the batch then lists it
            in `skipped`. The 100th in a row still raises its `BadFileError`.
        num_validation: Number of examples at the head of the first source that are never yielded; see [`head`].

    Attributes:
        virtual_workers: Number of virtual workers of this process: a power of two, at most 8 and at most the shards
            per process of each source.
    """

    sources: Sequence[ShardedDataset]
    transform: Callable[[Sample], Mapping[str, torch.Tensor]]
    _: KW_ONLY
    seed: int
    global_batch_size: int
    start_step: int
    end_step: int
    rank: int = 0
    world_size: int = 1
    states: Mapping[Any, State] | None = None
    weights: Sequence[float] | None = None
    window: int = 1000
    skip_bad_files: bool = False
    num_validation: int = 0

    def __post_init__(self) -> None:
        self.positions = batch_slice(self.global_batch_size, self.rank, self.world_size)
        self.mixture = SourceMixture(self.weights or [1.0] * len(self.sources), self.seed)
        self.virtual_workers = _count_virtual_workers(self.sources, self.world_size)
        self.worker_window = max(1, self.window // self.virtual_workers)
        self._states = {int(virtual_worker): state for virtual_worker, state in (self.states or {}).items()}
        self._held_out = self._validation_by_shard()
        self._check_states()

    def usable_workers(self, num_workers: int) -> int:
        """The largest number of `DataLoader` workers, at most `num_workers`, that divides the virtual workers."""
        return 1 << (min(num_workers, self.virtual_workers).bit_length() - 1) if num_workers > 0 else 0

    def head(self, count: int) -> list[Sample]:
        """The first `count` samples of the first source, or all if there are fewer, undecoded, in shard order."""
        return [sample for _, sample in self._read_head(count)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        num_workers, worker_id = (1, 0) if info is None else (info.num_workers, info.id)
        if self.virtual_workers % num_workers:
            raise ValueError(
                f"num_workers is {num_workers}, which does not divide the {self.virtual_workers} virtual workers; use "
                f"num_workers={self.usable_workers(num_workers)}, or more shards"
            )
        readers: dict[int, list[ShardReader]] = {}
        # The loader asks its workers in turn, starting with worker 0 at any step. The number of virtual workers is a
        # multiple of theirs, so each virtual worker stays on one worker.
        for step in range(self.start_step + worker_id, self.end_step, num_workers):
            virtual_worker = step % self.virtual_workers
            if virtual_worker not in readers:
                readers[virtual_worker] = self._make_readers(virtual_worker)
            yield self._batch(step, virtual_worker, readers[virtual_worker])

    def _batch(self, step: int, virtual_worker: int, readers: list[ShardReader]) -> dict[str, Any]:
        pixels: list[torch.Tensor] = []
        paths: list[str] = []
        skipped: list[str] = []
        num_consecutive_bad = 0
        while len(pixels) < len(self.positions):
            position = self.positions[len(pixels)]
            source, _ = self.mixture.locate(step * self.global_batch_size + position)
            sample = readers[source].read_sample()
            try:
                with seed_rng(self.seed, step, position, AUGMENTATION):
                    pixels.append(self.transform(sample)["pixel_values"])
            except (BadFileError, OSError) as error:
                num_consecutive_bad += 1
                if not self.skip_bad_files or num_consecutive_bad == MAX_CONSECUTIVE_BAD:
                    raise
                skipped.append(getattr(error, "path", "") or sample["path"])
            else:
                num_consecutive_bad = 0
                paths.append(sample["path"])
        state = {**self._stream_layout(), "step": step, "sources": [reader.state() for reader in readers]}
        batch = {"pixel_values": torch.stack(pixels), "path": paths, "skipped": skipped}
        return {**batch, "virtual_worker": virtual_worker, "state": state}

    def _make_readers(self, virtual_worker: int) -> list[ShardReader]:
        states = (
            self._states[virtual_worker]["sources"] if virtual_worker in self._states else [None] * len(self.sources)
        )
        return [
            ShardReader(
                source=source,
                seed=source_seed(self.seed, source_index, len(self.sources)),
                virtual_worker=self.rank * self.virtual_workers + virtual_worker,
                num_virtual_workers=self.world_size * self.virtual_workers,
                window=self.worker_window,
                num_validation=self._held_out if source_index == 0 else {},
                resumed=state,
            )
            for source_index, (source, state) in enumerate(zip(self.sources, states, strict=True))
        ]

    def _stream_layout(self) -> State:
        """The settings that a saved state depends on."""
        return {
            "shards": [source.num_shards for source in self.sources],
            "processes": self.world_size,
            "window": self.worker_window,
            "num_validation": self.num_validation,
        }

    def _check_states(self) -> None:
        for virtual_worker in range(min(self.start_step, self.virtual_workers)):
            if virtual_worker not in self._states:
                raise ValueError(
                    f"states lacks virtual worker {virtual_worker}, which was used before start_step "
                    f"{self.start_step}; pass the states stored with that step, or start at step 0"
                )
        for virtual_worker, state in self._states.items():
            for name, value in self._stream_layout().items():
                if name not in state:
                    raise ValueError(
                        f"the state to resume from has no {name}, because another version stored it; resume with that "
                        "version, or start a new run"
                    )
                if state[name] != value:
                    raise ValueError(
                        f"the state to resume from was stored with {name} {state[name]}, but now it is {value}; "
                        "resume with the same shards, processes, window and num_validation, or start a new run"
                    )
            next_step = state["step"] + self.virtual_workers
            if (
                state["step"] >= self.start_step
                or next_step < self.start_step
                or next_step % self.virtual_workers != virtual_worker
            ):
                raise ValueError(
                    f"the state of virtual worker {virtual_worker} is of step {state['step']}, not its last "
                    f"before start_step {self.start_step}; pass the states and the step of one checkpoint"
                )

    def _read_head(self, count: int) -> list[tuple[int, Sample]]:
        head: list[tuple[int, Sample]] = []
        for shard in range(self.sources[0].num_shards):
            if len(head) == count:
                break
            samples = self.sources[0].samples(shard)
            head += [(shard, sample) for _, sample in zip(range(count - len(head)), samples, strict=False)]
        return head

    def _validation_by_shard(self) -> dict[int, int]:
        """Maps shards of the first source to the number of their first samples that are held out for validation."""
        head = self._read_head(self.num_validation + 1) if self.num_validation else []
        if self.num_validation and len(head) <= self.num_validation:
            raise ValueError(
                f"num_validation is {self.num_validation}, but {self.sources[0].name} has only {len(head)} images; "
                "set a smaller number"
            )
        return Counter(shard for shard, _ in head[: self.num_validation])


def _count_virtual_workers(sources: Sequence[ShardedDataset], world_size: int) -> int:
    for source in sources:
        if source.num_shards < world_size:
            raise ValueError(
                f"{source.name} has {source.num_shards} shard(s), but each of {world_size} processes reads its own "
                f"shards; split it into at least {world_size} shards, or start at most {source.num_shards} "
                "process(es)"
            )
    min_shards = min(source.num_shards for source in sources) // world_size
    return 1 << (min(min_shards, MAX_VIRTUAL_WORKERS).bit_length() - 1)
