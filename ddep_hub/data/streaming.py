"""Batches streamed from shards: a stream has lanes, each with a position in every source and a shuffling window."""

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
MAX_LANES = 8
# Separates the random numbers of the augmentation from those of the noise, which is seeded by (seed, step, position).
AUGMENTATION = 1


class ShardedDataset(Protocol):
    """A source: samples in numbered shards, each readable from any place, such as `ShardedImages`."""

    name: str
    num_shards: int

    def samples(self, shard: int, start: int = 0) -> Iterator[Sample]:
        """The undecoded samples of one shard from sample `start` on, always in the same order."""
        ...


@dataclass(kw_only=True)
class Cursor:
    """Gives the samples of one source that fall to one lane, one after another without end.

    Args:
        seed: Seed of the run and the source.
        lane: This lane, counted over all processes.
        num_lanes: Number of lanes of all processes, at most the source's shards.
        window: Number of samples that are shuffled, and held, together.
        num_validation: Maps each shard to the number of its first samples to skip.
        resumed: From [`state`], to go on from there; None at the start.
    """

    source: ShardedDataset
    seed: int
    lane: int
    num_lanes: int
    window: int
    num_validation: Mapping[int, int]
    resumed: InitVar[State | None]

    def __post_init__(self, resumed: State | None) -> None:
        self.window_start: State = {"epoch": 0, "shard": 0, "offset": 0, "window": 0}
        self.next = dict(self.window_start)  # where the window after the present one begins
        self.samples: list[Sample | None] = []
        self.order: list[int] = []
        self.place = 0
        self.reader: Iterator[Sample] | None = None
        if resumed is not None:
            self.next = {name: resumed[name] for name in self.window_start}
            self._next_window()
            self.place = resumed["place"]

    def state(self) -> State:
        """Where it is: the window begins at sample `offset` of the lane's `shard`-th shard; `place` is in it."""
        return {**self.window_start, "place": self.place}

    def read_sample(self) -> Sample:
        """The next sample, undecoded."""
        if self.place == len(self.samples):
            self._next_window()
        index = self.order[self.place]
        sample, self.samples[index] = self.samples[index], None  # its bytes are not needed again
        self.place += 1
        assert sample is not None
        return sample

    def _next_window(self) -> None:
        for _ in range(MAX_EMPTY_EPOCHS):
            self.window_start = dict(self.next)
            self.samples = []
            shards = epoch_order(self.source.num_shards, self.seed, self.window_start["epoch"])
            shards = shards[self.lane :: self.num_lanes]
            while len(self.samples) < self.window and self.next["shard"] < len(shards):
                shard = int(shards[self.next["shard"]])
                if self.reader is None:
                    self.next["offset"] = max(self.next["offset"], self.num_validation.get(shard, 0))
                    self.reader = self.source.samples(shard, self.next["offset"])
                sample = next(self.reader, None)
                if sample is None:
                    self.reader = None
                    self.next = {**self.next, "shard": self.next["shard"] + 1, "offset": 0}
                else:
                    self.samples.append(sample)
                    self.next["offset"] += 1
            self.next["window"] += 1
            if self.next["shard"] == len(shards):
                self.next = {"epoch": self.window_start["epoch"] + 1, "shard": 0, "offset": 0, "window": 0}
            if self.samples:
                seed = example_seed(self.seed, self.window_start["epoch"], self.lane)
                self.order = epoch_order(len(self.samples), seed, self.window_start["window"]).tolist()
                self.place = 0
                return
        raise ValueError(
            f"{self.source.name} gave no image in {MAX_EMPTY_EPOCHS} epochs of a lane: its shards are empty or all "
            "held out for validation; add shards, or set a smaller num_validation"
        )


@dataclass(eq=False)
class ImageStream(IterableDataset[dict[str, Any]]):
    """Batches of one process for the steps `start_step`..`end_step - 1`, read from shards.

    Use it as `DataLoader(stream, batch_size=None, num_workers=stream.usable_workers(n))`; the batches come in the
    order of the steps. A batch is

    ```
    {"pixel_values": (n, C, h, w), "path": list of n str, "skipped": list of str, "lane": int, "state": dict}
    ```

    A process reads in `lanes` lanes, and step s is served by lane s mod `lanes`, so that what a step holds does not
    depend on the number of workers. In each epoch the shards are permuted by (seed, epoch) and dealt to the lanes of
    all processes; a lane reads its shards one after another and shuffles them in windows. An epoch of a lane ends
    where its shards do, and shards differ in length: lanes drift apart, but each shows every example of its shards
    once before it continues.

    To resume, keep `states[batch["lane"]] = batch["state"]` for each batch *used*, store `states` (JSON), and pass it
    with the next step as `start_step` to a stream with the same other arguments: the batches are those of the
    uninterrupted run. A resumed lane reads its current window again.

    Args:
        sources: The sources, see [`ShardedDataset`]; `open_images` makes them.
        transform: Takes an undecoded sample and gives `pixel_values`, as `PretrainTransform` does; draws from torch's
            default CPU generator only, which is seeded by (seed, step, position in the global batch) for each example.
        global_batch_size: Examples per step over all processes, each of which gets its `batch_slice`.
        states: States of the lanes, lane to state, after the step before `start_step`; None at the run's start.
        weights: Share of each source in the examples, see [`SourceMixture`]; equal shares by default, as the
            sources' sizes are not known.
        window: Examples of one source that a process holds and shuffles at a time, over all its lanes. They are held
            undecoded: 1000 photographs of 100 kB are 100 MB for each source and process.
        skip_bad_files: Whether the next example of the lane takes the place of one that cannot be decoded; its name
            is then in the batch's `skipped`. The 100th in a row raises its `BadFileError` all the same.
        num_validation: Number of examples at the head of the first source that are never yielded; see [`head`].

    Attributes:
        lanes: Lanes of this process: a power of two, at most 8 and at most the shards per process of each source.
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
        self.lanes = _count_lanes(self.sources, self.world_size)
        self.lane_window = max(1, self.window // self.lanes)
        self._states = {int(lane): state for lane, state in (self.states or {}).items()}
        self._held_out = self._validation_by_shard()
        self._check_states()

    def usable_workers(self, num_workers: int) -> int:
        """The largest number of a `DataLoader`'s workers, at most `num_workers`, that the lanes can be dealt to."""
        return 1 << (min(num_workers, self.lanes).bit_length() - 1) if num_workers > 0 else 0

    def head(self, count: int) -> list[Sample]:
        """The first `count` samples of the first source, or all of fewer, undecoded and in the order of its shards."""
        return [sample for _, sample in self._read_head(count)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        num_workers, worker_id = (1, 0) if info is None else (info.num_workers, info.id)
        if self.lanes % num_workers:
            raise ValueError(
                f"num_workers is {num_workers}, but {self.lanes} lanes cannot be divided evenly among them; use "
                f"num_workers={self.usable_workers(num_workers)}, or more shards"
            )
        cursors: dict[int, list[Cursor]] = {}
        # The loader asks its workers in turn, starting with worker 0 at whatever step the run is resumed. As the
        # number of lanes is a multiple of the number of workers, each lane stays with one worker.
        for step in range(self.start_step + worker_id, self.end_step, num_workers):
            lane = step % self.lanes
            if lane not in cursors:
                cursors[lane] = self._make_cursors(lane)
            yield self._batch(step, lane, cursors[lane])

    def _batch(self, step: int, lane: int, cursors: list[Cursor]) -> dict[str, Any]:
        pixels: list[torch.Tensor] = []
        paths: list[str] = []
        skipped: list[str] = []
        num_consecutive_bad = 0
        while len(pixels) < len(self.positions):
            position = self.positions[len(pixels)]
            source, _ = self.mixture.locate(step * self.global_batch_size + position)
            sample = cursors[source].read_sample()
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
        state = {**self._stream_layout(), "step": step, "sources": [cursor.state() for cursor in cursors]}
        return {"pixel_values": torch.stack(pixels), "path": paths, "skipped": skipped, "lane": lane, "state": state}

    def _make_cursors(self, lane: int) -> list[Cursor]:
        states = self._states[lane]["sources"] if lane in self._states else [None] * len(self.sources)
        return [
            Cursor(
                source=source,
                seed=source_seed(self.seed, source_index, len(self.sources)),
                lane=self.rank * self.lanes + lane,
                num_lanes=self.world_size * self.lanes,
                window=self.lane_window,
                num_validation=self._held_out if source_index == 0 else {},
                resumed=state,
            )
            for source_index, (source, state) in enumerate(zip(self.sources, states, strict=True))
        ]

    def _stream_layout(self) -> State:
        """What a state means something for: other shards or lanes would deal the examples otherwise."""
        return {
            "shards": [source.num_shards for source in self.sources],
            "processes": self.world_size,
            "window": self.lane_window,
            "num_validation": self.num_validation,
        }

    def _check_states(self) -> None:
        for lane in range(min(self.start_step, self.lanes)):
            if lane not in self._states:
                raise ValueError(
                    f"states lacks lane {lane}, which has served steps before start_step {self.start_step}; pass the "
                    "states stored with that step, or start at step 0"
                )
        for lane, state in self._states.items():
            for name, value in self._stream_layout().items():
                if state[name] != value:
                    raise ValueError(
                        f"the state to resume from was stored with {name} {state[name]}, but now it is {value}; "
                        "resume with the same shards, processes, window and num_validation, or start a new run"
                    )
            next_step = state["step"] + self.lanes
            if state["step"] >= self.start_step or next_step < self.start_step or next_step % self.lanes != lane:
                raise ValueError(
                    f"the state of lane {lane} was stored after step {state['step']}, which is not its last before "
                    f"start_step {self.start_step}; pass the states and the step of one checkpoint"
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
        """Shard of the first source to the number of its first samples that are for validation."""
        head = self._read_head(self.num_validation + 1) if self.num_validation else []
        if self.num_validation and len(head) <= self.num_validation:
            raise ValueError(
                f"num_validation is {self.num_validation}, but {self.sources[0].name} holds {len(head)} images in "
                "all; set a smaller number"
            )
        return Counter(shard for shard, _ in head[: self.num_validation])


def _count_lanes(sources: Sequence[ShardedDataset], world_size: int) -> int:
    for source in sources:
        if source.num_shards < world_size:
            raise ValueError(
                f"{source.name} has {source.num_shards} shard(s), but each of {world_size} processes reads its own "
                f"shards; split it into at least {world_size} shards, or start at most {source.num_shards} "
                "process(es)"
            )
    min_shards = min(source.num_shards for source in sources) // world_size
    return 1 << (min(min_shards, MAX_LANES).bit_length() - 1)
