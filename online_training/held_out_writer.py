"""Writes finished held-out simulations to their files, beside the intake's loop."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

WriteHeldOut = Callable[[int, Mapping[str, float], np.ndarray, np.ndarray], None]
"""write(simulation, parameters, times (steps,), states (steps, fields, *grid))."""


@dataclass(frozen=True, kw_only=True)
class HeldOutResult:
    """A held-out simulation that was written, or the reason why it could not be."""

    simulation: int
    error: str | None


class HeldOutWriter:
    """One thread with a short queue: memory stays bounded, and a slow disk never delays the stream.

    written : called in the thread with each `HeldOutResult`.
    """

    def __init__(self, write: WriteHeldOut, written: Callable[[HeldOutResult], None]) -> None:
        self._write, self._written = write, written
        self._queue: queue.Queue[tuple | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="headrace-held-out", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Simulations that are not yet being written."""
        return self._queue.qsize()

    def put(self, simulation: int, parameters: Mapping[str, float], times: np.ndarray, states: np.ndarray) -> None:
        """Hand over one finished simulation; the arrays must not change any more."""
        self._queue.put((simulation, parameters, times, states))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            error = None
            try:
                self._write(*item)
            except Exception as problem:
                error = f"it could not be written: {problem}"
            self._written(HeldOutResult(simulation=item[0], error=error))

    def close(self) -> None:
        """Write what is waiting, then end the thread."""
        self._queue.put(None)
        self._thread.join()
