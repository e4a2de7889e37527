"""Where complete steps go: into the reservoir's slots, the spool, or a held-out simulation's states; and their log."""

from __future__ import annotations

import numpy as np

from .assembly import StepAssembly, all_finite
from .block_intake import BlockIntake
from .buffer import Buffer
from .client import checksum_of
from .draws import batch_dtype
from .fixed_order import FixedOrder
from .intake_settings import IntakeSettings
from .layout import StreamLayout
from .ledger import RecordWriter
from .running_statistics import RunningStatistics
from .simulation_run import SimulationRun
from .spool import Spooled

# Of small steps one in so many is looked at for drift; of large ones fewer, which have as many values.
_DRIFT_EVERY, _SMALL_BYTES, _MOST_LESS = 16, 2**18, 16


class StepStore(BlockIntake):
    """Stores the steps that blocks have made, counts the windows that they complete, and tabulates drawn ones.

    slots : (num_slots, fields, *grid), the reservoir's memory.
    """

    def __init__(
        self, layout: StreamLayout, buffer: Buffer, slots: np.ndarray, ledger: RecordWriter, limits: IntakeSettings
    ) -> None:
        super().__init__(layout, ledger, limits, in_order=isinstance(buffer, FixedOrder))
        self._buffer, self._slots = buffer, slots
        self.runs: dict[int, SimulationRun] = {}
        self.slot_times = np.zeros(len(slots))
        self._slot_parameters = np.zeros((len(slots), len(layout.parameters)))
        self._records = batch_dtype(layout.window, len(layout.parameters))
        self.frozen = False
        self.statistics = RunningStatistics(len(layout.fields))
        self._recent = RunningStatistics(len(layout.fields))
        self._drift_every = _DRIFT_EVERY * min(_MOST_LESS, max(1, layout.step_bytes // _SMALL_BYTES))
        self.windows_accepted = 0
        if self._in_order:
            buffer.on_step = self._count

    def _target(self, run: SimulationRun, step: int) -> np.ndarray | None:
        if not run.stores(step):
            return None
        if run.assignment.held_out:
            return run.states[step]
        if step in run.places:
            return np.empty(self._layout.step_shape, self._layout.dtype)
        return self._slots[run.slots[step]]

    def _accept(self, run: SimulationRun, step: int, assembly: StepAssembly) -> None:
        if self._in_order and assembly.target is not None and self._limits.nan_policy != "keep":
            if not all_finite(assembly.target.ravel()):
                self.quarantine(run, step, f"NaN or infinity in step {step}, time {assembly.time:g}")
                self._stop_if_asked(run)
                assembly.target = None
        if assembly.target is None:
            left_out = step in run.skipped
            self.counts["steps_skipped" if left_out else "steps_dropped"] += 1
            if left_out:
                self._ledger.append({"e": "left_out", "s": run.number, "a": run.attempt, "t": step})
            return
        checksum = assembly.checksum()
        if step in run.places:
            place = run.places.pop(step)
            entry = Spooled(
                simulation=run.number, attempt=run.attempt, step=step, time=assembly.time, place=place,
                checksum=checksum,
            )  # fmt: skip
            self._limits.spool.write(entry, assembly.target)
            self._ledger.append(entry.record)
            self.counts["steps_spooled"] += 1
            return
        if run.assignment.held_out:
            self.counts["steps_accepted"] += 1
            self._ledger.append({"e": "step", "s": run.number, "a": run.attempt, "t": step, "h": checksum})
            run.times.append(assembly.time)
            return
        self._store(run, run.attempt, step, run.slots.pop(step), assembly.time, checksum)

    def _store(
        self, run: SimulationRun, attempt: int, step: int, slot: int, time: float, checksum: int
    ) -> None:  # fmt: skip
        """A step of a training simulation is complete in its slot, for the first time in this session."""
        self.counts["steps_accepted"] += 1
        self._note_step(run, attempt, step, slot, time, checksum)
        self._take_in(run, attempt, step, slot, time)

    def _note_step(
        self, run: SimulationRun, attempt: int, step: int, slot: int, time: float, checksum: int
    ) -> None:  # fmt: skip
        where = "" if self._limits.durability == "memory" else f',"l":{slot},"x":{time!r}'
        self._ledger.append_text(f'{{"e":"step","s":{run.number},"a":{attempt},"t":{step},"h":{checksum}{where}}}')

    def _store_steps(self, run: SimulationRun, first: int, times: list[float], values: np.ndarray) -> bool:
        """Put whole steps of a training simulation into their slots and accept them, if nothing is special of them."""
        steps = range(first, first + len(times))
        plain = run.received == first and not run.dropping and not self._in_order and not run.assignment.held_out
        if not plain or run.assemblies or not run.slots.keys() >= set(steps) or not all_finite(values.ravel()):
            return False
        slots = [run.slots.pop(step) for step in steps]
        self._slots[slots] = values.reshape(-1, *self._layout.step_shape)
        self.slot_times[slots], self._slot_parameters[slots] = times, run.values
        before = self.counts["steps_accepted"]
        self.counts["steps_accepted"] += len(steps)
        if not self.frozen:
            self.statistics.add(values.reshape(len(steps), len(self._layout.fields), -1).swapaxes(0, 1))
        elif before // self._drift_every < self.counts["steps_accepted"] // self._drift_every:
            self._recent.add(self._slots[slots[-1]])
        for step, slot, time, part in zip(steps, slots, times, values, strict=True):
            self._note_step(run, run.attempt, step, slot, time, checksum_of(part, "xxh3"))
            self._put(run, run.attempt, step, slot)
        run.done += [(step, run.word) for step in steps]
        run.received += len(steps)
        run.kept = max(run.kept, run.received)
        return True

    def _take_in(self, run: SimulationRun, attempt: int, step: int, slot: int, time: float) -> None:
        """A step of a training simulation is complete in its slot."""
        self.slot_times[slot], self._slot_parameters[slot] = time, run.values
        if not self._in_order:
            self._count(slot)
        self._put(run, attempt, step, slot)

    def _put(self, run: SimulationRun, attempt: int, step: int, slot: int) -> None:
        """Offer a step to the buffer, and count the windows that it completes."""
        if self._limits.statistics is not None:
            self._limits.statistics.take(run.number, step, run.assignment.parameters, self._slots[slot])
        before = self._buffer.population
        self._buffer.put(run.number, attempt, step, slot)
        # What an earlier session left does not come in order: a window may be complete with any of its steps.
        self.windows_accepted += (
            run.completes_window(step) if self._in_order else self._buffer.population - before
        )  # fmt: skip

    def _count(self, slot: int) -> None:
        """Take a step of the stream into the normaliser's statistics; once they are frozen, some into the drift."""
        if not self.frozen:
            self.statistics.add(self._slots[slot])
            # No later step may slip in, however many take their turn before anybody looks.
            self.frozen = self._in_order and self._buffer.ready
        elif self.counts["steps_accepted"] % self._drift_every == 0:
            self._recent.add(self._slots[slot])

    def tabulate(self, draws: np.ndarray) -> np.ndarray:
        """Return BATCH's records of a table of draws."""
        records = np.empty(len(draws), self._records)
        # A record begins with its draw: as bytes it takes one copy.
        size = draws.itemsize
        records.view(np.uint8).reshape(len(draws), -1)[:, :size] = draws.view(np.uint8).reshape(len(draws), size)
        records["times"] = self.slot_times[draws["slots"]]
        records["parameters"] = self._slot_parameters[draws["slots"][:, 0]]
        return records
