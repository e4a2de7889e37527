"""What is known of complete window starts and of their draws that are out: arrays, for many draws at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .buffer import window_dtype


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
        self.seen, self.first_is_out, self.used_up = (np.zeros(capacity, bool) for _ in range(3))
        self.pins = np.zeros(capacity, np.int64)
        self.tickets: dict[int, int] = {}
        self._last_ticket = 0

    def add(self, simulation: int, attempt: int, index: int, slots: Sequence[int]) -> int:
        """Add the start with this index in its simulation, whose steps lie in slots; return its name."""
        start = slots[0]
        self.drawn[start] = 0, simulation, attempt, index, 0, slots
        self.seen[start] = self.first_is_out[start] = self.used_up[start] = False
        self.pins[start] = 0
        return start

    def slots(self, starts: int | Sequence[int]) -> list[int]:
        """Return the slots of a start, or of several, one after the other."""
        return self.drawn["slots"][starts].ravel().tolist()

    def deal(self, starts: Sequence[int], *, last: bool) -> tuple[np.ndarray, list[int]]:
        """Pin starts; return a table of their draws, and which of them were seen and had no pin before.

        last : they were taken and die once used.
        """
        index = np.array(starts)
        seen = self.seen[index]
        first = ~(seen | self.first_is_out[index])
        if first.any():
            # Of several draws of a start the earliest is its first.
            where = np.flatnonzero(first)
            _, earliest = np.unique(index[where], return_index=True)
            first[where] = False
            first[where[earliest]] = True
            self.first_is_out[index[first]] = True
        unpinned = list(dict.fromkeys(index[seen & (self.pins[index] == 0)].tolist()))
        np.add.at(self.pins, index, 1)
        table = self.drawn[index]
        table["first"], table["ticket"] = first, np.arange(self._last_ticket + 1, self._last_ticket + 1 + len(index))
        self._last_ticket += len(index)
        self.tickets.update(zip(table["ticket"].tolist(), (4 * index + 2 * first + last).tolist(), strict=True))
        return table, unpinned

    def take_back(self, tickets: Iterable[int]) -> tuple[list[int], KeyError | None]:
        """Return what `tickets` says of draws, which are out no more, up to the first that was not out."""
        out, codes = self.tickets, []
        for number in tickets:
            code = out.pop(number, None)
            if code is None:
                return codes, KeyError(number)
            codes.append(code)
        return codes, None

    def used_again(self, codes: Sequence[int]) -> tuple[int, list[int]] | None:
        """Unpin starts whose draws were used; None, and nothing happens, where one of them is used up by that.

        Returns
        -------
        How many were used for the first time, and which have no pin any more, in the order of their last draws.
        """
        draws = np.array(codes, np.int64)
        index = draws >> 2
        if (draws & 1).any() or self.used_up[index].any():
            return None
        first = index[draws & 2 > 0]
        self.first_is_out[first], self.seen[first] = False, True
        np.subtract.at(self.pins, index, 1)
        done = index[self.seen[index] & (self.pins[index] == 0)]
        return len(first), list(dict.fromkeys(done[::-1].tolist()))[::-1]
