"""What all buffers share: slots counted by the window starts that need them, and draws counted by tickets."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np

from .buffer import Buffer, StreamEnded, Window
from .holds import Holds
from .slot_set import SlotSet
from .start_table import StartTable


class _Trajectory:
    """The steps and starts of one simulation.

    shard : where its steps lie as long as there is room; None before the first.
    slots : slot of each step that is here.
    pending : for each start whose window is not complete, how many of its steps are here.
    starts : names (`StartTable`) of the complete, living ones.
    dead : starts that were evicted, used up, or used before a resume.
    """

    __slots__ = ("attempt", "dead", "pending", "shard", "simulation", "slots", "starts")

    def __init__(self, simulation: int) -> None:
        self.simulation, self.attempt = simulation, 0
        self.shard: int | None = None
        self.slots: dict[int, int] = {}
        self.pending: dict[int, int] = {}
        self.starts: dict[int, int] = {}
        self.dead: set[int] = set()


class SlotBuffer(Buffer):
    """Everything but the choice of what to draw.

    Each slot counts the living starts that need its step, and how often it is held: by starts still to be completed or
    unseen, and by every draw that is out. A slot that nobody holds can be reclaimed by evicting the seen starts that
    need it. So `reserve` says None only where no eviction of seen starts would free a slot. A draw, a release, a put
    and a reserve cost O(window), whatever the capacity.

    With capacity >= max_running * window nothing can deadlock: a running simulation keeps at most window-1
    steps for starts still to come, so that a full buffer has complete windows, which `sample` then hands out
    whatever the watermark.

    The slots are divided into shards, equal and contiguous. A simulation goes to the shard with most room and
    stays there; only where nothing is free in it does a step go to another, so that shards never hold less than one
    buffer of the same capacity would, and cannot deadlock where that could not. Draws know nothing of shards.

    capacity : slots.
    window : steps of one window.
    watermark : windows that must be there before the first draw.
    seed : of every random choice.
    shards : into how many parts the slots are divided.
    """

    def __init__(self, capacity: int, window: int, watermark: int = 1, seed: int = 0, shards: int = 1) -> None:
        if not 1 <= window <= capacity:
            raise ValueError(f"{capacity} slots cannot hold a window of {window} steps; window must be 1..{capacity}.")
        if not 1 <= shards <= capacity:
            raise ValueError(f"{capacity} slots cannot be divided into {shards} shards; shards must be 1..{capacity}.")
        if watermark < 1:
            raise ValueError(f"watermark is a positive number of windows; got {watermark}.")
        self._window, self._watermark = window, watermark
        self._generator = random.Random(seed)
        self.shards = shards
        self._free: list[list[int]] = [[] for _ in range(shards)]
        for slot in range(capacity - 1, -1, -1):
            self._free[slot * shards // capacity].append(slot)
        self._shard = [slot * shards // capacity for slot in range(capacity)]
        self._owner: list[tuple[_Trajectory, int] | None] = [None] * capacity
        self._needed = [0] * capacity
        self._holds = Holds(capacity, shards, self._generator)
        self._next_victim: list[tuple[_Trajectory, int] | None] = [None] * shards
        self._reserved: set[int] = set()
        self._trajectories: dict[int, _Trajectory] = {}
        self._ended: set[int] = set()
        self._starts = StartTable(capacity, window)
        self._population = self._unseen = 0
        self._refused = self._ready = self._closed = False

    # -- what a kind of buffer decides -----------------------------------------------------------------------------

    @abstractmethod
    def _offer(self, start: int, *, again: bool) -> None:
        """A start may be drawn from now on; again: it was taken before and came back."""

    @abstractmethod
    def _withdraw(self, start: int) -> None:
        """A start was evicted."""

    @abstractmethod
    def _choose(self, count: int) -> tuple[Sequence[int] | np.ndarray, bool] | None:
        """Return starts to draw, and whether that is for the last time; None where the trainer must wait.

        Raises
        ------
        StreamEnded : as in `sample`.
        """

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return len(self._owner)

    @property
    def population(self) -> int:
        """Number of living starts whose window is complete."""
        return self._population

    @property
    def unseen(self) -> int:
        """Of the population, how many were never used."""
        return self._unseen

    @property
    def ready(self) -> bool:
        """Whether the watermark was reached, or never can be because the buffer is full or closed; stays true."""
        if not self._ready:
            reached = self._population >= self._watermark or (self._stuck and self._population > 0)
            self._ready = reached or self._closed
        return self._ready

    @property
    def _stuck(self) -> bool:
        """Whether a simulation waits for a slot and none is being filled."""
        return self._refused and not self._reserved

    # -- steps -----------------------------------------------------------------------------------------------------

    def mark_used(self, simulation: int, starts: Iterable[int]) -> None:
        """These starts were used before the simulation was run again: they are not offered and need no slots."""
        self._trajectory(simulation).dead.update(starts)

    def _trajectory(self, simulation: int) -> _Trajectory:
        trajectory = self._trajectories.get(simulation)
        if trajectory is None:
            trajectory = self._trajectories[simulation] = _Trajectory(simulation)
        return trajectory

    def shard_of(self, slot: int) -> int:
        """Return the shard that a slot belongs to."""
        return self._shard[slot]

    def reserve(self, simulation: int) -> int | None:
        """Return a slot for the simulation's next step, evicting seen starts if need be; None where it must wait."""
        home = self._home(simulation)
        if not any(self._free) and not self._reclaim(home):
            self._refused = True
            return None
        shard = home if self._free[home] else max(range(self.shards), key=lambda i: len(self._free[i]))
        slot = self._free[shard].pop()
        self._reserved.add(slot)
        return slot

    def _home(self, simulation: int) -> int:
        """Return the shard of a simulation; a new one goes to where most slots are free or can be reclaimed."""
        if self.shards == 1:
            return 0
        trajectory = self._trajectory(simulation)
        if trajectory.shard is None:
            room = [len(free) + len(seen) for free, seen in zip(self._free, self._holds.reclaimable(), strict=True)]
            trajectory.shard = room.index(max(room))
        return trajectory.shard

    def _free_slot(self, slot: int) -> None:
        self._free[self._shard[slot]].append(slot)

    def adopt(self, slots: Iterable[int]) -> None:
        """Reserve these slots, which hold steps of an earlier session; to be called before anything else."""
        adopted = set(slots)
        self._free = [[slot for slot in free if slot not in adopted] for free in self._free]
        self._reserved |= adopted

    def cancel(self, slot: int) -> None:
        """A reserved slot will not be filled."""
        self._unreserve(slot)
        self._free_slot(slot)

    def _unreserve(self, slot: int) -> None:
        if slot not in self._reserved:
            raise ValueError(f"Slot {slot} is not reserved.")
        self._reserved.remove(slot)

    def put(self, simulation: int, attempt: int, step: int, slot: int) -> None:
        """The step is complete in its slot; starts that it completes become available."""
        if simulation in self._ended:
            raise ValueError(f"Step {step} of simulation {simulation} cannot be put: the simulation has ended.")
        trajectory = self._trajectory(simulation)
        if step in trajectory.slots:
            raise ValueError(f"Step {step} of simulation {simulation} cannot be put: it is here already.")
        self._unreserve(slot)
        self._refused = False
        trajectory.attempt = attempt
        starts = [s for s in range(max(0, step - self._window + 1), step + 1) if s not in trajectory.dead]
        if not starts:
            self._free_slot(slot)
            return
        trajectory.slots[step] = slot
        self._owner[slot] = (trajectory, step)
        self._needed[slot] = len(starts)
        self._holds.begin(slot, len(starts))
        for index in starts:
            here = trajectory.pending.get(index, 0) + 1
            if here < self._window:
                trajectory.pending[index] = here
            else:
                trajectory.pending.pop(index, None)
                self._complete(trajectory, index)

    def skip(self, simulation: int, step: int) -> None:
        """This step will never come: the starts that need it are not waited for."""
        trajectory = self._trajectory(simulation)
        for index in range(max(0, step - self._window + 1), step + 1):
            trajectory.dead.add(index)
            if trajectory.pending.pop(index, None) is not None:
                self._holds.add(self._slots_of(trajectory, index), -1)
                self._unneed(trajectory, index)

    def _complete(self, trajectory: _Trajectory, index: int) -> None:
        slots = [trajectory.slots[step] for step in range(index, index + self._window)]
        start = self._starts.add(trajectory.simulation, trajectory.attempt, index, slots)
        trajectory.starts[index] = start
        self._population += 1
        self._unseen += 1
        self._offer(start, again=False)

    def end(self, simulation: int) -> None:
        """No more steps of this simulation will come; starts that can never complete are dropped."""
        self._ended.add(simulation)
        trajectory = self._trajectories.get(simulation)
        if trajectory is None:
            return
        for index in trajectory.pending:
            self._holds.add(self._slots_of(trajectory, index), -1)
            self._unneed(trajectory, index)
        trajectory.pending.clear()
        self._forget_if_empty(trajectory)

    def _forget_if_empty(self, trajectory: _Trajectory) -> None:
        if not trajectory.slots and trajectory.simulation in self._ended:
            self._trajectories.pop(trajectory.simulation, None)

    def slot_of(self, simulation: int, step: int) -> int | None:
        """Return where a step lies; None where it is not here."""
        trajectory = self._trajectories.get(simulation)
        return None if trajectory is None else trajectory.slots.get(step)

    def dead_starts(self, simulation: int, num_starts: int) -> frozenset[int] | None:
        """Return which starts of a simulation will never be drawn again; None where nothing of it is needed."""
        trajectory = self._trajectories.get(simulation)
        ended = simulation in self._ended
        if ended and (trajectory is None or not trajectory.slots):
            return None
        if trajectory is None:
            return frozenset()
        return frozenset(set(range(num_starts)).difference(trajectory.starts) if ended else trajectory.dead)

    # -- counting who needs and who holds a slot -------------------------------------------------------------------

    def _slots_of(self, trajectory: _Trajectory, index: int) -> list[int]:
        """Return the slots of those steps of a start that are here."""
        steps = range(index, index + self._window)
        return [slot for step in steps if (slot := trajectory.slots.get(step)) is not None]

    def _unneed(self, trajectory: _Trajectory, index: int) -> None:
        for step in range(index, index + self._window):
            slot = trajectory.slots.get(step)
            if slot is not None:
                self._needed[slot] -= 1
                if self._needed[slot] == 0:
                    del trajectory.slots[step]
                    self._owner[slot] = None
                    self._holds.end(slot)
                    self._free_slot(slot)
                    self._refused = False

    def _kill(self, start: int) -> None:
        """Remove a complete start that holds nothing."""
        trajectory, index = self._owner[start]
        del trajectory.starts[index]
        trajectory.dead.add(index)
        self._population -= 1
        self._unneed(trajectory, index)
        self._forget_if_empty(trajectory)

    def _reclaim(self, shard: int) -> bool:
        """Evict the seen starts that need some slot, in a shard if it has one; say whether there was one."""
        reclaimable = self._holds.reclaimable()
        if not reclaimable[shard]:
            shard = max(range(self.shards), key=lambda i: len(reclaimable[i]))
        if not reclaimable[shard]:
            return False
        slot = self._victim(shard, reclaimable[shard])
        trajectory, step = self._owner[slot]
        for index in range(max(0, step - self._window + 1), step + 1):
            start = trajectory.starts.get(index)
            if start is not None:
                self._withdraw(start)
                self._kill(start)
        self._next_victim[shard] = (trajectory, step + 1)
        return True

    def _victim(self, shard: int, reclaimable: SlotSet) -> int:
        """Windows of one step are evicted at random.

        Longer ones overlap: each gap in a trajectory costs window-1 starts that free no slot. So a trajectory that was
        opened, at a random step, is consumed from there on before the next is opened; else the reservoir would be
        full of gaps, or, were trajectories nibbled from their ends, short of early and late times.
        """
        if self._window > 1 and self._next_victim[shard] is not None:
            trajectory, step = self._next_victim[shard]
            slot = trajectory.slots.get(step)
            if slot is None and trajectory.slots:
                slot = trajectory.slots[min(trajectory.slots)]
            if slot is not None and slot in reclaimable:
                return slot
        return reclaimable.choose()

    # -- draws -----------------------------------------------------------------------------------------------------

    def sample(self, count: int) -> list[Window] | None:
        """Draw windows; None where the trainer must wait. Fewer than `count` only where no more can come for now.

        Raises
        ------
        StreamEnded : the buffer is closed and drained, and nothing that was drawn can come back.
        """
        chosen = self._choose(count)
        if chosen is None:
            return None
        table = self._deal(chosen[0], last=chosen[1])
        columns = (table[name].tolist() for name in ("ticket", "simulation", "attempt", "start"))
        slots, first = map(tuple, table["slots"].tolist()), map(bool, table["first"])
        return [Window(*content) for content in zip(*columns, slots, first, strict=True)]

    def sample_many(self, counts: Sequence[int]) -> tuple[np.ndarray, list[int]] | None:
        """Draw batches of these numbers of windows, as `sample` does one after the other; as many as it likes.

        Raises
        ------
        StreamEnded : as in `sample`.
        """
        chosen = self._choose(counts[0])
        return None if chosen is None else (self._deal(chosen[0], last=chosen[1]), [len(chosen[0])])

    def _deal(self, starts: Sequence[int] | np.ndarray, *, last: bool) -> np.ndarray:
        """Pin starts and return a table of their draws; last: they were taken and die once used."""
        table = self._starts.deal(starts, last=last)
        self._holds.add(table["slots"].ravel(), 1)
        return table

    def release(self, tickets: Sequence[int] | np.ndarray, *, used: bool = True) -> None:
        """The draws were used, or (used=False) given back unseen.

        Raises
        ------
        KeyError : a ticket is not out; those before it were released.
        """
        codes, error = self._starts.take_back(np.asarray(tickets, np.int64))
        again = self._starts.used_again(codes) if used else None
        if again is not None:
            used_starts, first = again
            self._unseen -= len(first)
            self._holds.add(self._starts.slots(used_starts), -1)
            if len(first):
                self._holds.add(self._starts.slots(first), -1)
        else:
            for code in codes.tolist():
                self._release(code >> 2, first=bool(code & 2), last=bool(code & 1), used=used)
        if error is not None:
            raise error

    def _release(self, start: int, *, first: bool, last: bool, used: bool) -> None:
        starts = self._starts
        starts.pins[start] -= 1
        self._holds.add(starts.slots(start), -1)
        if first:
            starts.first_is_out[start] = False
            if used:
                starts.seen[start] = True
                self._unseen -= 1
                self._holds.add(starts.slots(start), -1)
        if last:
            starts.used_up[start] = used
            if not used:
                self._offer(start, again=True)
        if starts.pins[start] == 0 and starts.used_up[start]:
            self._settle(start)

    def _settle(self, start: int) -> None:
        """The last draw of a start that is used up was released: it dies, or waits for its first use."""
        if self._starts.seen[start]:
            self._kill(start)
        else:
            # Its last draw was used but its first one, which would be on record, was given back.
            self._starts.used_up[start] = False
            self._offer(start, again=True)

    def _may_fall_short(self) -> bool:
        """Whether fewer windows than wanted may be dealt, since no more come before these are used."""
        return self._closed or (self._stuck and not self._starts.tickets)

    def _require_more_to_come(self) -> None:
        """Raise StreamEnded where a closed buffer has nothing to offer and no draw that could come back."""
        if self._closed and not self._starts.tickets:
            raise StreamEnded

    def close(self) -> None:
        """No simulation will come any more: lift the watermark and drain."""
        self._closed = True
