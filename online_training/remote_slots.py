"""Steps of a reservoir on another node: asked for from the intake piece by piece, and put together for a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .client import MAX_BLOCK, Header, Kind, Link, WireError, checksum_of
from .layout import StreamLayout

PIECES = np.dtype([("slot", "<u4"), ("length", "<u4"), ("offset", "<u8")])
"""One piece of a slot, as FETCH asks for it: its number, and which bytes of it."""

MAX_PIECES = 4096
_ON_THE_WAY = 256 * 2**20
_ANSWERS_ON_THE_WAY = 256  # ZeroMQ drops what a peer leaves lying beyond its queue of 1,000


@dataclass
class _Batch:
    """Steps on their way; missing: bytes of them that are not here yet."""

    index: int
    steps: np.ndarray
    where: np.ndarray
    missing: int


@dataclass
class _Request:
    """One FETCH: its pieces, and the bytes of the batch's steps that they become."""

    batch: _Batch
    pieces: np.ndarray
    first: int
    length: int


class RemoteSlots:
    """Fetches the steps of batches in the order in which they are asked for; never waits. Not thread-safe.

    The intake holds a drawn window's slots until its ticket is released, so that nothing changes under way.
    """

    def __init__(self, link: Link, layout: StreamLayout) -> None:
        self._link, self._layout = link, layout
        self._waiting: deque[_Request] = deque()
        self._asked: dict[int, _Request] = {}
        self._number = self._bytes = 0

    def fetch(self, index: int, slots: np.ndarray) -> None:
        """Ask for the slots of a batch, of any shape; each is fetched once."""
        different, where = np.unique(slots, return_inverse=True)
        steps = np.empty((len(different), *self._layout.step_shape), self._layout.dtype)
        batch = _Batch(index, steps, where.reshape(slots.shape), steps.nbytes)
        first = 0
        for pieces in cut(different, self._layout.step_bytes):
            length = int(pieces["length"].sum())
            self._waiting.append(_Request(batch, pieces, first, length))
            first += length
        self._ask()

    def take(self, header: Header, payload: bytes) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Take a CONTENT; return (index, steps, which step each slot is) of the batch that it completes.

        Raises
        ------
        WireError : it is not what was asked for, or was damaged on its way.
        """
        request = self._asked.pop(header.value, None)
        if request is None or len(payload) != request.length:
            raise WireError("length")
        if checksum_of(payload, "xxh3") != header.checksum:
            raise WireError("checksum")
        batch = request.batch
        flat = batch.steps.reshape(-1).view(np.uint8)
        flat[request.first : request.first + request.length] = np.frombuffer(payload, np.uint8)
        batch.missing -= request.length
        self._bytes -= request.length
        self._ask()
        return None if batch.missing else (batch.index, batch.steps, batch.where)

    def _ask(self) -> None:
        while self._waiting and self._bytes < _ON_THE_WAY and len(self._asked) < _ANSWERS_ON_THE_WAY:
            request = self._waiting.popleft()
            self._number += 1
            self._asked[self._number] = request
            self._bytes += request.length
            self._link.send(Kind.FETCH, request.pieces.tobytes(), value=self._number)


def cut(slots: np.ndarray, step_bytes: int) -> Iterator[np.ndarray]:
    """Cut steps into tables of pieces of at most 4 MiB together."""
    together = max(1, min(MAX_BLOCK // step_bytes, MAX_PIECES))
    for first in range(0, len(slots), together):
        some = slots[first : first + together]
        for offset in range(0, step_bytes, MAX_BLOCK):
            pieces = np.zeros(len(some), PIECES)
            pieces["slot"], pieces["offset"] = some, offset
            pieces["length"] = min(MAX_BLOCK, step_bytes - offset)
            yield pieces


def read_pieces(payload: bytes, memory: np.ndarray) -> list[np.ndarray]:
    """Return the bytes, of a reservoir (num_slots, fields, *grid), that the table of a FETCH asks for; no copies.

    Raises
    ------
    WireError : no such table, a piece that no slot has, or more than one message may carry.
    """
    if not payload or len(payload) % PIECES.itemsize or len(payload) > MAX_PIECES * PIECES.itemsize:
        raise WireError("length")
    table = np.frombuffer(payload, PIECES)
    slot_bytes = memory[:1].nbytes
    ends = table["offset"] + table["length"]  # no overflow: the offset is compared first
    if (table["slot"] >= len(memory)).any() or (table["offset"] > slot_bytes).any() or (ends > slot_bytes).any():
        raise WireError("fetch")
    if not 0 < int(table["length"].sum(dtype=np.uint64)) <= MAX_BLOCK:
        raise WireError("fetch")
    return [
        memory[slot].reshape(-1).view(np.uint8)[offset : offset + length] for slot, length, offset in table.tolist()
    ]
