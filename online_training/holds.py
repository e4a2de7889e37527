"""How many window starts hold each slot, and which slots nobody holds: counts in an array, for many at a time."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from .slot_set import SlotSet

_MOST_TOUCHED = 64


class Holds:
    """Counts of holders, and the slots in use that have none: those can be reclaimed.

    A draw and a release only count. Which slots are free of holders by that is settled when somebody asks, as a slot
    that is drawn again in the meantime is not even noticed.

    capacity, shards : slots, and into how many equal and contiguous parts they are divided.
    generator : chooses among those that can be reclaimed.
    """

    def __init__(self, capacity: int, shards: int, generator: random.Random) -> None:
        self._counts = np.zeros(capacity, np.int64)
        self._in_use = np.zeros(capacity, bool)
        bounds = [-(-capacity * shard // shards) for shard in range(shards + 1)]
        self._bounds = np.array(bounds)
        self._reclaimable = [SlotSet(range(*bounds[shard : shard + 2]), generator) for shard in range(shards)]
        self._touched: list[np.ndarray] = []

    def begin(self, slot: int, holders: int) -> None:
        """A slot is in use from now on, held by so many."""
        self._counts[slot], self._in_use[slot] = holders, True

    def end(self, slot: int) -> None:
        """A slot that nobody holds is not in use any more."""
        self._in_use[slot] = False
        shard = int(np.searchsorted(self._bounds, slot, side="right")) - 1
        self._reclaimable[shard].discard((slot,))

    def add(self, slots: np.ndarray | Sequence[int], change: int) -> None:
        """Change the number of holders of slots, of each as often as it is named, by 1 or -1."""
        slots = np.asarray(slots, np.int64)
        np.add.at(self._counts, slots, change)
        self._touched.append(slots)
        if len(self._touched) > _MOST_TOUCHED:
            self._settle()

    def count(self, slot: int) -> int:
        """Return how many hold a slot."""
        return int(self._counts[slot])

    def reclaimable(self) -> list[SlotSet]:
        """Return the slots in use that nobody holds, of each shard; to look at, and valid until the next change."""
        if self._touched:
            self._settle()
        return self._reclaimable

    def _settle(self) -> None:
        slots = np.unique(np.concatenate(self._touched))
        self._touched.clear()
        free = self._in_use[slots] & (self._counts[slots] == 0)
        cuts = np.searchsorted(slots, self._bounds)
        for shard, members in enumerate(self._reclaimable):
            part = slice(cuts[shard], cuts[shard + 1])
            members.settle(slots[part], free[part])
