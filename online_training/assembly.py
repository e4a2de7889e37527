"""One step of one simulation, put together from the blocks of all ranks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .checksums import combine


class Box(NamedTuple):
    """Where a sub-block belongs.

    field, count : its first field and their number.
    offset, shape : its place in the grid; in the list of an owner's cells where there is one.
    owner : whose list, (rank, number of the list); None for a box of the grid.
    """

    field: int
    count: int
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    owner: tuple[int, int] | None = None


_WORTH_COMBINING = 8 * 1024
"""Bytes of a part from which reading it again takes longer than combining its checksum."""


def place_of(box: Box) -> tuple[slice, ...]:
    """Return where a box of the grid lies in a (fields, *grid) step."""
    field, count, offset, shape, _ = box
    return slice(field, field + count), *(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


def overlap(boxes: Iterable[Box], step_shape: tuple[int, ...], cells: Mapping[Box, np.ndarray]) -> bool:
    """Say whether some cell of a (fields, *grid) step lies in more than one box.

    cells : numbers of the cells of each box that has an owner.
    """
    taken = np.zeros(step_shape, bool)
    flat = taken.reshape(step_shape[0], -1)
    for box in boxes:
        if box.owner is None:
            part = taken[place_of(box)]
            if part.any():
                return True
            part[...] = True
        else:
            fields = slice(box.field, box.field + box.count)
            if flat[fields, cells[box]].any():
                return True
            flat[fields, cells[box]] = True
    return False


def in_memory_order(boxes: Iterable[Box], step_shape: tuple[int, ...]) -> list[Box] | None:
    """Return boxes in the order of their memory, None where one is not contiguous in a (fields, *grid) step."""
    starts = {}
    for box in boxes:
        field, count, offset, shape, owner = box
        if owner is not None or not _contiguous((count, *shape), step_shape):
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
    cells : numbers of the cells, in C order, of those that have an owner.
    """

    __slots__ = ("boxes", "cells", "finished_ranks", "missing", "target", "time")

    def __init__(self, target: np.ndarray | None, num_cells: int, time: float) -> None:
        self.target, self.missing, self.time = target, num_cells, time
        self.boxes: dict[Box, int] = {}
        self.cells: dict[Box, np.ndarray] = {}
        self.finished_ranks: set[int] = set()

    def place(self, box: Box, values: np.ndarray, crc: int, cells: np.ndarray | None = None) -> bool:
        """Put a sub-block, (its fields, *its shape), in its place; False where it is there already.

        cells : where the box has an owner, the numbers of its cells.
        """
        if box in self.boxes:
            return False
        if cells is not None:
            self.cells[box] = cells
        if self.target is not None and cells is not None:
            self.target.reshape(len(self.target), -1)[box.field : box.field + box.count, cells] = values
        elif self.target is not None:
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
        return combine((self.boxes[box], box.count * math.prod(box.shape) * itemsize) for box in order)
