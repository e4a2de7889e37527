"""One step of one simulation, put together from the blocks of all ranks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from .checksums import combine

Box = tuple[int, int, tuple[int, ...], tuple[int, ...]]
"""(first field, number of fields, offset, shape) of a sub-block."""

_WORTH_COMBINING = 8 * 1024
"""Bytes of a part from which reading it again takes longer than combining its checksum."""


def place_of(box: Box) -> tuple[slice, ...]:
    """Return where a box lies in a (fields, *grid) step."""
    field, count, offset, shape = box
    return slice(field, field + count), *(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


def overlap(boxes: Iterable[Box], step_shape: tuple[int, ...]) -> bool:
    """Say whether some cell of a (fields, *grid) step lies in more than one box."""
    count = np.zeros(step_shape, np.uint8)
    for box in boxes:
        part = count[place_of(box)]
        if part.any():
            return True
        part[...] = 1
    return False


def in_memory_order(boxes: Iterable[Box], step_shape: tuple[int, ...]) -> list[Box] | None:
    """Return boxes in the order of their memory, None where one is not contiguous in a (fields, *grid) step."""
    starts = {}
    for box in boxes:
        field, count, offset, shape = box
        if not _contiguous((count, *shape), step_shape):
            return None
        starts[box] = int(np.ravel_multi_index((field, *offset), step_shape))
    return sorted(starts, key=starts.__getitem__)


def _contiguous(shape: Sequence[int], full: Sequence[int]) -> bool:
    axis = next((i for i, n in enumerate(shape) if n > 1), len(shape))
    return tuple(shape[axis + 1 :]) == tuple(full[axis + 1 :])


class StepAssembly:
    """Collects sub-blocks in their place until every cell of every field is there.

    target : (fields, *grid), where the values go; None: they are checked and counted, not kept.
    boxes : checksum of each sub-block that is there.
    """

    __slots__ = ("boxes", "finished_ranks", "missing", "target", "time")

    def __init__(self, target: np.ndarray | None, num_cells: int, time: float) -> None:
        self.target, self.missing, self.time = target, num_cells, time
        self.boxes: dict[Box, int] = {}
        self.finished_ranks: set[int] = set()

    def place(self, box: Box, values: np.ndarray, crc: int) -> bool:
        """Put a sub-block, (its fields, *its shape), in its place; False where it is there already."""
        if box in self.boxes:
            return False
        if self.target is not None:
            self.target[place_of(box)] = values
        self.boxes[box] = crc
        self.missing -= values.size
        return True

    def crc32(self, order: Sequence[Box] | None) -> int:
        """Return the CRC-32 of the whole step; order: its boxes as `in_memory_order` gives them."""
        # The blocks have brought their checksums along: large ones need not be read again.
        if order is None or (len(order) > 1 and self.target.nbytes < _WORTH_COMBINING * len(order)):
            return zlib.crc32(self.target)
        itemsize = self.target.itemsize
        return combine((self.boxes[box], box[1] * math.prod(box[3]) * itemsize) for box in order)
