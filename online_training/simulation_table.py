"""All simulations of a session: who waits, who runs, how they end; and what that means for the stream."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import numpy as np

from .buffer import Buffer
from .client import FAILED, STOPPED, Word
from .held_out_writer import HeldOutResult, HeldOutWriter
from .intake_settings import IntakeSettings
from .kept_steps import KeptStep
from .layout import StreamLayout
from .ledger import RecordWriter
from .simulation_run import DONE, QUARANTINED, QUEUED, RUNNING, SPOOLED, TERMINAL, WRITING, Assignment, SimulationRun
from .simulation_run import STOPPED as RUN_STOPPED
from .spool import Spooled
from .step_credits import StepCredits
from .step_limit import Place

_WAITING_WRITES = 2


class SimulationTable(StepCredits):
    """Admits simulations and ends them, and says so in the intake's ledger. No sockets.

    slots : (num_slots, fields, *grid), the reservoir's memory.
    limits : views, batch_size, max_running and max_failures are read.
    drawn : windows drawn so far.
    """

    def __init__(
        self,
        layout: StreamLayout,
        buffer: Buffer,
        slots: np.ndarray,
        *,
        ledger: RecordWriter,
        limits: IntakeSettings,
        drawn: Callable[[], int],
        writer: HeldOutWriter | None,
    ) -> None:
        super().__init__(layout, buffer, slots, ledger, limits, drawn)
        self._writer = writer
        self._queue: deque[SimulationRun] = deque()
        self._active: dict[int, SimulationRun] = {}
        self.all_planned = self.closed = False
        self.blocked_seconds = self.solver_seconds = 0.0
        self.running_limit = limits.max_running
        # Of the simulation that a job ended last: its next one will be alike.
        self._paces: dict[str, tuple[float, float]] = {}
        # Jobs that are ended from outside, soon: what they were given now would be lost with them.
        self._given_up: set[str] = set()
        self.fatal = ""
        self._too_short = 0

    def plan(self, assignments: Iterable[Assignment]) -> None:
        """Add simulations to the end of the queue."""
        for assignment in assignments:
            if assignment.simulation in self.runs:
                raise ValueError(f"Simulation {assignment.simulation} is planned already.")
            missing = set(self._layout.parameters) - set(assignment.parameters)
            if missing:
                raise ValueError(f"Simulation {assignment.simulation} has no value of {', '.join(sorted(missing))}.")
            if assignment.held_out and self._writer is None:
                raise ValueError("Held-out simulations need write_held_out in the intake's settings.")
            run = SimulationRun(assignment, self._layout)
            if assignment.used and not assignment.held_out:
                self._buffer.mark_used(run.number, assignment.used)
            self.runs[run.number] = run
            self._queue.append(run)

    def recover(self, steps: Iterable[KeptStep]) -> None:
        """Take up steps that an earlier session left in their slots; what is complete with them is not run again.

        Steps of simulations that are not planned are forgotten, as are those that no unused window needs.
        """
        runs = self.runs
        wanted = [one for one in sorted(steps) if one.simulation in runs and runs[one.simulation].stores(one.step)]
        self._buffer.adopt(one.slot for one in wanted)
        for one in wanted:
            run = runs[one.simulation]
            self.counts["steps_recovered"] += 1
            self._ledger.append(one.record)
            self._take_in(run, one.attempt, one.step, one.slot, one.time)
            run.recovered.add(one.step)
        for run in [run for run in self._queue if run.recovered and run.needs_nothing]:
            self._queue.remove(run)
            run.status = DONE
            self._buffer.end(run.number)

    @property
    def exhausted(self) -> bool:
        """Whether no simulation waits or runs and none will come."""
        return (self.all_planned and not self._queue and not self._active) or (self.stopping and not self._active)

    @property
    def training_exhausted(self) -> bool:
        """Whether no window will come any more; held-out simulations may still run."""
        waiting = (run for run in chain(self._queue, self._active.values()) if not run.assignment.held_out)
        spooled = self._limits.spool is not None and self._limits.spool.waiting
        return self.stopping or (self.all_planned and not spooled and not any(waiting))

    @property
    def finished(self) -> bool:
        """Whether every simulation has come to its end, files included."""
        return self.exhausted and all(run.status in TERMINAL or self.stopping for run in self.runs.values())

    @property
    def active(self) -> list[SimulationRun]:
        """The simulations that jobs run now."""
        return list(self._active.values())

    def may_draw(self) -> bool:
        """Whether the windows may be used more often yet; a fixed order sees to that itself."""
        if self._in_order:
            return True
        # The drain at the end uses what is there once more; without this reserve it would come on top of the views.
        views = self._limits.views
        reserve = self._buffer.population * max(0.0, 1 - 1 / views)
        return self.closed or self._drawn() < views * self.windows_accepted - reserve

    # -- admission -----------------------------------------------------------------------------------------------

    def admit(self, job: str) -> SimulationRun | None:
        """Give a job its next simulation, if its smallest window of steps fits into the reservoir now."""
        if not self._queue or self.stopping or job in self._given_up or len(self._active) >= self.running_limit:
            return None
        run = self._queue[0]
        if run.assignment.held_out and self._writer.waiting >= _WAITING_WRITES:
            return None
        run.begin(job, *self._paces.get(job, ()))
        needed = 0 if run.assignment.held_out else max(1, self._layout.window - run.kept)
        while run.granted < self._layout.num_steps and len(run.slots) + len(run.places) < needed:
            if not self._extend(run):
                self._free_room(run)
                run.granted, run.status, run.job = 0, QUEUED, None
                return None
        self._queue.popleft()
        self._active[run.number] = run
        self._ledger.append({"e": "assigned", "s": run.number, "a": run.attempt, "job": job})
        return run

    # -- steps ---------------------------------------------------------------------------------------------------

    def _stop_if_asked(self, run: SimulationRun) -> None:
        if self._limits.nan_policy == "stop" and not self.fatal:
            self.fatal = (
                f"Simulation {run.number} with {dict(run.assignment.parameters)} failed, and nan_policy is 'stop': "
                f"{run.reason}. It is in quarantine now: --resume goes on without it."
            )

    # -- the spool -----------------------------------------------------------------------------------------------

    def recover_spool(self, entries: Iterable[Spooled]) -> None:
        """Take up steps that an earlier session left in the spool; simulations that lack nothing else are not run."""
        runs = self.runs
        wanted = [one for one in entries if one.simulation in runs and runs[one.simulation].stores(one.step)]
        self._limits.spool.adopt(wanted)
        for one in wanted:
            runs[one.simulation].recovered.add(one.step)
        for run in [run for run in self._queue if self._limits.spool.holds(run.number) and run.needs_nothing]:
            self._queue.remove(run)
            run.status = SPOOLED

    def replay(self) -> None:
        """Move steps from the spool into the reservoir as far as there is room; after a stop they wait for a resume."""
        spool = self._limits.spool
        while spool is not None and not self.stopping and (entry := spool.first()) is not None and not self.throttled:
            run = self.runs[entry.simulation]
            slot = self._buffer.reserve(run.number)
            if slot is None:
                return
            if spool.take(self._slots[slot]):
                self._store(run, entry.attempt, entry.step, slot, entry.time, entry.checksum)
            else:
                self._buffer.cancel(slot)
                self.quarantine(run, entry.step, f"step {entry.step} was damaged in {spool.path}")
            if run.status == SPOOLED and not spool.holds(run.number):
                run.status = DONE
                self._buffer.end(run.number)

    # -- ends ----------------------------------------------------------------------------------------------------

    def end_rank(self, run: SimulationRun, rank: int, num_ranks: int, status: int, report: dict[str, Any]) -> bool:
        """Record the END of one rank; say whether it was the last one."""
        if rank in run.ends:
            return False
        run.ends[rank] = status
        self.blocked_seconds += float(report.get("blocked", 0.0))
        self.solver_seconds += float(report.get("elapsed", 0.0))
        busy = float(report.get("elapsed", 0.0)) - float(report.get("blocked", 0.0))
        run.busy_seconds = max(run.busy_seconds, busy if run.received else 0.0)
        last = len(run.ends) == num_ranks
        if status == FAILED:
            run.reason = run.reason or str(report.get("reason", ""))[:2000] or "the solver failed without saying why"
        # In a fixed order the steps that other ranks still send are waited for.
        if FAILED in run.ends.values() and run.status == RUNNING and (last or not self._in_order):
            self.quarantine(run, run.received, run.reason)
            self._stop_if_asked(run)
        if not last:
            return False
        worst = FAILED if FAILED in run.ends.values() else max(run.ends.values())
        self._note_ended(run, worst)
        self._active.pop(run.number, None)
        self._paces[run.job] = run.pace, run.busy_seconds / run.received if run.busy_seconds else math.inf
        run.job = None
        if run.status == RUNNING:
            self._complete(run)
        return True

    def _note_ended(self, run: SimulationRun, status: int) -> None:
        self._ledger.append({"e": "ended", "s": run.number, "a": run.attempt, "status": status, "steps": run.received})

    def _complete(self, run: SimulationRun) -> None:
        self._free_room(run)
        run.assemblies.clear()
        self.counts["short"] += run.received < self._layout.num_steps
        if run.received < self._layout.window and not run.assignment.held_out:
            self._note_too_short(run)
        if self._limits.spool is not None and self._limits.spool.holds(run.number):
            run.status = SPOOLED
        elif not run.assignment.held_out:
            run.status = DONE
            self._buffer.end(run.number)
        elif run.times:
            run.status = WRITING
            states, run.states = run.states[: len(run.times)], None
            self._writer.put(run.number, run.assignment.parameters, np.array(run.times), states)
        else:
            self.quarantine(run, 0, "it ended without a single step")

    def _note_too_short(self, run: SimulationRun) -> None:
        """Where the first simulations give no window at all, the others would not either."""
        self._too_short += 1
        if not self.windows_accepted and self._too_short >= max(1, self._limits.max_failures) and not self.fatal:
            self.fatal = (
                f"{self._too_short} simulations ended in order but gave no window; the last one, {run.number}, after "
                f"{run.received} of {self._layout.num_steps} steps, and a window has {self._layout.window}. Let the "
                "solver send all its steps, or take a model with a shorter window."
            )

    def held_out_written(self, result: HeldOutResult) -> None:
        """Record that a held-out simulation lies in its file, or cannot: then a resumed study runs it again."""
        run = self.runs[result.simulation]
        if result.error is None:
            run.status = DONE
        else:
            run.status, run.reason = QUARANTINED, result.error
            self._ledger.append({"e": "unwritten", "s": run.number, "a": run.attempt, "reason": result.error})

    def quarantine(self, run: SimulationRun, step: int, reason: str) -> None:
        """Keep the rest of a simulation out of the study; a job that runs it is told to stop."""
        if run.status == QUARANTINED:
            return
        self.advance(run, before=step)
        run.drop_rest(Word.STOP)
        self._free_room(run)
        if self._limits.spool is not None:
            self._limits.spool.drop(run.number)
        run.status, run.reason, run.states = QUARANTINED, reason, None
        self._ledger.append({"e": "quarantined", "s": run.number, "a": run.attempt, "t": step, "reason": reason})
        if not run.assignment.held_out:
            self._buffer.end(run.number)

    def give_up(self, place: Place, reason: str) -> bool:
        """Give up a running simulation that has come no further than a place; say whether there is one.

        It goes into quarantine; told to stop before, it keeps what it sent. Its job is to be ended, and gets no other.
        """
        run = self._active.get(place.simulation)
        if run is None or self.stopping or (run.attempt, run.received) != (place.attempt, place.received):
            return False
        self._given_up.add(run.job)
        if not run.dropping:
            self.quarantine(run, run.received, reason)
            self._stop_if_asked(run)
        return True

    def lose(self, number: int, reason: str) -> bool:
        """The attempt died with its job; say whether the simulation will run again."""
        run = self._active.pop(number, None)
        if run is None:
            return False
        job, run.job = run.job, None
        if job in self._given_up and run.status == RUNNING:  # it was to stop, and never came to it
            self._note_ended(run, STOPPED)
            self._complete(run)
            return False
        self._ledger.append({"e": "lost", "s": run.number, "a": run.attempt, "reason": reason})
        if run.status != RUNNING:
            return False
        self.counts["lost"] += 1
        run.failures += 1
        if run.failures >= max(1, self._limits.max_failures):
            self.quarantine(run, run.received, f"{run.failures} attempts failed; the last one: {reason}")
            return False
        run.abandon()
        self._free_room(run)
        self._queue.appendleft(run)
        return True

    def steer(self, number: int, word: Word, reason: str) -> None:
        """Say a word to a running training simulation from its next step on; any other is left alone."""
        run = self._active.get(number)
        if run is None or run.status != RUNNING or run.dropping or run.assignment.held_out:
            return
        self._ledger.append(
            {"e": "steered", "s": number, "a": run.attempt, "t": run.received, "word": int(word), "reason": reason}
        )
        run.slow = word == Word.SLOW
        if word == Word.STOP:
            run.drop_rest(Word.STOP)
            self._free_room(run)

    def request_stop(self) -> None:
        """End early: no simulation is given out, running ones stop at their next step."""
        self.stopping = True
        for run in self._active.values():
            if run.status == RUNNING and run.received < self._layout.num_steps:
                run.drop_rest(Word.STOP)
                self._free_room(run)
                run.status = RUN_STOPPED
                if not run.assignment.held_out:
                    self._buffer.end(run.number)

    def settle(self) -> None:
        """Freeze the statistics at the watermark; close the buffer when what remains in it meets the views."""
        if not self.closed and self.training_exhausted:
            remaining = self._limits.views * self.windows_accepted - self._buffer.population
            if self.stopping or not self._buffer.ready or self._drawn() >= remaining:
                self._buffer.close()
                self.closed = True
        if not self.frozen and (self.closed or (self._buffer.ready and self.statistics.count)):
            self.frozen = True

    def status(self) -> dict[str, Any]:
        """Return the table's part of the intake's status."""
        tally = Counter(run.status for run in self.runs.values())
        names = (QUEUED, RUNNING, WRITING, SPOOLED, DONE, RUN_STOPPED)
        quarantined = [
            {"simulation": run.number, "parameters": dict(run.assignment.parameters), "reason": run.reason}
            for run in self.runs.values()
            if run.status == QUARANTINED
        ]
        return {
            **{name: tally[name] for name in names},
            "planned": len(self.runs),
            "quarantined": quarantined,
            **self.counts,
            "windows_accepted": self.windows_accepted,
            "waiting_in_spool": 0 if self._limits.spool is None else self._limits.spool.waiting,
            "running_limit": self.running_limit,
            "blocked_seconds": self.blocked_seconds,
            "solver_seconds": self.solver_seconds,
            "watermark_reached": self.frozen,
            "statistics": self.statistics.to_dict(),
            "fatal": self.fatal,
            "drift": self._recent.drift_from(self.statistics),
            "running_in": {
                run.job: (Place(run.number, run.attempt, run.received), self.short_of_room(run))
                for run in self._active.values()
            },
        }
