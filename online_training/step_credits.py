"""Which steps a simulation may send now, and what is said to those that are complete."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .buffer import Buffer
from .client import Word
from .intake_settings import IntakeSettings
from .layout import StreamLayout
from .ledger import RecordWriter
from .simulation_run import RUNNING, SimulationRun
from .step_store import StepStore

PIPELINE_DEPTH = 4
_MOST_DEPTH = 64
_QUICK_SECONDS, _AHEAD_SECONDS = 2e-3, 8e-3


class StepCredits(StepStore):
    """Reserves room for steps ahead of those received, and decides the words to them.

    drawn : windows drawn so far.
    """

    def __init__(
        self, layout: StreamLayout, buffer: Buffer, slots: np.ndarray, ledger: RecordWriter, limits: IntakeSettings,
        drawn: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(layout, buffer, slots, ledger, limits)
        self._drawn = drawn
        self.stopping = False
        # Slots of steps on their way are no windows: quick solvers get an eighth of them at most.
        self._most_depth = min(_MOST_DEPTH, len(slots) // (8 * limits.max_running))

    @property
    def throttled(self) -> bool:
        """Whether the trainer must catch up before more windows are stored."""
        if self._in_order:
            return False
        # Windows that are gone should have been used as often as wanted; a batch may be on its way.
        gone = self.windows_accepted - self._buffer.population
        return self._limits.views * gone > self._drawn() + self._limits.batch_size

    def grant(self, run: SimulationRun) -> bool:
        """Grant further steps a little ahead of those received; say whether there are new ones."""
        before, depth = run.granted, self._depth(run)
        if before - run.received > depth // 2:
            return False
        limit = min(self._layout.num_steps, run.received + depth)
        while run.granted < limit and self._extend(run):
            pass
        return run.granted > before

    def _depth(self, run: SimulationRun) -> int:
        """How many steps may be on their way: those of some milliseconds, where words to them are said ahead.

        Of its own milliseconds, if they are known: what a stop that comes so late may cost it. Else those who wait
        for each other on busy processors would take each other for slow.
        """
        if not self._is_quick(run):
            return PIPELINE_DEPTH
        return max(PIPELINE_DEPTH, min(self._most_depth, int(_AHEAD_SECONDS / min(run.pace, run.own_pace))))

    def decide(self, run: SimulationRun) -> bool:
        """Grant what can be granted once a step is complete; say whether the next step is to be left out.

        Decided once, here, for all ranks: they learn it with the acknowledgement of the step before.
        """
        self.grant(run)
        step = run.received
        if self._limits.when_full != "skip" or not step == run.granted < self._layout.num_steps:
            return step in run.skipped
        run.skipped.add(step)
        run.granted += 1
        self._buffer.skip(run.number, step)
        return True

    def words(self, run: SimulationRun, now: float) -> list[tuple[int, Word]]:
        """Return (step, word) of what is to be said once steps are complete, to all ranks; an ACK speaks for the steps
        before it, too, that had none: continue.

        A solver that takes less time for a step than a message there and back would wait for every word. So the words
        to its steps that are on their way are decided ahead, as far as the step behind them holds credit, too:
        continue. A word that is decided later begins behind them, some milliseconds late.
        """
        done, run.done = run.done, []
        run.keep_pace(len(done), now)
        plain = Word.SLOW if run.slow else Word.CONTINUE
        found = [(step, word if word != Word.CONTINUE else plain) for step, word in done if step >= run.said]
        run.said = max(run.said, run.received)
        if run.granted - 1 > run.said and self._is_quick(run):
            run.said = run.granted - 1
            found.append((run.said - 1, Word.CONTINUE))
        return [one for one in found if one[1] != Word.CONTINUE or one is found[-1]]

    def _is_quick(self, run: SimulationRun) -> bool:
        """Whether words are said ahead: steps are short, and nothing is known or promised that must wait for one."""
        limits = self._limits
        plain = limits.durability == "memory" and limits.when_full != "skip" and not self._in_order
        quick = plain and run.pace < _QUICK_SECONDS
        return quick and run.status == RUNNING and not run.dropping and not run.slow and not self.stopping

    def short_of_room(self, run: SimulationRun) -> bool:
        """Whether the next step has neither credit nor, for now, room: the simulation will wait for the trainer."""
        return run.received == run.granted < self._layout.num_steps

    def _extend(self, run: SimulationRun) -> bool:
        if run.stores(run.granted) and not run.assignment.held_out:
            # What waits in the spool goes first: the reservoir sees the steps in order of arrival, only later.
            spool = self._limits.spool
            queued = spool is not None and spool.waiting
            slot = None if queued or self.throttled else self._buffer.reserve(run.number)
            if slot is not None:
                run.slots[run.granted] = slot
            else:
                place = None if spool is None else spool.reserve()
                if place is None:
                    return False
                run.places[run.granted] = place
        run.granted += 1
        return True

    def _free_room(self, run: SimulationRun) -> None:
        """Give back the slots and places of steps that will not come."""
        self._wait_for_blocks()
        for slot in run.slots.values():
            self._buffer.cancel(slot)
        for place in run.places.values():
            self._limits.spool.cancel(place)
        run.slots.clear()
        run.places.clear()
