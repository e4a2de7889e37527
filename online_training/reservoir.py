"""The reservoir: uniform draws with reuse; new steps replace windows that were seen, and only those."""

from __future__ import annotations

from .buffer import Window
from .random_set import RandomSet
from .slot_buffer import SlotBuffer, Start


class Reservoir(SlotBuffer):
    """Draws uniformly from all complete windows, again and again (after Meyer et al., SC23).

    When all windows are unseen or drawn, `reserve` says None and the solvers wait. Once closed each window is used
    one last time.
    """

    def __init__(self, capacity: int, window: int, watermark: int = 1, seed: int = 0, shards: int = 1) -> None:
        super().__init__(capacity, window, watermark, seed, shards)
        self._offered: RandomSet[Start] = RandomSet(self._generator)

    def _offer(self, start: Start, *, again: bool) -> None:
        self._offered.add(start)

    def _withdraw(self, start: Start) -> None:
        self._offered.discard(start)

    def sample(self, count: int) -> list[Window] | None:
        """Draw windows uniformly, each once in a batch where there are enough; None where the trainer must wait.

        Raises
        ------
        StreamEnded : the buffer is closed and drained, and nothing that was drawn can come back.
        """
        if not self.ready:
            return None
        if not self._closed:
            return self._deal(self._offered.sample(count), last=False) or None
        starts = self._offered.sample(min(count, len(self._offered)))
        if not starts:
            self._require_more_to_come()
            return None
        for start in starts:
            self._offered.discard(start)
        return self._deal(starts, last=True)


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
