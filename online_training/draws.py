"""Answers the trainer's draws: each batch is drawn once and dealt to all workers; tickets come back when used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from .buffer import Buffer, StreamEnded, Window
from .client import MAX_BLOCK, WireError

MAX_PENDING = 64


def batch_dtype(window: int, num_parameters: int) -> np.dtype:
    """Layout of one record of BATCH's table, as in docs/wire.md."""
    return np.dtype(
        [
            ("ticket", "<u8"), ("simulation", "<u8"), ("attempt", "<u4"), ("start", "<u4"), ("first", "u1"),
            ("slots", "<u4", (window,)), ("times", "<f8", (window,)), ("parameters", "<f8", (num_parameters,)),
        ]
    )  # fmt: skip


@dataclass
class _Batch:
    slices: list[np.ndarray]
    waiting: set[int] = field(default_factory=set)


class Draws:
    """The draws of one generation of trainer workers after the other.

    tabulate : makes BATCH's records of drawn windows.
    may_draw : whether the reuse of windows allows another batch now.
    """

    def __init__(
        self, buffer: Buffer, tabulate: Callable[[list[Window]], np.ndarray], may_draw: Callable[[], bool]
    ) -> None:
        self._buffer, self._tabulate, self._may_draw = buffer, tabulate, may_draw
        self.generation = -1
        self.drawn = self.released = self.starts_used = 0
        self.ended = False
        self._stop = False
        self._num_workers = 0
        self._next: int | None = None
        self._asked: dict[int, dict[int, int]] = {}
        self._batches: dict[int, _Batch] = {}
        # Whether a draw that is not released counts as its window's first; and how many more workers have it.
        self._tickets: dict[int, bool] = {}
        self._copies: Counter[int] = Counter()

    @property
    def unreleased(self) -> int:
        """Drawn windows that no worker has released."""
        return len(self._tickets)

    def begin_generation(self, generation: int, num_workers: int) -> None:
        """A restarted trainer starts afresh: what the older workers had not used goes back to the buffer."""
        if self._tickets:
            self._buffer.release(list(self._tickets), used=False)
            self.drawn -= len(self._tickets)
        self.generation, self._num_workers = generation, num_workers
        self._next, self.ended = None, False
        for held in (self._asked, self._batches, self._tickets, self._copies):
            held.clear()

    def ask(self, index: int, worker: int, num_workers: int, batch: int, record_bytes: int) -> None:
        """Note that a worker wants its slice of a batch.

        Raises
        ------
        WireError : "draw": an index that was answered before, too far ahead, or another number of workers.
        """
        if self._next is None:
            self._next = index
        if num_workers != self._num_workers or not 0 <= worker < num_workers:
            raise WireError("draw")
        if not 1 <= batch or batch * record_bytes > MAX_BLOCK or index >= self._next + MAX_PENDING:
            raise WireError("draw")
        if index < self._next and worker not in self._waiting(index):
            raise WireError("draw")
        self._asked.setdefault(index, {})[worker] = batch

    def _waiting(self, index: int) -> set[int]:
        batch = self._batches.get(index)
        return batch.waiting if batch else set()

    def stop(self) -> None:
        """Nothing more is drawn: every later batch is the end of the stream."""
        self._stop = True

    def answers(self) -> Iterator[tuple[int, int, np.ndarray | None]]:
        """Yield (worker, index, records or None for the end) for all that can be answered now, in order."""
        while self._next in self._asked and not self.ended:
            if not self._draw():
                break
        for index in sorted(self._asked):
            batch = self._batches.get(index)
            if batch is None and not (self.ended and index >= self._next):
                continue
            for worker in list(self._asked[index]):
                yield worker, index, None if batch is None else batch.slices[worker]
                if batch is not None:
                    batch.waiting.discard(worker)
            del self._asked[index]
            if batch is not None and not batch.waiting:
                del self._batches[index]

    def _draw(self) -> bool:
        """Draw the next batch; False where it must wait."""
        if self._stop:
            self.ended = True
            return False
        if not self._may_draw():
            return False
        try:
            windows = self._buffer.sample(max(self._asked[self._next].values()))
        except StreamEnded:
            self.ended = True
            return False
        if not windows:
            return False
        # Slices are cut in the order of shards: whatever their number, the workers share out the shards among them.
        if self._buffer.shards > 1:
            windows.sort(key=lambda window: self._buffer.shard_of(window.slots[0]))
        records = self._tabulate(windows)
        self.drawn += len(windows)
        self._tickets.update([(window.ticket, window.first) for window in windows])
        slices = np.array_split(records, self._num_workers) if self._num_workers > 1 else [records]
        if len(records) < self._num_workers:
            # Every worker needs something to compute on: at the very end a few windows are used twice.
            order = np.arange(self._num_workers) % len(records)
            for extra in order[len(records) :]:
                self._copies[windows[extra].ticket] += 1
            dealt = records[order]
            dealt["first"][len(records) :] = 0
            slices = np.array_split(dealt, self._num_workers)
        self._batches[self._next] = _Batch(slices, set(range(self._num_workers)))
        self._next += 1
        return True

    def release(self, tickets: np.ndarray) -> None:
        """Windows were used; tickets that are unknown, e.g. released before, are ignored."""
        done = []
        for number in tickets.tolist():
            if number not in self._tickets:
                continue
            if self._copies and self._copies[number]:
                self._copies[number] -= 1
                continue
            self.starts_used += self._tickets.pop(number)
            done.append(number)
        self.released += len(done)
        if done:
            self._buffer.release(done, used=True)
