"""The intake's end of the rings: sealed memory through which the ranks of its own node hand over their blocks."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from typing import Any

from .client import RING_ASKED, RING_GRANTED, RING_HEAD, RING_SAID, WireError

_SEALS = ("F_ADD_SEALS", "F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")
SMALLEST = 2**20
_STEPS = 4
_SMALL_STEPS, _LARGE_ENOUGH = 64, 2**22


def ring_bytes(share: int, largest: int) -> int:
    """Return how large a ring for a rank's share of a step should be: some steps long, but bounded; 0: none."""
    if largest < SMALLEST or not hasattr(os, "memfd_create") or not all(hasattr(fcntl, name) for name in _SEALS):
        return 0
    page = mmap.PAGESIZE
    small = min(_SMALL_STEPS * share, _LARGE_ENOUGH)  # several messages of steps that travel together
    return min(max(SMALLEST, small, _STEPS * share), largest) // page * page


class Ring:
    """Memory of one session that the intake made and one rank writes.

    It has no name in any file system: the rank opens it through the intake's entry in /proc, which only the same user
    can, and it is gone with the last of the two processes, however they end. It is sealed, so that nobody can cut it
    and crash the intake. The intake believes nothing that stands in it: a rank that writes what it should not, or when
    it should not, damages its own samples only.

    size : bytes for blocks, behind a head of `RING_HEAD` bytes.

    Raises
    ------
    OSError : the kernel gives no memory or no descriptor.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.nonce = secrets.token_bytes(16)
        self._descriptor: int | None = os.memfd_create("headrace-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(self._descriptor, 0o600)
            os.ftruncate(self._descriptor, RING_HEAD + size)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, seals)
            self._mapping = mmap.mmap(self._descriptor, RING_HEAD + size)
        except OSError:
            os.close(self._descriptor)
            raise
        self._mapping[8:24] = self.nonce
        self._view = memoryview(self._mapping)

    def offer(self) -> dict[str, Any]:
        """Return what WELCOME says about the ring."""
        return {"path": f"/proc/{os.getpid()}/fd/{self._descriptor}", "bytes": self.size, "nonce": self.nonce.hex()}

    def seal(self) -> None:
        """Close the entry in /proc: the rank has opened it by now, or never will."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def content(self, position: int, length: int) -> memoryview:
        """Return what the rank wrote at a position.

        Raises
        ------
        WireError : "ring", where it does not lie within the ring.
        """
        start = position % self.size
        if not 0 < length <= self.size - start:
            raise WireError("ring")
        return self._view[RING_HEAD + start : RING_HEAD + start + length]

    def release(self, end: int) -> None:
        """Say that what lies before the position `end` is no longer needed."""
        self._mapping[:8] = end.to_bytes(8, "little")

    def say(self, said: int, granted: int) -> bool:
        """Say that the word to so many steps is continue, and that so many may be sent; return whether that will do.

        It will not where the rank waits for a message.
        """
        self._mapping[RING_SAID:RING_GRANTED] = said.to_bytes(8, "little")
        self._mapping[RING_GRANTED:RING_ASKED] = granted.to_bytes(8, "little")
        return not self._mapping[RING_ASKED]

    def close(self) -> None:
        """Unmap; a second call does nothing."""
        self.seal()
        self._view.release()
        try:
            self._mapping.close()
        except BufferError:
            pass  # a block is still being looked at: the mapping goes with it
