"""The place of one lane of a stream in one source: shards of an epoch, and shuffled windows of their rows."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from .rows import Row
from .sampling import epoch_order, example_seed


State = dict[str, Any]

MAX_EMPTY_EPOCHS = 100


class ShardedRows(Protocol):
    """A source: rows in numbered shards, each readable from any place, such as `ShardedImages`."""

    name: str
    num_shards: int

    def rows(self, shard: int, start: int = 0) -> Iterator[Row]:
        """The undecoded rows of one shard from row `start` on, always in the same order."""
        ...


class Cursor:
    """Gives the rows of one source that fall to one lane, one after another without end.

    Args:
        source: The source.
        seed: Seed of the run and the source.
        lane: This lane, counted over all processes.
        lanes: Number of lanes of all processes, at most the source's shards.
        window: Number of rows that are shuffled, and held, together.
        held_out: Shard to the number of its first rows that are left out.
        state: From [`state`], to go on from there; None at the start.

    Raises:
        ValueError: By [`next_row`]: the lane finds no row at all.
    """

    def __init__(
        self,
        source: ShardedRows,
        *,
        seed: int,
        lane: int,
        lanes: int,
        window: int,
        held_out: Mapping[int, int],
        state: State | None,
    ) -> None:
        self.source, self.seed, self.lane, self.lanes = source, seed, lane, lanes
        self.length, self.held_out = window, held_out
        self.begin: State = {"epoch": 0, "shard": 0, "offset": 0, "window": 0}
        self.next = dict(self.begin)  # where the window after the present one begins
        self.rows: list[Row | None] = []
        self.order: list[int] = []
        self.place = 0
        self.reader: Iterator[Row] | None = None
        if state is not None:
            self.next = {name: state[name] for name in self.begin}
            self._next_window()
            self.place = state["place"]

    def state(self) -> State:
        """Where it is: the window begins at row `offset` of the `shard`-th of the lane's shards; `place` is in it."""
        return {**self.begin, "place": self.place}

    def next_row(self) -> Row:
        """The next row, undecoded."""
        if self.place == len(self.rows):
            self._next_window()
        index = self.order[self.place]
        row, self.rows[index] = self.rows[index], None  # its bytes are not needed again
        self.place += 1
        assert row is not None
        return row

    def _next_window(self) -> None:
        for _ in range(MAX_EMPTY_EPOCHS):
            self.begin = dict(self.next)
            self.rows = []
            shards = epoch_order(self.source.num_shards, self.seed, self.begin["epoch"])[self.lane :: self.lanes]
            while len(self.rows) < self.length and self.next["shard"] < len(shards):
                shard = int(shards[self.next["shard"]])
                if self.reader is None:
                    self.next["offset"] = max(self.next["offset"], self.held_out.get(shard, 0))
                    self.reader = self.source.rows(shard, self.next["offset"])
                row = next(self.reader, None)
                if row is None:
                    self.reader = None
                    self.next = {**self.next, "shard": self.next["shard"] + 1, "offset": 0}
                else:
                    self.rows.append(row)
                    self.next["offset"] += 1
            self.next["window"] += 1
            if self.next["shard"] == len(shards):
                self.next = {"epoch": self.begin["epoch"] + 1, "shard": 0, "offset": 0, "window": 0}
            if self.rows:
                seed = example_seed(self.seed, self.begin["epoch"], self.lane)
                self.order = epoch_order(len(self.rows), seed, self.begin["window"]).tolist()
                self.place = 0
                return
        raise ValueError(
            f"{self.source.name} gave no image in {MAX_EMPTY_EPOCHS} epochs of a lane: its shards are empty or held "
            "out; give more shards, or hold fewer images out"
        )
