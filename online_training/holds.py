"""How often each slot is held, and which slots nobody holds: counts in an array, for many at a time."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from .slot_set import SlotSet, named_last

_MOST_TOUCHED = 64


class Holds:
    """Counts of holds, and the slots in use that have none: those can be reclaimed.

    A draw and a release only count. Which slots nobody holds after them is settled when somebody asks.

    capacity, shards : slots, and into how many equal and contiguous parts they are divided.
    generator : chooses among those that can be reclaimed.
    """

    def __init__(self, capacity: int, shards: int, generator: random.Random) -> None:
        self._counts = np.zeros(capacity, np.int64)
        self._in_use = np.zeros(capacity, bool)
        bounds = [-(-capacity * shard // shards) for shard in range(shards + 1)]
        self._reclaimable = [SlotSet(range(*bounds[shard : shard + 2]), generator) for shard in range(shards)]
        self._bounds = bounds
        self._count, self._used = memoryview(self._counts), memoryview(self._in_use)  # for single numbers
        self._touched: list[np.ndarray] = []
        self._places = np.zeros(capacity, np.int64)

    def begin(self, slot: int, holders: int) -> None:
        """A slot is in use from now on, held so often."""
        self._count[slot], self._used[slot] = holders, True

    def end(self, slot: int) -> None:
        """A slot that nobody holds is not in use any more."""
        self._used[slot] = False
        self._reclaimable[bisect_right(self._bounds, slot) - 1].discard((slot,))

    def add(self, slots: np.ndarray | Sequence[int], change: int) -> None:
        """Change how often slots are held, each as often as it is named, by 1 or -1."""
        slots = np.asarray(slots, np.int64)
        np.add.at(self._counts, slots, change)
        self._touched.append(slots)
        if len(self._touched) > _MOST_TOUCHED:
            self._settle()

    def count(self, slot: int) -> int:
        """Return how often a slot is held."""
        return self._count[slot]

    def reclaimable(self) -> list[SlotSet]:
        """Return the slots in use that nobody holds, of each shard; to look at, and valid until the next change."""
        if self._touched:
            self._settle()
        return self._reclaimable

    def _settle(self) -> None:
        slots = np.concatenate(self._touched)
        self._touched.clear()
        slots = slots[named_last(slots, self._places)]
        free = self._in_use[slots] & (self._counts[slots] == 0)
        if len(self._reclaimable) == 1:
            self._reclaimable[0].settle(slots, free)
            return
        for shard, members in enumerate(self._reclaimable):
            here = (slots >= self._bounds[shard]) & (slots < self._bounds[shard + 1])
            members.settle(slots[here], free[here])
