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
        self._layout = layout
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
        row = 4 * _floats_of_row(layout) + 4 * layout.window
        table = batch_dtype(layout.window, len(layout.parameters)).itemsize
        return -(-rows * row // 8) * 8 + rows * table + _ALIGNMENT

    def take(self, rows: int) -> int | None:
        """Return the offset of a free block; None where none of its length is free now.

        Raises
        ------
        ValueError : the memory is smaller than that.
        """
        size, whole = -(-self.size_of(rows, self._layout) // _ALIGNMENT) * _ALIGNMENT, len(self.memory)
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
        if not 0 <= offset <= len(self.memory) - self.size_of(rows, self._layout) or rows < 1 or offset % _ALIGNMENT:
            raise ValueError(f"A block of {rows} windows at byte {offset} does not lie in the feeder's memory.")
        layout, number = self._layout, rows * _floats_of_row(self._layout)
        floats = np.frombuffer(self._mapping, np.float32, number, offset)
        shapes = [(layout.window, *layout.step_shape), (layout.window,), (len(layout.parameters),)]
        ends = np.cumsum([rows * math.prod(shape) for shape in shapes])
        states, times, parameters = (
            part.reshape(rows, *shape) for part, shape in zip(np.split(floats, ends[:-1]), shapes, strict=True)
        )
        at = offset + floats.nbytes
        checksums = np.frombuffer(self._mapping, np.uint32, rows * layout.window, at).reshape(rows, layout.window)
        records = batch_dtype(layout.window, len(layout.parameters))
        table = np.frombuffer(self._mapping, records, rows, -(-(at + checksums.nbytes) // 8) * 8)
        return SharedBlock(floats, states, times, parameters, checksums, table)

    def close(self) -> None:
        """Unmap."""
        self.memory = self.memory[:0].copy()
        try:
            self._mapping.close()
        except BufferError:
            pass  # somebody still holds a view: the mapping goes with the last one


def _floats_of_row(layout: StreamLayout) -> int:
    return layout.window * (math.prod(layout.step_shape) + 1) + len(layout.parameters)
