"""The spool: steps that wait on this node's disk for room in the reservoir, and go in order of arrival."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .client import checksum_of
from .layout import StreamLayout
from .ledger import intake_records


@dataclass(frozen=True, kw_only=True)
class Spooled:
    """One complete step in the spool.

    place : which of the file's places it fills.
    checksum : XXH3 of its bytes, as in the ledger.
    """

    simulation: int
    attempt: int
    step: int
    time: float
    place: int
    checksum: int

    @property
    def record(self) -> dict[str, Any]:
        """What the ledger says of it."""
        return {"e": "spooled", "s": self.simulation, "a": self.attempt, "t": self.step, "h": self.checksum,
                "x": self.time, "p": self.place}  # fmt: skip


class Spool:
    """A file of a fixed number of places, each one step with all its fields as in a slot.

    Written and read, not mapped, so that it takes no memory. It outlives the process; which steps lie in it is in the
    ledger (`unreplayed`).

    path : on a disk of this node; its folder is made.
    num_bytes : of the file, taken at once; as many whole places as fit.

    Raises
    ------
    ValueError : no step fits.
    OSError : there is no room, or the folder cannot be written.
    """

    def __init__(self, path: Path, layout: StreamLayout, num_bytes: int) -> None:
        self._layout, self.path = layout, path
        self.capacity = num_bytes // layout.step_bytes
        if self.capacity < 1:
            raise ValueError(f"A spool of {num_bytes} bytes holds no step of {layout.step_bytes} bytes. Give it more.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(self._file, 0, self.capacity * layout.step_bytes)
        except OSError as error:
            os.close(self._file)
            problem = f"The spool needs {self.capacity * layout.step_bytes / 1e6:.0f} MB but {path.parent} has no room"
            raise OSError(error.errno, f"{problem}. Make it smaller, or name another folder", str(path)) from error
        self._free = list(range(self.capacity - 1, -1, -1))
        self._queue: deque[Spooled] = deque()
        self._of: Counter[int] = Counter()

    @property
    def waiting(self) -> int:
        """Steps that wait for room in the reservoir."""
        return len(self._queue)

    def holds(self, simulation: int) -> bool:
        """Whether steps of a simulation wait."""
        return self._of[simulation] > 0

    def reserve(self) -> int | None:
        """Return a free place, None where the spool is full."""
        return self._free.pop() if self._free else None

    def cancel(self, place: int) -> None:
        """A reserved place will not be filled."""
        self._free.append(place)

    def adopt(self, entries: Iterable[Spooled]) -> None:
        """Take over what an earlier process left in the file."""
        entries = list(entries)
        taken = {entry.place for entry in entries}
        self._free = [place for place in self._free if place not in taken]
        for entry in entries:
            self._append(entry)

    def write(self, entry: Spooled, values: np.ndarray) -> None:
        """Put a complete step, (fields, *grid), into its reserved place, behind all others."""
        data, offset = memoryview(values.reshape(-1).view(np.uint8)), entry.place * self._layout.step_bytes
        while data:
            done = os.pwrite(self._file, data, offset)
            data, offset = data[done:], offset + done
        self._append(entry)

    def _append(self, entry: Spooled) -> None:
        self._queue.append(entry)
        self._of[entry.simulation] += 1

    def first(self) -> Spooled | None:
        """Return the step that goes next."""
        return self._queue[0] if self._queue else None

    def take(self, target: np.ndarray) -> bool:
        """Move the first step into a slot, (fields, *grid); False where its bytes are not those that were written."""
        entry = self._queue.popleft()
        self._release(entry)
        data, offset = memoryview(target.reshape(-1).view(np.uint8)), entry.place * self._layout.step_bytes
        while data:
            done = os.preadv(self._file, [data], offset)
            if not done:
                return False
            data, offset = data[done:], offset + done
        return checksum_of(target, "xxh3") == entry.checksum

    def drop(self, simulation: int) -> None:
        """Forget the steps of a simulation."""
        if self._of[simulation]:
            for entry in self._queue:
                if entry.simulation == simulation:
                    self._release(entry)
            self._queue = deque(entry for entry in self._queue if entry.simulation != simulation)

    def _release(self, entry: Spooled) -> None:
        self._free.append(entry.place)
        self._of[entry.simulation] -= 1

    def sync(self) -> None:
        """Return when what was written lies on the disk."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file, and remove it where nothing waits in it; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            if not self._queue:
                self.path.unlink(missing_ok=True)


def unreplayed(ledger: Path, path: Path, layout: StreamLayout) -> list[Spooled]:
    """Return the steps that earlier intakes left in a spool's file, in the order in which they came.

    A step that was replayed, or whose simulation went into quarantine, is not among them; whether its bytes are still
    those that the ledger names is found out when it is taken.
    """
    if not path.exists():
        return []
    found: dict[tuple[int, int], Spooled] = {}
    at: dict[int, tuple[int, int]] = {}  # (simulation, step) that was last written at a place
    quarantined: set[int] = set()
    places = path.stat().st_size // layout.step_bytes
    for record in intake_records(ledger):
        if record["e"] == "spooled":
            entry = Spooled(
                simulation=record["s"], attempt=record["a"], step=record["t"], time=record["x"], place=record["p"],
                checksum=record["h"],
            )  # fmt: skip
            key = entry.simulation, entry.step
            before = found.get(at.get(entry.place, key))
            if before is not None and before.place == entry.place:
                del found[before.simulation, before.step]  # it had left this place
            found.pop(key, None)  # it came again, and stands further back now
            found[key], at[entry.place] = entry, key
        elif record["e"] == "step":
            found.pop((record["s"], record["t"]), None)
        elif record["e"] == "quarantined":
            quarantined.add(record["s"])
    return [one for one in found.values() if one.simulation not in quarantined and one.place < places]
