"""What the intake knows about one simulation: its place in the plan, its running attempt, its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .assembly import Box, StepAssembly
from .client import Word
from .layout import StreamLayout

QUEUED, RUNNING, WRITING, DONE, STOPPED, QUARANTINED = "queued", "running", "writing", "done", "stopped", "quarantined"
SPOOLED = "spooled"
"""It has ended, and some of its steps wait on disk for room."""
_SLOW_PACE = 1.0  # seconds a step; slower ones need not be told apart
TERMINAL = (DONE, STOPPED, QUARANTINED)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One simulation to run.

    simulation : its number in the study.
    parameters : value of each parameter by name.
    seed : from which the solver draws its random initial state.
    held_out : kept for validation; never enters the reservoir.
    attempt : number of the next attempt, larger than that of every earlier one.
    used : window starts that the trainer used before a resume; they are not offered again.
    """

    simulation: int
    parameters: Mapping[str, float]
    seed: int = 0
    held_out: bool = False
    attempt: int = 1
    used: frozenset[int] = field(default_factory=frozenset)


class SimulationRun:
    """The state of one simulation; steps are accepted in order, so what was accepted is always a prefix.

    values : of the study's parameters, float64 in the order of their names.
    granted : steps 0..granted-1 of this attempt may be sent.
    received : steps 0..received-1 of this attempt are complete.
    done : (step, word) of those that are complete and not acknowledged yet.
    said : the words to steps 0..said-1 of this attempt have been said.
    all_continue : all of these were continue, and need nothing else beside.
    pace : seconds from one complete step to the next, of late.
    own_pace : seconds that its solver takes for a step when it does not wait for the study, as far as known.
    busy_seconds : how long its slowest rank says that it did not wait.
    tiling : the sub-blocks of the step accepted last.
    known : boxes of blocks that were checked in this attempt, by what their headers say of them.
    skipped : steps that are not sent, because there was no room for them when the step before was complete.
    places : where in the spool granted steps go that have no slot.
    kept : steps 0..kept-1 were complete in this or an earlier attempt of this session.
    recovered : further steps that are there, from an earlier session.
    dropping : nothing is stored any more (quarantine or stop); every step is acknowledged with `word`.
    slow : the trainer wants it to be told so with every step.
    """

    def __init__(self, assignment: Assignment, layout: StreamLayout) -> None:
        self.assignment, self._layout = assignment, layout
        self.number, self.attempt = assignment.simulation, assignment.attempt
        self.values = np.array([assignment.parameters[name] for name in layout.parameters], np.float64)
        self.status = QUEUED
        self.reason: str | None = None
        self.failures = 0
        self.job: str | None = None
        self.granted = self.received = self.said = self.kept = 0
        self.all_continue = False
        self.pace, self._completed = _SLOW_PACE, -math.inf
        self.own_pace, self.busy_seconds = math.inf, 0.0
        self.done: list[tuple[int, Word]] = []
        self.skipped: set[int] = set()
        self.recovered: set[int] = set()
        self.dropping = self.slow = False
        self.word = Word.CONTINUE
        self.slots: dict[int, int] = {}
        self.places: dict[int, int] = {}
        self.assemblies: dict[int, StepAssembly] = {}
        self.tiling: frozenset[Box] = frozenset()
        self.known: dict[tuple[Any, ...], Box] = {}
        self.ends: dict[int, int] = {}
        self.times: list[float] = []
        self.states: np.ndarray | None = None
        self._needed = self._find_needed_steps()

    def _find_needed_steps(self) -> np.ndarray:
        needed = np.zeros(self._layout.num_steps, bool)
        if self.assignment.held_out:
            needed[:] = True
            return needed
        for start in range(self._layout.num_starts):
            if start not in self.assignment.used:
                needed[start : start + self._layout.window] = True
        return needed

    def stores(self, step: int) -> bool:
        """Whether a step must be kept: not there yet, and part of a window that was not used."""
        wanted = step >= self.kept and step not in self.skipped and step not in self.recovered
        return wanted and not self.dropping and bool(self._needed[step])

    @property
    def needs_nothing(self) -> bool:
        """Whether everything that it would bring is there."""
        return not any(map(self.stores, range(self._layout.num_steps)))

    def completes_window(self, step: int) -> bool:
        """Whether a window that was not used before ends with this step."""
        start = step - self._layout.window + 1
        return start >= 0 and start not in self.assignment.used and self.skipped.isdisjoint(range(start, step))

    def begin(self, job: str, pace: float = _SLOW_PACE, own_pace: float = math.inf) -> None:
        """Start an attempt in a job; pace, own_pace : those of the job's simulation before."""
        self.status, self.job = RUNNING, job
        self.granted = self.received = self.said = 0
        self.pace, self._completed = pace, -math.inf
        self.own_pace, self.busy_seconds = own_pace, 0.0
        self.done = []
        self.known.clear()
        self.tiling = frozenset()  # another job may own other cells under the same numbers
        self.ends.clear()
        if self.assignment.held_out and self.states is None:
            self.states = np.empty((self._layout.num_steps, *self._layout.step_shape), self._layout.dtype)

    def keep_pace(self, steps: int, now: float) -> None:
        """Some steps were completed at a time."""
        if self._completed > -math.inf:
            # One long pause of a busy processor is no slow solver: what lasts is believed after some steps.
            self.pace += (min(_SLOW_PACE, 4 * self.pace, (now - self._completed) / steps) - self.pace) / 4
        self._completed = now

    def abandon(self) -> None:
        """End the attempt without a result."""
        self.assemblies.clear()
        self.status, self.job = QUEUED, None
        self.attempt += 1

    def drop_rest(self, word: Word) -> None:
        """Store nothing any more and answer every step with a word."""
        self.dropping, self.word = True, word
        for assembly in self.assemblies.values():
            assembly.target = None
