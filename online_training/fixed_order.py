"""A buffer on which everything happens in an order that the plan alone decides, whatever arrives first."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from .buffer import Buffer, StreamEnded, Window
from .slot_buffer import SlotBuffer

IN_FLIGHT = 3
"""Batches that are out at the same time: the one that is trained on, and two ahead, however many a feed asks for."""

_HOLLOW = -1


class _Wait(Exception):
    """What is next in order has not happened yet."""


class FixedOrder(Buffer):
    """Applies puts, draws and releases to another buffer in a fixed order, so that every draw can be repeated.

    The order: simulations come in groups, the steps of a group alternate (step 0 of each, then step 1, ...). A step
    that arrives before its turn waits in a slot of its own. A draw is due as soon as the reuse of windows allows one;
    the next step takes its place only when none is due. The batch drawn k-th is released right before the one drawn
    (k + 3)-rd, also where the trainer was ready with it earlier. So draws depend on plan, seed and content alone.

    Slots seen from outside are places in memory; the buffer inside counts its own, and a table maps them: a step takes
    its turn without being copied.

    inner : an empty buffer; its capacity is what takes part in training.
    plan : training simulations in order.
    group : simulations whose steps alternate; as many as run at the same time.
    num_steps : of a whole simulation.
    views : wanted uses of each window.
    """

    def __init__(
        self, inner: SlotBuffer, plan: Sequence[int], *, group: int, num_steps: int, window: int, views: float
    ) -> None:  # fmt: skip
        self._inner, self._plan, self._group = inner, list(plan), group
        self._num_steps, self._num_starts, self._views = num_steps, num_steps - window + 1, views
        self._ahead = steps_ahead(window)
        self._index = {simulation: i for i, simulation in enumerate(self._plan)}
        self._turn = 0
        self._applied: Counter[int] = Counter()
        self._length: dict[int, int] = {}
        self._over: set[int] = set()
        self._arrived: Counter[int] = Counter()
        self._staged: dict[tuple[int, int], tuple[int, int]] = {}
        self._repeated: Mapping[int, int] = {}
        self._waiting: Counter[int] = Counter()
        self._reserved: dict[int, int] = {}
        self._place = [_HOLLOW] * inner.capacity
        self._free = list(range(inner.capacity + spare_slots(group, window) - 1, -1, -1))
        self._out: deque[list[int]] = deque()
        self._returned: set[int] = set()
        self._batch: list[Window] | None = None
        self._drawn = self._windows = 0
        self._forced = self._closed = False
        self.on_step: Callable[[int], None] = lambda slot: None
        """Called with the slot of each step when its turn has come, in order."""

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Number of slots that take part in training; further ones hold steps that wait for their turn."""
        return self._inner.capacity

    @property
    def population(self) -> int:
        """Number of living starts whose window is complete."""
        return self._inner.population

    @property
    def unseen(self) -> int:
        """Of the population, how many were never used."""
        return self._inner.unseen

    @property
    def ready(self) -> bool:
        """Whether the watermark was reached, or never can be because the buffer is full or closed; stays true."""
        return self._inner.ready

    def shard_of(self, slot: int) -> int:
        """Return 0: memory is dealt out as steps arrive."""
        return 0

    # -- what happens outside, in any order ------------------------------------------------------------------------

    def mark_used(self, simulation: int, starts: Iterable[int]) -> None:
        """Do nothing: what was used is known from the repetition of all draws."""

    def skip(self, simulation: int, step: int) -> None:
        """Refuse: whether a step is left out depends on time."""
        raise NotImplementedError("Steps are not left out in a fixed order.")

    def reserve(self, simulation: int) -> int | None:
        """Return a place for the simulation's next step; None where too many of its steps wait for their turn."""
        group = self._index[simulation] // self._group
        if self._waiting[simulation] >= self._ahead or group > self._current_group + 1:
            return None
        slot = self._free.pop()
        self._reserved[slot] = simulation
        self._waiting[simulation] += 1
        return slot

    def cancel(self, slot: int) -> None:
        """A reserved slot will not be filled."""
        self._waiting[self._unreserve(slot)] -= 1
        self._free.append(slot)

    def _unreserve(self, slot: int) -> int:
        if slot not in self._reserved:
            raise ValueError(f"Slot {slot} is not reserved.")
        return self._reserved.pop(slot)

    def put(self, simulation: int, attempt: int, step: int, slot: int) -> None:
        """The step is complete in its slot; it waits for its turn, or fills a place that a resume left hollow."""
        self._unreserve(slot)
        if step < self._applied[simulation]:
            self._fill(simulation, step, slot)
        elif (simulation, step) in self._staged:
            raise ValueError(f"Step {step} of simulation {simulation} cannot be put: it is here already.")
        else:
            self._staged[simulation, step] = (attempt, slot)
            self._arrived[simulation] = step + 1
        self._go_on()

    def _fill(self, simulation: int, step: int, slot: int) -> None:
        self._waiting[simulation] -= 1
        inner = self._inner.slot_of(simulation, step)
        if inner is None or self._place[inner] != _HOLLOW:
            self._free.append(slot)
        else:
            self._place[inner] = slot

    def end(self, simulation: int) -> None:
        """No more steps of this simulation will come."""
        self._length.setdefault(simulation, max(self._arrived[simulation], self._applied[simulation]))
        self._go_on()

    def release(self, tickets: Sequence[int] | np.ndarray, *, used: bool = True) -> None:
        """The draws were used; their windows are released when it is their turn.

        Raises
        ------
        ValueError : draws cannot be given back unused: the order of all later ones would change.
        """
        if not used:
            raise ValueError("In a fixed order draws cannot be given back; the session must be started again.")
        self._returned.update(map(int, tickets))
        self._go_on()

    def close(self) -> None:
        """Do nothing: the plan says what will come, and the buffer inside is closed when all of it has."""

    def sample(self, count: int) -> list[Window] | None:
        """Draw the next batch; None where the trainer must wait.

        Raises
        ------
        StreamEnded : everything was drawn.
        """
        if self._batch is None:
            self._batch = self._advance(count)
        if self._batch is None or any(self._place[slot] == _HOLLOW for one in self._batch for slot in one.slots):
            return None
        batch, self._batch = self._batch, None
        return [one._replace(slots=tuple(self._place[slot] for slot in one.slots)) for one in batch]

    # -- the order -------------------------------------------------------------------------------------------------

    @property
    def _current_group(self) -> int:
        return self._turn // (self._group * self._num_steps)

    def _next(self) -> tuple[int, int] | None:
        """Return the (simulation, step) whose turn it is, which is here; None after the last."""
        while self._current_group * self._group < len(self._plan):
            group, rest = divmod(self._turn, self._group * self._num_steps)
            step, lane = divmod(rest, self._group)
            place = group * self._group + lane
            if place < len(self._plan):
                simulation = self._plan[place]
                if (simulation, step) in self._staged or step < self._repeated.get(simulation, 0):
                    return simulation, step
                if simulation not in self._over and step < self._length.get(simulation, self._num_steps):
                    raise _Wait
                self._end_inside(simulation)
            self._turn += 1
        return None

    def _end_inside(self, simulation: int) -> None:
        if simulation not in self._over:
            self._over.add(simulation)
            self._inner.end(simulation)

    def _go_on(self) -> None:
        if self._batch is None:
            self._advance(None)

    def _advance(self, count: int | None) -> list[Window] | None:
        """Do what is next, again and again, up to the next draw; that only where somebody wants a batch."""
        try:
            while True:
                # Before any decision: when the end of a simulation comes to be known must not change it.
                turn = self._next()
                if self._draw_is_due(over=turn is None):
                    if count is None:
                        return None
                    windows = self._draw(count)
                    if windows:
                        return windows
                if turn is not None:
                    self._put(*turn)
                else:
                    self._closed = True
                    self._inner.close()
        except _Wait:
            return None

    def _draw_is_due(self, *, over: bool) -> bool:
        """Whether a draw comes before the next step: as soon as the reuse of windows allows one."""
        if self._forced or self._closed:
            return True
        if not self._inner.ready:
            return False
        # What is left at the end is drawn once more when the buffer is closed.
        share = 1.0 if over else max(0.0, 1 - 1 / self._views)
        return self._drawn < self._views * self._windows - share * self._inner.population

    def _draw(self, count: int) -> list[Window] | None:
        while len(self._out) >= IN_FLIGHT:
            self._release_oldest()
        windows = self._inner.sample(count)
        # What a closed or full buffer still has may be out.
        while windows is None and self._out and (self._forced or self._closed):
            self._release_oldest()
            windows = self._inner.sample(count)
        if windows:
            self._forced = False
            self._drawn += len(windows)
            self._out.append([one.ticket for one in windows])
        return windows

    def _release_oldest(self) -> None:
        if not self._returned.issuperset(self._out[0]):
            raise _Wait
        tickets = self._out.popleft()
        self._returned.difference_update(tickets)
        self._inner.release(tickets)

    def _put(self, simulation: int, step: int) -> None:
        slot = self._inner.reserve(simulation)
        if slot is None:
            # Only draws make room: those that are out, or else one more.
            if self._out:
                self._release_oldest()
            else:
                self._forced = True
            return
        attempt, place = self._staged.pop((simulation, step), (0, _HOLLOW))
        self._waiting[simulation] -= place != _HOLLOW
        if self._place[slot] != _HOLLOW:
            self._free.append(self._place[slot])
        self._place[slot] = place
        population = self._inner.population
        self._inner.put(simulation, attempt, step, slot)
        self._windows += self._inner.population - population
        self._applied[simulation] = step + 1
        self._turn += 1
        if step + 1 == self._num_steps:
            self._end_inside(simulation)
        if place != _HOLLOW:
            self.on_step(place)

    # -- resuming --------------------------------------------------------------------------------------------------

    def repeat(
        self, batches: int, count: int, arrived: Mapping[int, int], ended: Mapping[int, int]
    ) -> dict[int, frozenset[int]]:
        """Repeat the draws of an earlier session, without data; return what must be run to go on from there.

        batches, count : how many were trained on, and of how many windows.
        arrived : for each simulation how many of its steps, from the first, were ever accepted.
        ended : for those that came to their end, how many steps that were.

        Returns
        -------
        For each simulation that is needed, the window starts of it that are not.

        Raises
        ------
        ValueError : the records do not hold what these batches must have been drawn from.
        """
        self._repeated = arrived
        self._length.update(ended)
        for batch in range(batches):
            try:
                windows = self._advance(count)
            except StreamEnded:
                windows = None
            if windows is None:
                raise ValueError(
                    f"The checkpoint has {batches} batches, but the ledger holds steps for {batch} of them only: parts "
                    "of the run directory are of different times. Restore it from one copy."
                )
            self._returned.update(self._out[-1])
        # What had not taken its turn comes again.
        self._repeated = {}
        self._length = {one: length for one, length in self._length.items() if one in self._over}
        return {
            simulation: dead
            for simulation in self._plan
            if (dead := self._inner.dead_starts(simulation, self._num_starts)) is not None
        }


def steps_ahead(window: int) -> int:
    """Return how many steps of one simulation may wait for their turn."""
    return max(window, 4)


def spare_slots(group: int, window: int) -> int:
    """Return how many slots hold steps that wait: of a group, the next one, and simulations that are run again."""
    return 3 * group * steps_ahead(window)
