"""First in, first out; and first in, random out: buffers that use every window once."""

from __future__ import annotations

from collections import OrderedDict

from .slot_buffer import SlotBuffer
from .slot_set import SlotSet


class FIFO(SlotBuffer):
    """Draws windows in the order in which they became complete; each is used once."""

    def __init__(self, capacity: int, window: int, watermark: int = 1, seed: int = 0, shards: int = 1) -> None:
        super().__init__(capacity, window, watermark, seed, shards)
        self._queue: OrderedDict[int, None] = OrderedDict()

    def _offer(self, start: int, *, again: bool) -> None:
        self._queue[start] = None
        if again:
            self._queue.move_to_end(start, last=False)

    def _withdraw(self, start: int) -> None:
        self._queue.pop(start, None)

    def _choose(self, count: int) -> tuple[list[int], bool] | None:
        """Choose the oldest."""
        if not self.ready:
            return None
        here = len(self._queue)
        if here < count and not self._may_fall_short():
            return None
        if not here:
            self._require_more_to_come()
            return None
        return [self._queue.popitem(last=False)[0] for _ in range(min(count, here))], True


class FIRO(SlotBuffer):
    """Draws uniformly at random while more windows than the watermark wait; each is used once (Meyer et al., SC23)."""

    def __init__(self, capacity: int, window: int, watermark: int = 1, seed: int = 0, shards: int = 1) -> None:
        super().__init__(capacity, window, watermark, seed, shards)
        self._offered = SlotSet(range(capacity), self._generator)

    def _offer(self, start: int, *, again: bool) -> None:
        self._offered.add(start)

    def _withdraw(self, start: int) -> None:
        self._offered.discard((start,))

    def _choose(self, count: int) -> tuple[list[int], bool] | None:
        """Choose uniformly."""
        if not self.ready:
            return None
        here = len(self._offered)
        if here < max(count, self._watermark) and not self._may_fall_short():
            return None
        if not here:
            self._require_more_to_come()
            return None
        starts = self._offered.sample([min(count, here)]).tolist()
        self._offered.discard(starts)
        return starts, True
