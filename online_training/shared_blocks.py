"""Memory that a feeder process fills with gathered batches and its trainer reads: a ring of blocks, in no file."""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections import deque
from dataclasses import dataclass

import numpy as np

from .draws import batch_dtype
from .layout import StreamLayout

_ALIGNMENT = 64


@dataclass(frozen=True)
class SharedBlock:
    """Batches of one length, one behind the other, as views of the memory.

    floats : states, times and parameters, all that a GPU gets, in one piece.
    states (rows, window, fields, *grid), times (rows, window), parameters (rows, number) : float32, views of floats.
    checksums : (rows, window), uint32. table : (rows,), records of BATCH.
    """

    floats: np.ndarray
    states: np.ndarray
    times: np.ndarray
    parameters: np.ndarray
    checksums: np.ndarray
    table: np.ndarray


class SharedBlocks:
    """A mapping of the memory; one process takes blocks and gives them back in the same order, the other looks.

    descriptor : of the memory, from `create` or from the other process; closed here.

    Raises
    ------
    ValueError : it has not the size given.
    """

    def __init__(self, descriptor: int, size: int, layout: StreamLayout) -> None:
        try:
            found = os.fstat(descriptor).st_size
            if found != size:
                raise ValueError(f"The feeder's memory has {found} bytes, and {size} were said.")
            self._mapping = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._layout, self._records = layout, batch_dtype(layout.window, len(layout.parameters))
        # Of one row: bytes of all, and numbers of states, times and parameters.
        self._row_bytes = _row_bytes(layout)
        self._numbers = layout.window * math.prod(layout.step_shape), layout.window, len(layout.parameters)
        self.memory = np.frombuffer(self._mapping, np.uint8)
        """All of it, bytes."""
        self._taken: deque[tuple[int, int]] = deque()  # offset and end of each block, oldest first

    @staticmethod
    def create(size: int) -> int:
        """Return the descriptor of so many bytes of new memory, which is gone with the last process that has it.

        Raises
        ------
        OSError : there is not as much.
        """
        descriptor = os.memfd_create("headrace-feeder", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            os.posix_fallocate(descriptor, 0, size)  # else the first write to a page that is not there kills
        except OSError as error:
            os.close(descriptor)
            raise OSError(
                error.errno or errno.ENOMEM,
                f"There is no room for {size / 1e6:.0f} MB of batches on their way to the GPU; take smaller batches",
            ) from error
        return descriptor

    @staticmethod
    def size_of(rows: int, layout: StreamLayout) -> int:
        """Return the bytes of a block."""
        return rows * _row_bytes(layout) + 2 * _ALIGNMENT

    def take(self, rows: int) -> int | None:
        """Return the offset of a free block; None where none of its length is free now.

        Raises
        ------
        ValueError : the memory is smaller than that.
        """
        size, whole = self._size(rows), len(self.memory)
        if size > whole:
            raise ValueError(f"Batches of {rows} windows need {size} bytes; the feeder's memory has {whole}.")
        offset = 0
        if self._taken:
            first, end = self._taken[0][0], self._taken[-1][1]
            if self._taken[-1][0] >= first:  # what is taken lies in one piece
                offset = end if end + size <= whole else 0
                free = whole if offset else first
            else:
                offset, free = end, first
            if offset + size > free:
                return None
        self._taken.append((offset, offset + size))
        return offset

    def give_back(self) -> None:
        """The oldest block may be taken again."""
        self._taken.popleft()

    def block(self, offset: int, rows: int) -> SharedBlock:
        """Return the views of a block.

        Raises
        ------
        ValueError : it does not lie in the memory.
        """
        if rows < 1 or offset % _ALIGNMENT or not 0 <= offset <= len(self.memory) - self._size(rows):
            raise ValueError(f"A block of {rows} windows at byte {offset} does not lie in the feeder's memory.")
        window, memory = self._layout.window, self.memory
        first, second, third = (rows * number for number in self._numbers)
        at = offset + 4 * (first + second + third)
        floats = memory[offset:at].view(np.float32)
        table = -(-(at + 4 * second) // 8) * 8
        return SharedBlock(
            floats=floats,
            states=floats[:first].reshape(rows, window, *self._layout.step_shape),
            times=floats[first : first + second].reshape(rows, window),
            parameters=floats[first + second :].reshape(rows, len(self._layout.parameters)),
            checksums=memory[at : at + 4 * second].view(np.uint32).reshape(rows, window),
            table=memory[table : table + rows * self._records.itemsize].view(self._records),
        )  # fmt: skip

    def _size(self, rows: int) -> int:
        """Bytes of a block, as a multiple of the alignment."""
        return -(-(rows * self._row_bytes + _ALIGNMENT) // _ALIGNMENT) * _ALIGNMENT

    def close(self) -> None:
        """Unmap."""
        self.memory = self.memory[:0].copy()
        try:
            self._mapping.close()
        except BufferError:
            pass  # somebody still holds a view: the mapping goes with the last one


def _row_bytes(layout: StreamLayout) -> int:
    """Bytes of a row of a block: states, times, parameters, checksums and a record."""
    numbers = layout.window * (math.prod(layout.step_shape) + 2) + len(layout.parameters)
    return 4 * numbers + batch_dtype(layout.window, len(layout.parameters)).itemsize
