"""Moves a field from one decomposition of a grid to another over the same ranks."""

from __future__ import annotations

import numpy as np

from .blocks import Blocks


class Redistribution:
    """Every rank sends each other the part of its block that the other owns in the new decomposition.

    old, new : decompositions of one grid over one communicator.
    """

    def __init__(self, old: Blocks, new: Blocks) -> None:
        self._comm, self._shape = old.comm, new.shape
        self._trivial = old.dims == new.dims
        ranks = range(old.size)
        self._sent = [_overlap(old.where, new.place(rank)) for rank in ranks]
        self._received = [_overlap(new.where, old.place(rank)) for rank in ranks]

    def __call__(self, fields: np.ndarray) -> np.ndarray:
        """Return (*lead, *new block) from (*lead, *old block). Collective."""
        if self._trivial:
            return fields
        lead = fields.shape[: -len(self._shape)]
        result = np.empty((*lead, *self._shape), dtype=fields.dtype)
        parts = [fields[(..., *index)] for index in self._sent]
        targets = [result[(..., *index)] for index in self._received]
        out = np.concatenate([part.ravel() for part in parts])
        into = np.empty(result.size, dtype=fields.dtype)
        self._comm.Alltoallv([out, [part.size for part in parts]], [into, [target.size for target in targets]])
        start = 0
        for target in targets:
            target[...] = into[start : start + target.size].reshape(target.shape)
            start += target.size
        return result


def _overlap(mine: tuple[slice, ...], other: tuple[slice, ...]) -> tuple[slice, ...]:
    """Return the part of `mine` that lies in `other`, counted from the start of `mine`; empty where none does."""
    index = []
    for a, b in zip(mine, other, strict=True):
        start = max(a.start, b.start)
        index.append(slice(start - a.start, max(min(a.stop, b.stop), start) - a.start))
    return tuple(index)
