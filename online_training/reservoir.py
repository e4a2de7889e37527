"""The reservoir: uniform draws with reuse; new steps replace windows that were seen, and only those."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .slot_buffer import SlotBuffer
from .slot_set import SlotSet


class Reservoir(SlotBuffer):
    """Draws uniformly from all complete windows, again and again (after Meyer et al., SC23).

    When all windows are unseen or drawn, `reserve` says None and the solvers wait. Once closed each window is used
    one last time.
    """

    def __init__(self, capacity: int, window: int, watermark: int = 1, seed: int = 0, shards: int = 1) -> None:
        super().__init__(capacity, window, watermark, seed, shards)
        self._offered = SlotSet(range(capacity), self._generator)

    def _offer(self, start: int, *, again: bool) -> None:
        self._offered.add(start)

    def _withdraw(self, start: int) -> None:
        self._offered.discard((start,))

    def _choose(self, count: int) -> tuple[np.ndarray, bool] | None:
        """Choose uniformly, each start once in a batch where there are enough; once closed, each for the last time."""
        if not self.ready:
            return None
        starts = self._offered.sample([min(count, len(self._offered)) if self._closed else count])
        if not len(starts):
            self._require_more_to_come()
            return None
        if self._closed:
            self._offered.discard(starts.tolist())
        return starts, self._closed

    def sample_many(self, counts: Sequence[int]) -> tuple[np.ndarray, list[int]] | None:
        """Draw batches of these numbers of windows, as `sample` does one after the other; as many as it likes.

        As long as the reservoir is open its choices do not depend on what was drawn.

        Raises
        ------
        StreamEnded : as in `sample`.
        """
        if self._closed or not self.ready or not len(self._offered):
            return super().sample_many(counts)
        return self._deal(self._offered.sample(counts), last=False), list(counts)


def check_capacity(capacity: int, max_running: int, window: int, batch: int, spare: int = 0) -> None:
    """Refuse a buffer in which simulations could wait for each other for ever, or a batch does not fit beside them.

    Parameters
    ----------
    capacity : slots, of one step each.
    max_running : simulations at the same time.
    window : steps of one window.
    batch : windows of one batch.
    spare : slots of steps that wait for their turn in a fixed order.

    Raises
    ------
    ValueError : says by how many slots it is short.
    """
    needed = max_running * window + batch + spare
    waiting = f", beside {spare} steps that wait for their turn," if spare else ""
    if capacity < needed:
        raise ValueError(
            f"The buffer holds {capacity} steps, but {max_running} running simulations with windows of {window} steps "
            f"and a batch of {batch} windows{waiting} need {needed}: {needed - capacity} too few. "
            "Enlarge the buffer, or take fewer simulations at the same time or smaller batches."
        )
