"""A set of slots from which a seeded generator draws members at random: arrays, for many slots at a time."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np


def named_last(numbers: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return for each number whether it is not named again behind its place: True once for each that is there.

    places : memory for this, one place for every number there may be; what stands there before does not matter.
    """
    order = np.arange(len(numbers))
    places[numbers] = order
    return places[numbers] == order


class SlotSet:
    """Slots in an arbitrary but reproducible order: the same calls with the same seed give the same draws.

    possible : slots that may ever be members, contiguous.
    """

    def __init__(self, possible: range, generator: random.Random) -> None:
        self._generator, self._first = generator, possible.start
        self._members = np.zeros(len(possible), np.int64)
        self._places = np.full(len(possible), -1, np.int64)
        # The same memory: of a single number Python makes a fifth of the work that numpy does.
        self._member, self._place = memoryview(self._members), memoryview(self._places)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, slot: int) -> bool:
        place = slot - self._first
        return 0 <= place < len(self._place) and self._place[place] >= 0

    def add(self, slot: int) -> None:
        """Add a slot; one that is there already stays."""
        if self._place[slot - self._first] < 0:
            self._member[self._size] = slot
            self._place[slot - self._first] = self._size
            self._size += 1

    def discard(self, slots: Iterable[int]) -> None:
        """Remove slots that are there, one after the other; each time the last one takes its place."""
        members, places, first = self._member, self._place, self._first
        for slot in slots:
            place = places[slot - first]
            if place >= 0:
                self._size -= 1
                last = members[self._size]
                members[place] = last
                places[last - first] = place
                places[slot - first] = -1

    def settle(self, slots: np.ndarray, wanted: np.ndarray) -> None:
        """Of slots, each named once, let those be members that are wanted, and the others not."""
        here = self._places[slots - self._first] >= 0
        self._remove(slots[here & ~wanted])
        new = slots[wanted & ~here]
        end = self._size + len(new)
        self._members[self._size : end] = new
        self._places[new - self._first] = np.arange(self._size, end)
        self._size = end

    def _remove(self, gone: np.ndarray) -> None:
        """Remove members; those at the end take their places."""
        places, first = self._places, self._first
        end, holes = self._size - len(gone), places[gone - first]
        places[gone - first] = -1
        tail = self._members[end : self._size]
        movers, holes = tail[places[tail - first] >= 0], holes[holes < end]
        self._members[holes] = movers
        places[movers - first] = holes
        self._size = end

    def choose(self) -> int:
        """Return one member, uniformly."""
        return self._member[self._generator.randrange(self._size)]

    def sample(self, counts: Sequence[int]) -> np.ndarray:
        """Return members uniformly, so many for each of some batches, one batch behind the other.

        Without repetition in a batch where there are enough, else with as little as possible.
        """
        # Where members are many, `random.Random.sample` would choose the same, in ten times as long.
        many = self._size > 21 + 12 * max(counts)
        return self._members[self._places_among_many(counts) if many else self._places_among_few(counts)]

    def _places_among_few(self, counts: Sequence[int]) -> list[int]:
        chosen: list[int] = []
        for count in counts if self._size else ():
            for part in (self._size,) * (count // self._size) + (count % self._size,):
                chosen += self._generator.sample(range(self._size), part)
        return chosen

    def _places_among_many(self, counts: Sequence[int]) -> np.ndarray:
        bits, number, missing = self._size.bit_length(), 0, sum(counts)
        chosen: list[np.ndarray] = []
        batch: dict[int, None] = {}  # of which some are still missing
        while missing:
            # As many words as are needed at least, so that the generator stands where it would after single draws.
            words = np.frombuffer(self._generator.getrandbits(32 * missing).to_bytes(4 * missing, "little"), "<u4")
            found = words >> (32 - bits)
            found = found[found < self._size]
            values, begin = found.tolist(), 0
            while begin < len(values):
                count = counts[number]
                end = begin + count - len(batch)
                part = values[begin:end]
                if len(part) == count == len(set(part)):
                    chosen.append(found[begin:end])
                else:
                    batch.update(dict.fromkeys(part))
                    if len(batch) < count:
                        begin = end
                        continue
                    chosen.append(np.fromiter(batch, np.uint32, count))
                    batch = {}
                begin, number = end, number + 1
            missing = sum(counts[number:]) - len(batch)
        return np.concatenate(chosen)
