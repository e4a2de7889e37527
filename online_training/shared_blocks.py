"""Memory that a feeder process fills with gathered batches and its trainer reads: a ring of blocks, in no file."""

from __future__ import annotations

import errno
import mmap
import os
from collections import deque
from itertools import accumulate
from typing import Any

import numpy as np

from .draws import batch_dtype
from .layout import StreamLayout

_ALIGNMENT = 64


class SharedBlock:
    """Batches of one length, one behind the other, in the memory; each part is a view, made when it is asked for.

    memory : bytes, from where the block begins. rows : windows.
    steps : with them; slots of the reservoir into whose copy on the GPU they go, and those of each window, are there
        where the block is indexed; else the steps are the windows' states.
    """

    __slots__ = ("_ends", "_layout", "_memory", "_records", "rows", "steps")

    def __init__(
        self, memory: np.ndarray, layout: StreamLayout, records: np.dtype, rows: int, steps: int, *, indexed: bool
    ) -> None:
        self._memory, self._layout, self._records, self.rows, self.steps = memory, layout, records, rows, steps
        windows = rows * layout.window
        sizes = (
            8 * steps * indexed, 8 * windows * indexed, 4 * windows, 4 * rows * len(layout.parameters),
            steps * layout.step_bytes, 4 * windows,
        )  # fmt: skip
        ends = list(accumulate(sizes))
        ends.append(-(-ends[-1] // 8) * 8)
        ends.append(ends[-1] + rows * records.itemsize)
        self._ends = ends

    def _part(self, number: int, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
        begin = self._ends[number - 1] if number else 0
        return self._memory[begin : self._ends[number]].view(kind).reshape(shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole block."""
        return self._ends[-1]

    @property
    def moved(self) -> np.ndarray:
        """Slots, where, times, parameters and content, all that a GPU gets, in one piece of bytes."""
        return self._memory[: self._ends[4]]

    @property
    def index_bytes(self) -> int:
        """Of what is moved, the first bytes: slots and where."""
        return self._ends[1]

    @property
    def slots(self) -> np.ndarray:
        """(steps,), int64: of the reservoir's copy, where the steps go."""
        return self._part(0, np.int64, (-1,))

    @property
    def where(self) -> np.ndarray:
        """(rows, window), int64: the slots of each window."""
        return self._part(1, np.int64, (-1, self._layout.window))

    @property
    def times(self) -> np.ndarray:
        """(rows, window), float32."""
        return self._part(2, np.float32, (self.rows, self._layout.window))

    @property
    def parameters(self) -> np.ndarray:
        """(rows, number), float32."""
        return self._part(3, np.float32, (self.rows, len(self._layout.parameters)))

    @property
    def content(self) -> np.ndarray:
        """(steps, fields, *grid), float32."""
        return self._part(4, np.float32, (self.steps, *self._layout.step_shape))

    @property
    def states(self) -> np.ndarray:
        """(rows, window, fields, *grid), float32: the same, where the steps are those of all windows."""
        return self.content.reshape(self.rows, self._layout.window, *self._layout.step_shape)

    @property
    def checksums(self) -> np.ndarray:
        """(rows, window), uint32: of each step."""
        return self._part(5, np.uint32, (self.rows, self._layout.window))

    @property
    def table(self) -> np.ndarray:
        """(rows,), records of BATCH."""
        return self._part(7, self._records, (self.rows,))


class SharedBlocks:
    """A mapping of the memory; one process takes blocks and gives them back in the same order, the other looks.

    descriptor : of the memory, from `create` or from the other process; closed here.
    indexed : whether blocks hold the slots of windows and some steps, and not the windows' states.

    Raises
    ------
    ValueError : it has not the size given.
    """

    def __init__(self, descriptor: int, size: int, layout: StreamLayout, *, indexed: bool = False) -> None:
        try:
            found = os.fstat(descriptor).st_size
            if found != size:
                raise ValueError(f"The feeder's memory has {found} bytes, and {size} were said.")
            self._mapping = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        self._layout, self._indexed = layout, indexed
        self._records = batch_dtype(layout.window, len(layout.parameters))
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
        """Return the bytes of the largest block of so many windows."""
        records = batch_dtype(layout.window, len(layout.parameters))
        largest = SharedBlock(np.empty(0, np.uint8), layout, records, rows, rows * layout.window, indexed=True)
        return largest.nbytes + 2 * _ALIGNMENT

    def take(self, rows: int, steps: int) -> int | None:
        """Return the offset of a free block for so many windows and steps; None where none of its length is free now.

        Raises
        ------
        ValueError : the memory is smaller than that.
        """
        size, whole = self._size(rows, steps), len(self.memory)
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

    def block(self, offset: int, rows: int, steps: int) -> SharedBlock:
        """Return a block.

        Raises
        ------
        ValueError : it does not lie in the memory.
        """
        inside = 0 <= offset <= len(self.memory) and rows >= 1 and 0 <= steps <= rows * self._layout.window
        block = self._at(offset, rows, steps) if inside and not offset % _ALIGNMENT else None
        if block is None or offset + block.nbytes > len(self.memory):
            raise ValueError(f"A block of {rows} windows at byte {offset} does not lie in the feeder's memory.")
        return block

    def _at(self, offset: int, rows: int, steps: int) -> SharedBlock:
        return SharedBlock(self.memory[offset:], self._layout, self._records, rows, steps, indexed=self._indexed)

    def _size(self, rows: int, steps: int) -> int:
        """Bytes of a block, as a multiple of the alignment."""
        return -(-self._at(0, rows, steps).nbytes // _ALIGNMENT) * _ALIGNMENT

    def close(self) -> None:
        """Unmap."""
        self.memory = self.memory[:0].copy()
        try:
            self._mapping.close()
        except BufferError:
            pass  # somebody still holds a view: the mapping goes with the last one
