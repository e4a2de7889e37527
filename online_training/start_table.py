"""What is known of complete window starts and of their draws that are out: arrays, for many draws at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .buffer import window_dtype
from .slot_set import named_last
from .tickets import Tickets


class StartTable:
    """Complete starts, each named by the slot of its first step, and their draws, counted by tickets.

    drawn : (capacity,) of `window_dtype`, a draw of each start but for its ticket.
    seen : (capacity,), whether its first draw was used.
    first_is_out : (capacity,), whether a draw that counts as its first is not released yet.
    used_up : (capacity,), whether it was used for the last time; it dies with its last pin.
    pins : (capacity,), draws that are not released yet.
    tickets : of each draw that is not released: its start, whether it counts as its first and whether it is its last,
        as 4 start + 2 first + last.
    """

    def __init__(self, capacity: int, window: int) -> None:
        self.drawn = np.zeros(capacity, window_dtype(window))
        self._drawn_bytes = self.drawn.view(f"V{self.drawn.itemsize}")  # which numpy copies ten times as fast
        self.seen, self.first_is_out, self.used_up = (np.zeros(capacity, bool) for _ in range(3))
        self.pins = np.zeros(capacity, np.int64)
        self.tickets = Tickets()
        self._last_ticket = 0
        self._places = np.zeros(capacity, np.int64)
        # For single starts: the same memory, of which Python makes a fifth of the work that numpy does.
        self._new = tuple(map(memoryview, (self.seen, self.first_is_out, self.used_up, self.pins)))

    def add(self, simulation: int, attempt: int, index: int, slots: Sequence[int]) -> int:
        """Add the start with this index in its simulation, whose steps lie in slots; return its name."""
        start = slots[0]
        self.drawn[start] = 0, simulation, attempt, index, 0, slots
        for column in self._new:
            column[start] = 0
        return start

    def slots(self, starts: int | np.ndarray) -> np.ndarray:
        """Return the slots of a start, or of several, one after the other."""
        return self.drawn["slots"][starts].ravel()

    def deal(self, starts: Sequence[int] | np.ndarray, *, last: bool) -> np.ndarray:
        """Pin starts, each as often as it is named, and return a table of their draws.

        last : they were taken and die once used.
        """
        index = np.asarray(starts, np.int64)
        first = ~(self.seen[index] | self.first_is_out[index])
        if first.any():
            where = np.flatnonzero(first)
            some = index[where]
            first[where] = named_last(some[::-1], self._places)[::-1]  # of several draws of a start the earliest
            self.first_is_out[some] = True
        np.add.at(self.pins, index, 1)
        table = self._drawn_bytes[index].view(self.drawn.dtype)
        tickets = np.arange(self._last_ticket + 1, self._last_ticket + 1 + len(index))
        table["first"], table["ticket"] = first, tickets
        self._last_ticket += len(index)
        self.tickets.put(tickets, 4 * index + 2 * first + last)
        return table

    def take_back(self, tickets: np.ndarray) -> tuple[np.ndarray, KeyError | None]:
        """Return what `tickets` says of draws, which are out no more, up to the first that was not out."""
        codes, error = self.tickets.look(tickets), None
        if len(codes) and codes.min() < 0:
            end = int(np.argmax(codes < 0))
            error, codes, tickets = KeyError(int(tickets[end])), codes[:end], tickets[:end]
        self.tickets.remove(tickets)
        return codes, error

    def used_again(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Unpin starts whose draws were used; None, and nothing happens, where one of them is used up by that.

        Returns
        -------
        The starts, each as often as it was drawn, and those that were used for the first time.
        """
        index = codes >> 2
        if (codes & 1).any() or self.used_up[index].any():
            return None
        first = index[codes & 2 > 0]
        self.first_is_out[first], self.seen[first] = False, True
        np.subtract.at(self.pins, index, 1)
        return index, first
