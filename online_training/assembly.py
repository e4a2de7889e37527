"""One step of one simulation, put together from the blocks of all ranks."""

from __future__ import annotations

import zlib

import numpy as np

Box = tuple[int, tuple[int, ...], tuple[int, ...]]
"""(field, offset, shape) of a sub-block."""


def overlap(boxes: set[Box], step_shape: tuple[int, ...]) -> bool:
    """Say whether some cell of a (fields, *grid) step lies in more than one box."""
    count = np.zeros(step_shape, np.uint8)
    for field, offset, shape in boxes:
        part = count[field][tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))]
        if part.any():
            return True
        part[...] = 1
    return False


class StepAssembly:
    """Collects sub-blocks in their place until every cell of every field is there.

    target : (fields, *grid), where the values go; None: they are checked and counted, not kept.
    """

    __slots__ = ("_crc", "boxes", "finished_ranks", "missing", "target", "time")

    def __init__(self, target: np.ndarray | None, num_cells: int, time: float) -> None:
        self.target, self.missing, self.time = target, num_cells, time
        self.boxes: set[Box] = set()
        self.finished_ranks: set[int] = set()
        self._crc: int | None = None

    def place(self, box: Box, values: np.ndarray, crc: int) -> bool:
        """Put a sub-block in its place; False where it is there already."""
        if box in self.boxes:
            return False
        field, offset, shape = box
        if self.target is not None:
            self.target[field][tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))] = values
            self._crc = crc if values.size == self.target.size else None
        self.boxes.add(box)
        self.missing -= values.size
        return True

    def crc32(self) -> int:
        """Return the CRC-32 of the whole step, fields in order."""
        # One block that is the whole step has brought its checksum along.
        return zlib.crc32(self.target) if self._crc is None else self._crc
