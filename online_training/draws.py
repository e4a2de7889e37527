"""Answers the trainer's draws: each batch is drawn once and dealt to all workers; tickets come back when used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np

from .buffer import Buffer, StreamEnded, window_dtype
from .client import MAX_BLOCK, WireError
from .tickets import Tickets

MAX_PENDING = 64
_MOST_BATCHES = 2**63  # as a number of 64 bits on the wire, and with room above


def batch_dtype(window: int, num_parameters: int) -> np.dtype:
    """Layout of one record of BATCH's table, as in docs/wire.md."""
    more = [("times", "<f8", (window,)), ("parameters", "<f8", (num_parameters,))]
    return np.dtype([*window_dtype(window).descr, *more])


@dataclass
class Answer:
    """Consecutive batches for one worker, of as many records each.

    index : of the first.
    request : index of the first batch of the DRAW that is answered; several are never answered together.
    batches : their records; none: the stream has ended.
    """

    worker: int
    index: int
    request: int
    batches: list[np.ndarray]

    def grows(self, index: int, request: int, records: np.ndarray | None) -> bool:
        """Take another batch; say whether it was taken."""
        if records is None or not self.batches or (index, request) != (self.index + len(self.batches), self.request):
            return False
        size = self.batches[0].nbytes
        if records.nbytes != size or (len(self.batches) + 1) * size > MAX_BLOCK:
            return False
        self.batches.append(records)
        return True


@dataclass
class _Batch:
    slices: list[np.ndarray]
    waiting: set[int] = field(default_factory=set)


class Draws:
    """The draws of one generation of trainer workers after the other.

    tabulate : makes BATCH's records of a table of draws.
    may_draw : whether the reuse of windows allows another batch now that so many are `drawn`.
    """

    def __init__(
        self, buffer: Buffer, tabulate: Callable[[np.ndarray], np.ndarray], may_draw: Callable[[], bool]
    ) -> None:
        self._buffer, self._tabulate, self._may_draw = buffer, tabulate, may_draw
        self.generation = -1
        self.drawn = self.released = self.starts_used = 0
        self.ended = False
        self._stop = False
        self._num_workers = 0
        self._next: int | None = None
        # Of each batch that was asked for: each worker's number of windows, and the first batch of its request.
        self._asked: dict[int, dict[int, tuple[int, int]]] = {}
        self._batches: dict[int, _Batch] = {}
        # Whether a draw that is not released counts as its window's first; and how many more workers have it.
        self._tickets = Tickets()
        self._copies: Counter[int] = Counter()

    @property
    def unreleased(self) -> int:
        """Drawn windows that no worker has released."""
        return len(self._tickets)

    def begin_generation(self, generation: int, num_workers: int) -> None:
        """A restarted trainer starts afresh: what the older workers had not used goes back to the buffer."""
        if len(self._tickets):
            self._buffer.release(self._tickets.out(), used=False)
            self.drawn -= len(self._tickets)
        self.generation, self._num_workers = generation, num_workers
        self._next, self.ended = None, False
        for held in (self._asked, self._batches, self._tickets, self._copies):
            held.clear()

    def ask(self, first: int, count: int, worker: int, num_workers: int, batch: int, record_bytes: int) -> None:
        """Note that a worker wants its slices of some batches.

        Raises
        ------
        WireError : "draw": an index that was answered before, is too far ahead or larger than any; another number of
            workers.
        """
        if num_workers != self._num_workers or not 0 <= worker < num_workers or first >= _MOST_BATCHES:
            raise WireError("draw")
        following = first if self._next is None else self._next
        if not 1 <= batch or batch * record_bytes > MAX_BLOCK or first + count > following + MAX_PENDING:
            raise WireError("draw")
        for index in range(first, min(first + count, following)):
            if worker not in self._waiting(index):
                raise WireError("draw")
        self._next = following
        for index in range(first, first + count):
            self._asked.setdefault(index, {})[worker] = batch, first

    def _waiting(self, index: int) -> set[int]:
        batch = self._batches.get(index)
        return batch.waiting if batch else set()

    def stop(self) -> None:
        """Nothing more is drawn: every later batch is the end of the stream."""
        self._stop = True

    def answers(self) -> Iterator[Answer]:
        """Yield all that can be answered now, in order; batches of one request and of one length are answered together.

        Several at a time cost a quick trainer, and the intake, hardly more than one.
        """
        self._draw()
        growing: dict[int, Answer] = {}
        for index in sorted(self._asked):
            batch = self._batches.get(index)
            if batch is None and not (self.ended and index >= self._next):
                continue
            for worker, (_, request) in self._asked.pop(index).items():
                records = None if batch is None else batch.slices[worker]
                answer = growing.get(worker)
                if answer is None or not answer.grows(index, request, records):
                    if answer is not None:
                        yield answer
                    growing[worker] = Answer(worker, index, request, [] if records is None else [records])
                if batch is not None:
                    batch.waiting.discard(worker)
            if batch is not None and not batch.waiting:
                del self._batches[index]
        yield from growing.values()

    def _draw(self) -> None:
        """Draw the batches that are asked for, up to one that must wait."""
        while self._next in self._asked and not self.ended and (drawn := self._sample()) is not None:
            records, sizes = self._tabulate(drawn[0]), drawn[1]
            self._tickets.put(records["ticket"].astype(np.int64), records["first"])
            for begin, end in pairwise([0, *accumulate(sizes)]):
                slices = self._slices(records[begin:end])
                self._batches[self._next] = _Batch(slices, set(range(self._num_workers)))
                self._next += 1

    def _sample(self) -> tuple[np.ndarray, list[int]] | None:
        """Draw the next batch, or some more; None where it must wait, or there is none."""
        if self._stop:
            self.ended = True
            return None
        counts, found, before = [], None, self.drawn
        while (asked := self._asked.get(self._next + len(counts))) is not None and self._may_draw():
            counts.append(max(batch for batch, _ in asked.values()))
            self.drawn += counts[-1]  # the next one depends on that
        try:
            if counts:
                found = self._buffer.sample_many(counts)
        except StreamEnded:
            self.ended = True
        self.drawn = before
        if found is None:
            return None
        table, sizes = found
        self.drawn += len(table)
        # Slices are cut in the order of shards: whatever their number, the workers share out the shards among them.
        if self._buffer.shards > 1:
            batch = np.repeat(np.arange(len(sizes)), sizes)
            table = table[np.lexsort((list(map(self._buffer.shard_of, table["slots"][:, 0].tolist())), batch))]
        return table, sizes

    def _slices(self, records: np.ndarray) -> list[np.ndarray]:
        """Deal a batch to the workers."""
        if self._num_workers == 1:
            return [records]
        if len(records) >= self._num_workers:
            return np.array_split(records, self._num_workers)
        # Every worker needs something to compute on: at the very end a few windows are used twice.
        order = np.arange(self._num_workers) % len(records)
        self._copies.update(records["ticket"][order[len(records) :]].tolist())
        dealt = records[order]
        dealt["first"][len(records) :] = 0
        return np.array_split(dealt, self._num_workers)

    def release(self, tickets: np.ndarray) -> None:
        """Windows were used; tickets that are unknown, e.g. released before, are ignored."""
        tickets = tickets.astype(np.int64)
        if self._copies:
            tickets = tickets[[not self._has_copy(number) for number in tickets.tolist()]]
        first = self._tickets.look(tickets)
        tickets, first = tickets[first >= 0], first[first >= 0]
        self._tickets.remove(tickets)
        self.starts_used += int(first.sum())
        self.released += len(tickets)
        if len(tickets):
            self._buffer.release(tickets, used=True)

    def _has_copy(self, ticket: int) -> bool:
        """Whether another worker has yet to use a window that was dealt twice; one has by now."""
        found = self._copies[ticket] > 0
        self._copies[ticket] -= found
        return found
