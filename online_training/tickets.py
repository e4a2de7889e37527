"""What is remembered of draws that are out, by their tickets, which are numbers that grow: an array."""

from __future__ import annotations

import numpy as np

_LEAST = 1024


class Tickets:
    """A code, 0 or more, for each ticket that is out. Its memory is that between the oldest one and the newest."""

    def __init__(self) -> None:
        self._codes = np.full(_LEAST, -1, np.int64)
        self._first = self._end = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, tickets: np.ndarray, codes: np.ndarray) -> None:
        """Note tickets, (number,), that were never out before."""
        if not len(tickets):
            return
        end = max(self._end, int(tickets.max()) + 1)
        if end - self._first > len(self._codes):
            self._make_room(min(self._end, int(tickets.min())), end)
        self._end = end
        self._codes[tickets - self._first] = codes
        self._count += len(tickets)

    def _make_room(self, first: int, end: int) -> None:
        """Forget what lies before the oldest ticket, and take twice the memory that the others need."""
        out = self.out()
        first = min(first, int(out[0])) if len(out) else first
        codes = np.full(max(_LEAST, 2 * (end - first)), -1, np.int64)
        codes[out - first] = self._codes[out - self._first]
        self._codes, self._first = codes, first

    def look(self, tickets: np.ndarray) -> np.ndarray:
        """Return the codes of tickets, (number,); -1 where one is not out, or stands here for the second time."""
        if not len(tickets):
            return np.empty(0, np.int64)
        begin, end = int(tickets[0]) - self._first, int(tickets[-1]) - self._first + 1
        ascending = bool((tickets[1:] > tickets[:-1]).all())
        if ascending and end - begin == len(tickets) and begin >= 0 and end <= len(self._codes):
            return self._codes[begin:end].copy()  # as they were given out
        places = tickets - self._first
        inside = (places >= 0) & (places < len(self._codes))
        codes = np.where(inside, self._codes[np.where(inside, places, 0)], -1)
        if not ascending:
            again = np.ones(len(tickets), bool)
            again[np.unique(tickets, return_index=True)[1]] = False
            codes[again] = -1
        return codes

    def remove(self, tickets: np.ndarray) -> None:
        """Forget tickets that are out, each named once."""
        self._codes[tickets - self._first] = -1
        self._count -= len(tickets)

    def out(self) -> np.ndarray:
        """Return all that are out, in their order."""
        return self._first + np.flatnonzero(self._codes[: self._end - self._first] >= 0)

    def clear(self) -> None:
        """Forget all."""
        self._codes.fill(-1)
        self._count = 0
