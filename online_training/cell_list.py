"""Which cells of the grid a rank owns, where it names them by number instead of by a box."""

from __future__ import annotations

import numpy as np

from .client import DTYPE_CODES, Header, WireError


class CellList:
    """The cells of one rank as they arrive, part by part; complete when the last part is there.

    number : distinguishes the lists of one rank.
    size : cells in the list.
    total : cells of the grid.

    Raises
    ------
    WireError : "cells", for more cells than the grid has; no memory is taken then.
    """

    def __init__(self, number: int, size: int, total: int) -> None:
        if not 0 < size <= total:
            raise WireError("cells")
        self.number, self._total, self._arrived = number, total, 0
        self._cells = np.empty(size, "<i8")

    @property
    def shape(self) -> tuple[int]:
        """(cells,)."""
        return self._cells.shape

    @property
    def complete(self) -> bool:
        """Whether all parts have arrived."""
        return self._arrived == len(self._cells)

    def add(self, header: Header, payload: bytes) -> None:
        """Take the next part.

        Raises
        ------
        WireError : "cells", where it is not the next one, or names a cell that does not exist or was named before.
        """
        count = len(payload) // 8
        placed = header.global_shape == self.shape and header.offset == (self._arrived,)
        if header.dtype != DTYPE_CODES["int64"] or not placed or header.block_shape != (count,) or len(payload) % 8:
            raise WireError("cells")
        if not 0 < count <= len(self._cells) - self._arrived:
            raise WireError("cells")
        self._cells[self._arrived : self._arrived + count] = np.frombuffer(payload, "<i8")
        self._arrived += count
        if self.complete:
            seen = np.zeros(self._total, bool)
            if self._cells.min() < 0 or self._cells.max() >= self._total:
                raise WireError("cells")
            seen[self._cells] = True
            if np.count_nonzero(seen) < len(self._cells):
                raise WireError("cells")

    def part(self, first: int, count: int) -> np.ndarray:
        """Return the numbers of `count` cells from place `first` of the list on."""
        return self._cells[first : first + count]
