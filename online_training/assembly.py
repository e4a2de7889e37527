"""One step of one simulation, put together from the blocks of all ranks."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from .client import CHUNK, Digest, checksum_of


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


_CHUNK_CELLS = CHUNK // 4


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


def all_finite(values: np.ndarray) -> bool:
    """Say whether there is no NaN and no infinity; one pass of BLAS where the squares do not overflow."""
    return math.isfinite(np.dot(values, values)) or bool(np.isfinite(values).all())


class StepAssembly:
    """Collects sub-blocks in their place until every cell of every field is there.

    target : (fields, *grid), where the values go; None: they are checked and counted, not kept.
    boxes : the sub-blocks that are there or on their way.
    cells : numbers of the cells, in C order, of those that have an owner.
    """

    __slots__ = (
        "_checksum", "_digest", "_following", "_hashed", "boxes", "cells", "finished_ranks", "missing", "target",
        "time",
    )  # fmt: skip

    def __init__(self, target: np.ndarray | None, num_cells: int, time: float) -> None:
        self.target, self.missing, self.time = target, num_cells, time
        self.boxes: set[Box] = set()
        self.cells: dict[Box, np.ndarray] = {}
        self.finished_ranks: set[int] = set()
        # Checksum of the target's first so many cells, taken while they are in the cache; or of all at once.
        self._digest: Digest | None = None
        self._hashed = 0
        self._following = threading.Lock()
        self._checksum: int | None = None

    def place(
        self, box: Box, values: np.ndarray, checksum: str, cells: np.ndarray | None = None
    ) -> tuple[int, bool]:  # fmt: skip
        """Put the values of a sub-block, its fields one behind the other, in their place; threads may do so at once.

        Return their checksum, and whether all are finite. Where their place is one piece of memory both are of
        what lies there, so that a sender which shares the values' memory cannot change them in between.

        cells : where the box has an owner, the numbers of its cells.
        """
        target = self.target  # once: it is dropped by the thread that serves, at any time
        if target is not None and cells is None and values.size == target.size <= _CHUNK_CELLS:
            whole = target.reshape(-1)
            whole[...] = values
            found = checksum_of(whole, checksum)
            self._checksum = found if checksum == "xxh3" else checksum_of(whole, "xxh3")
            return found, all_finite(whole)
        digest = Digest(checksum)
        place = None if target is None or cells is not None else target[place_of(box)]
        if place is None or not place.flags.c_contiguous:
            if place is not None:
                place[...] = values.reshape(place.shape)
            elif target is not None:
                flat = target.reshape(len(target), -1)
                flat[box.field : box.field + box.count, cells] = values.reshape(box.count, -1)
            digest.update(values)
            return digest.value, all_finite(values)
        place, finite = place.reshape(-1), True
        # The step's own checksum goes on with this block if it lies behind what was read, and nobody else goes on.
        alone = self._following.acquire(blocking=False)
        if values.size == target.size:
            follows = not self._hashed
        else:
            follows = alone and _address(place) - _address(target) == self._hashed * values.itemsize
        if follows and not self._hashed:
            self._digest = digest if checksum == "xxh3" else Digest("xxh3")  # the beginning of both is the same
        for first in range(0, values.size, _CHUNK_CELLS):
            chunk = place[first : first + _CHUNK_CELLS]
            chunk[...] = values[first : first + _CHUNK_CELLS]
            digest.update(chunk)
            finite = finite and all_finite(chunk)
            if follows and self._digest is not digest:
                self._digest.update(chunk)
        found = digest.value
        if follows:
            self._hashed += values.size
        if alone:
            self._following.release()
        return found, finite

    def put(self, box: Box, values: np.ndarray, place: tuple[slice, ...]) -> None:
        """Put values that were checked already into the place of a box of the grid."""
        if self.target is not None:
            target = self.target[place]
            target[...] = values.reshape(target.shape)

    def checksum(self) -> int:
        """Return the XXH3 checksum of the whole step."""
        if self._checksum is not None:
            return self._checksum
        if not self._hashed:
            return checksum_of(self.target, "xxh3")
        # What came before those that lie in front of it has not been read for it yet.
        self._digest.update(self.target.reshape(-1)[self._hashed :])
        self._checksum = self._digest.value
        return self._checksum


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]
