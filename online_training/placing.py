"""Large blocks are put in their place by two threads: the one that serves, and a helper for what it has not come to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np

Found = tuple[int, bool]
"""Checksum of what lies in a block's place, and whether all of it is finite."""


class Placement:
    """A block's way into its place, taken once, by whichever thread comes first.

    work : puts it there.
    """

    __slots__ = ("_begun", "_error", "_found", "_unfinished", "_work")

    def __init__(self, work: Callable[[], Found]) -> None:
        self._work: Callable[[], Found] | None = work
        self._begun, self._unfinished = threading.Lock(), threading.Lock()
        self._unfinished.acquire()
        self._found: Found = 0, False
        self._error: Exception | None = None

    def run(self) -> bool:
        """Put the block in its place, unless that was begun; say so."""
        if not self._begun.acquire(blocking=False):
            return False
        try:
            self._found = self._work()
        except Exception as error:
            self._error = error
        self._work = None  # the message's memory is free
        self._unfinished.release()
        return True

    @property
    def done(self) -> bool:
        """Whether the block is in its place."""
        return not self._unfinished.locked()

    def wait(self) -> None:
        """Return when the block is in its place; put it there where nobody has begun."""
        self.run()
        with self._unfinished:
            pass

    def result(self) -> Found:
        """Wait, and return what was found."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._found


class Helper:
    """A thread that puts blocks in their place; it starts with the first one."""

    def __init__(self) -> None:
        self._offered: SimpleQueue[Placement | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def offer(self, placement: Placement) -> None:
        """Let the helper do it if it comes to it first."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="headrace-helper", daemon=True)
            self._thread.start()
        self._offered.put(placement)

    def _work(self) -> None:
        np.seterr(over="ignore")  # of this thread, as in the one that serves
        while (placement := self._offered.get()) is not None:
            placement.run()

    def close(self) -> None:
        """End the thread once it has done what it was offered."""
        if self._thread is not None:
            self._offered.put(None)
            self._thread.join()
            self._thread = None
