"""Blocks of all ranks become steps: each is checked, put in its place and counted; steps are accepted in order."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from .assembly import Box, StepAssembly, all_finite, overlap, place_of
from .cell_list import CellList
from .client import (
    BY_INDEX,
    DTYPE_CODES,
    IN_RING,
    MOST_GATHERED,
    MOST_TOGETHER,
    STEPS_SHIFT,
    XXH3,
    Header,
    WireError,
    checksum_of,
)
from .intake_settings import IntakeSettings
from .layout import StreamLayout
from .ledger import RecordWriter
from .placing import Placement
from .simulation_run import SimulationRun

_COUNTS = (
    "steps_accepted", "steps_recovered", "steps_dropped", "steps_skipped", "steps_spooled", "bytes_received",
    "duplicates", "lost", "short",
)  # fmt: skip
_MOST_KNOWN = 4096


def _checksum_name(header: Header) -> str:
    return "xxh3" if header.flags & XXH3 else "crc32"


class ChecksumError(WireError):
    """A block was damaged on its way."""


class Arrival(NamedTuple):
    """A block that belongs to a step, on the way to its place."""

    run: SimulationRun
    header: Header
    box: Box
    assembly: StepAssembly
    values: np.ndarray
    placement: Placement


class BlockIntake(ABC):
    """What happens to blocks, whatever becomes of the steps that they make.

    in_order : nothing may depend on which block comes first.
    """

    def __init__(self, layout: StreamLayout, ledger: RecordWriter, limits: IntakeSettings, *, in_order: bool) -> None:
        self._layout, self._ledger, self._limits, self._in_order = layout, ledger, limits, in_order
        self._dtype_code = DTYPE_CODES[layout.dtype]
        self._dtype = np.dtype(layout.dtype)
        self._num_cells = math.prod(layout.step_shape)
        self.counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
        self._placements: list[Placement] = []

    @abstractmethod
    def _target(self, run: SimulationRun, step: int) -> np.ndarray | None:
        """Return where the values of a step go, (fields, *grid); None: they are not kept."""

    @abstractmethod
    def _accept(self, run: SimulationRun, step: int, assembly: StepAssembly) -> None:
        """A step is complete, and so are all before it."""

    @abstractmethod
    def quarantine(self, run: SimulationRun, step: int, reason: str) -> None:
        """Keep the rest of a simulation out of the study."""

    @abstractmethod
    def _stop_if_asked(self, run: SimulationRun) -> None:
        """A simulation failed: end the study where its policy says so."""

    def begin_block(
        self, run: SimulationRun, header: Header, payload: Any, cells: CellList | None = None
    ) -> Arrival | None:
        """Take one sub-block of one or more fields, whose way `finish_block` ends; None: it is there already.

        cells : those that the sending rank owns, where it has named them.

        Raises
        ------
        WireError : a block that does not belong here.
        """
        if not header.flags & BY_INDEX:
            cells = None
        elif cells is None:
            raise WireError("cells")
        if header.step >= run.granted:
            raise WireError("credit")
        if not math.isfinite(header.time):
            raise WireError("time")
        box = self._box(run, header, header.payload_length, cells)
        self.counts["bytes_received"] += header.payload_length
        assembly = self._assembly(run, header, box)
        if assembly is None:
            return None
        values = np.frombuffer(payload, dtype=self._dtype)
        named = None if cells is None else cells.part(header.offset[0], header.block_shape[0])
        if named is not None:
            assembly.cells[box] = named  # now, as another of the step's blocks may be there before this one
        placement = Placement(partial(assembly.place, box, values, _checksum_name(header), named))
        self._placements.append(placement)
        return Arrival(run, header, box, assembly, values, placement)

    def finish_block(self, arrival: Arrival) -> None:
        """Put a block in its place, if nobody has, and see what follows; `advance` accepts the steps that are complete.

        Blocks of a rank are finished in the order in which they were begun.

        Raises
        ------
        ChecksumError : its content was damaged.
        """
        # Into its slot first, and checked there: what was damaged on its way ends the attempt, and its slots with it.
        run, header, box, assembly, values, placement = arrival
        checksum, finite = placement.result()
        self._placements.remove(placement)
        if run.assemblies.get(header.step) is not assembly:
            return  # its attempt has ended meanwhile
        if checksum != header.checksum:
            raise ChecksumError("checksum")
        if self._settle_block(run, header, box, assembly, values, finite=finite):
            self._note_block(run, header, box)

    def _wait_for_blocks(self) -> None:
        """Return when nothing is written into slots any more."""
        for placement in self._placements:
            placement.wait()

    def take_steps(self, run: SimulationRun, header: Header, payload: Any) -> None:
        """Store the same sub-block of several steps in a row, which came in one message.

        Raises
        ------
        WireError : as `begin_block`; "steps" where there are too many, or their cells have numbers.
        ChecksumError : as `finish_block`.
        """
        number = header.flags >> STEPS_SHIFT
        if not 2 <= number <= MOST_TOGETHER or header.payload_length > MOST_GATHERED or header.flags & BY_INDEX:
            raise WireError("steps")
        if header.step + number > run.granted:
            raise WireError("credit")
        length, rest = divmod(header.payload_length, number)
        if rest:
            raise WireError("length")
        box = self._box(run, header, length - 8, None)
        content = bytes(payload) if header.flags & IN_RING else payload  # the ring belongs to the sender, too
        name = _checksum_name(header)
        if checksum_of(content, name) != header.checksum:
            raise ChecksumError("checksum")
        end = number * (length - 8)
        values = np.frombuffer(content, self._dtype, end // self._dtype.itemsize).reshape(number, -1)
        times = np.frombuffer(content, "<f8", number, end).tolist()
        if not all(map(math.isfinite, times)):
            raise WireError("time")
        self.counts["bytes_received"] += end
        self.advance(run)
        if values.shape[1] == self._num_cells and self._store_steps(run, header.step, times, values):
            self._note_block(run, header, box, number)
            return
        kept, place, finite = False, place_of(box), all_finite(values.ravel())
        for step, time, part in zip(range(header.step, header.step + number), times, values, strict=True):
            one = header._replace(step=step, time=time)
            assembly = self._assembly(run, one, box)
            if assembly is not None:
                assembly.put(box, part, place)
                sound = finite or all_finite(part)
                kept |= self._settle_block(run, one, box, assembly, part, finite=sound)
        if kept:
            self._note_block(run, header, box, number)

    @abstractmethod
    def _store_steps(self, run: SimulationRun, first: int, times: list[float], values: np.ndarray) -> bool:
        """Accept whole steps in a row at once, (steps, values of a step); False where each must be looked at."""

    def _box(self, run: SimulationRun, header: Header, length: int, cells: CellList | None) -> Box:
        """Return where a block of so many bytes belongs; a rank sends the same boxes with every step."""
        owner = None if cells is None else (header.block, cells.number)
        place = header[6:8], header[12:15], length, owner
        box = run.known.get(place)
        if box is None:
            count = self._check(header, length, self._layout.shape if cells is None else cells.shape)
            box = Box(header.field, count, header.offset, header.block_shape, owner)
            if len(run.known) < _MOST_KNOWN:
                run.known[place] = box
        return box

    def _assembly(self, run: SimulationRun, header: Header, box: Box) -> StepAssembly | None:
        """Return the step that a block is part of; None where it is there already."""
        assembly = run.assemblies.get(header.step)
        if header.step < run.received or (assembly is not None and (assembly.missing <= 0 or box in assembly.boxes)):
            self.counts["duplicates"] += 1
            return None
        if assembly is None:
            assembly = StepAssembly(self._target(run, header.step), self._num_cells, header.time)
            run.assemblies[header.step] = assembly
        assembly.boxes.add(box)
        return assembly

    def _settle_block(
        self, run: SimulationRun, header: Header, box: Box, assembly: StepAssembly, values: np.ndarray, *, finite: bool
    ) -> bool:  # fmt: skip
        """See what follows from a block that is in its place; say whether it is kept."""
        # In a fixed order a step is looked at as a whole: which block comes first depends on time.
        if not finite and self._limits.nan_policy != "keep" and not self._in_order:
            self._quarantine_infinite(run, header, values.reshape(box.count, -1))
        kept = assembly.target is not None
        assembly.missing -= values.size
        if header.value & 1:
            assembly.finished_ranks.add(header.block)
        self._settle_tiling(run, header, assembly)
        return kept

    def _note_block(self, run: SimulationRun, header: Header, box: Box, steps: int = 1) -> None:
        """Write into the ledger what came, as the sender wrote it into its log."""
        more = f',"n":{box.count}' if box.count > 1 else ""
        if steps > 1:
            more += f',"m":{steps}'
        if box.owner is not None:
            more += f',"r":{header.block}'
        self._ledger.append_text(
            f'{{"e":"block","s":{run.number},"a":{run.attempt},"f":{header.field},"t":{header.step},'
            f'"o":{list(header.offset)},"c":{header.checksum}{more}}}'
        )

    def _quarantine_infinite(self, run: SimulationRun, header: Header, values: np.ndarray) -> None:
        field = header.field + int(np.argmin(np.isfinite(values).all(axis=1)))
        where = f"field {self._layout.fields[field]}, block at {list(header.offset)}"
        self.quarantine(run, header.step, f"NaN or infinity in {where}, step {header.step}, time {header.time:g}")
        self._stop_if_asked(run)

    def skip_step(self, run: SimulationRun, header: Header) -> None:
        """A rank has left out a step; `advance` goes on behind it once all ranks have.

        Raises
        ------
        WireError : this step was not to be left out.
        """
        if header.step not in run.skipped:
            raise WireError("skip")
        if header.step < run.received:
            self.counts["duplicates"] += 1
            return
        assembly = run.assemblies.get(header.step)
        if assembly is None:
            assembly = run.assemblies[header.step] = StepAssembly(None, self._num_cells, header.time)
        assembly.finished_ranks.add(header.block)
        self._settle_tiling(run, header, assembly)

    def _check(self, header: Header, length: int, shape: tuple[int, ...]) -> int:
        """Return how many fields a block of so many bytes carries; shape: of the grid, or of the list of its cells."""
        if header.dtype != self._dtype_code:
            raise WireError("dtype")
        if header.field >= len(self._layout.fields) or header.global_shape != shape:
            raise WireError("shape")
        if any(n < 1 or o + n > full for o, n, full in zip(header.offset, header.block_shape, shape, strict=True)):
            raise WireError("block")
        count, rest = divmod(length, math.prod(header.block_shape) * self._dtype.itemsize)
        if rest or not 1 <= count <= len(self._layout.fields) - header.field:
            raise WireError("length")
        return count

    def _settle_tiling(self, run: SimulationRun, header: Header, assembly: StepAssembly) -> None:
        """See that a step's blocks do not overlap once all cells are there, and leave no gap once all ranks are."""
        if assembly.missing <= 0 and assembly.boxes != run.tiling:
            if overlap(assembly.boxes, self._layout.step_shape, assembly.cells):
                self.quarantine(run, header.step, f"the blocks of step {header.step} overlap")
            run.tiling = frozenset(assembly.boxes)
        elif assembly.missing > 0 and len(assembly.finished_ranks) == header.num_blocks:
            self._settle_gap(run, header, assembly)
            assembly.missing = 0

    def _settle_gap(self, run: SimulationRun, header: Header, assembly: StepAssembly) -> None:
        """All ranks are through with a step that is not complete: it was left out, or their blocks are wrong."""
        if header.step not in run.skipped:
            left = f"{assembly.missing} of {self._num_cells} cells"
            self.quarantine(run, header.step, f"the blocks of all ranks leave {left} of step {header.step} uncovered")

    def advance(self, run: SimulationRun, before: int | None = None) -> None:
        """Accept the steps that are complete, in order, and note them in `run.done`.

        before : a step at which to stop.
        """
        while run.received != before and (ready := run.assemblies.get(run.received)) is not None and ready.missing <= 0:
            del run.assemblies[run.received]
            self._accept(run, run.received, ready)
            run.done.append((run.received, run.word))
            run.received += 1
            run.kept = max(run.kept, run.received)
