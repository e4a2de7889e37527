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

    moved : slots, where, times, parameters and steps, all that a GPU gets, in one piece of bytes.
    slots (steps,), where (rows, window) : int64; empty where the windows' states come as such. Slots of the reservoir
        into whose copy on the GPU the steps go, and those of each window.
    times (rows, window), parameters (rows, number) : float32.
    steps : (steps, fields, *grid), float32. states : the same as (rows, window, fields, *grid), or None.
    checksums : (rows, window), uint32. table : (rows,), records of BATCH.
    """

    moved: np.ndarray
    slots: np.ndarray
    where: np.ndarray
    times: np.ndarray
    parameters: np.ndarray
    steps: np.ndarray
    states: np.ndarray | None
    checksums: np.ndarray
    table: np.ndarray


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
        return _bytes(layout, rows, rows * layout.window, indexed=True) + 2 * _ALIGNMENT

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
        """Return the views of a block.

        Raises
        ------
        ValueError : it does not lie in the memory.
        """
        inside = 0 <= offset <= len(self.memory) and rows >= 1 and 0 <= steps <= rows * self._layout.window
        if not inside or offset % _ALIGNMENT or offset + self._size(rows, steps) > len(self.memory):
            raise ValueError(f"A block of {rows} windows at byte {offset} does not lie in the feeder's memory.")
        window, number, end = self._layout.window, len(self._layout.parameters), offset

        def part(shape: tuple[int, ...], kind: type) -> np.ndarray:
            nonlocal end
            begin, end = end, end + math.prod(shape) * np.dtype(kind).itemsize
            return self.memory[begin:end].view(kind).reshape(shape)

        indices = int(self._indexed)
        slots, where = part((indices * steps,), np.int64), part((indices * rows, window), np.int64)
        times, parameters = part((rows, window), np.float32), part((rows, number), np.float32)
        content = part((steps, *self._layout.step_shape), np.float32)
        moved = self.memory[offset:end]
        checksums = part((rows, window), np.uint32)
        end = -(-end // 8) * 8
        states = None if self._indexed else content.reshape(rows, window, *self._layout.step_shape)
        return SharedBlock(
            moved=moved, slots=slots, where=where, times=times, parameters=parameters, steps=content, states=states,
            checksums=checksums, table=part((rows,), self._records),
        )  # fmt: skip

    def _size(self, rows: int, steps: int) -> int:
        """Bytes of a block, as a multiple of the alignment."""
        size = _bytes(self._layout, rows, steps, indexed=self._indexed)
        return -(-(size + 8) // _ALIGNMENT) * _ALIGNMENT

    def close(self) -> None:
        """Unmap."""
        self.memory = self.memory[:0].copy()
        try:
            self._mapping.close()
        except BufferError:
            pass  # somebody still holds a view: the mapping goes with the last one


def _bytes(layout: StreamLayout, rows: int, steps: int, *, indexed: bool) -> int:
    """Bytes of a block's parts: slots, windows' slots, times, parameters, steps, checksums and records."""
    windows = rows * layout.window
    indices = 8 * (steps + windows) if indexed else 0
    numbers = 2 * windows + rows * len(layout.parameters) + steps * math.prod(layout.step_shape)
    return indices + 4 * numbers + rows * batch_dtype(layout.window, len(layout.parameters)).itemsize
