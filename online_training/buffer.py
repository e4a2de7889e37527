"""The contract of a training buffer: which window starts may be drawn, and which steps may be forgotten."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class StreamEnded(Exception):
    """Nothing is left to draw and nothing more will come."""


class Window(NamedTuple):
    """One draw: `window` consecutive steps of a simulation that lie in the slots named.

    ticket : names this draw until it is released.
    attempt : of the simulation, when the window became complete.
    first : the window was never used before. Of the draws of one window only one at a time is the first; when
        it is given back unused, a later draw is.
    """

    ticket: int
    simulation: int
    attempt: int
    start: int
    slots: tuple[int, ...]
    first: bool


def window_dtype(window: int) -> np.dtype:
    """Layout of one draw in a table; what a trainer is told of it begins like this (docs/wire.md)."""
    return np.dtype(
        [
            ("ticket", "<u8"), ("simulation", "<u8"), ("attempt", "<u4"), ("start", "<u4"), ("first", "u1"),
            ("slots", "<u4", (window,)),
        ]
    )  # fmt: skip


class Buffer(ABC):
    """Keeps track of slots, steps and window starts; holds no data and no sockets itself. Not thread-safe.

    The unit of sampling, of "seen" and of eviction is the window start: of a simulation with steps
    0..n-1 the valid starts are 0..n-window. A start lives until it is evicted or used up; a slot is freed when no
    living start, complete or still to come, needs its step. Drawn windows keep their slots until they are released.
    """

    shards: int = 1
    """Into how many parts the slots are divided."""

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Number of slots."""

    @property
    @abstractmethod
    def population(self) -> int:
        """Number of living starts whose window is complete."""

    @property
    @abstractmethod
    def unseen(self) -> int:
        """Of the population, how many were never used."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the watermark was reached, or never can be because the buffer is full or closed; stays true."""

    def shard_of(self, slot: int) -> int:
        """Return the shard, a contiguous part of the slots, that a slot belongs to."""
        return 0

    @abstractmethod
    def mark_used(self, simulation: int, starts: Iterable[int]) -> None:
        """These starts were used before the simulation was run again: they are not offered and need no slots.

        To be called before the simulation's first step.
        """

    @abstractmethod
    def skip(self, simulation: int, step: int) -> None:
        """This step will never come: the starts that need it are not waited for."""

    @abstractmethod
    def reserve(self, simulation: int) -> int | None:
        """Return a slot for the simulation's next step, evicting seen starts if need be; None where it must wait."""

    @abstractmethod
    def put(self, simulation: int, attempt: int, step: int, slot: int) -> None:
        """The step is complete in its slot; starts that it completes become available.

        Raises
        ------
        ValueError : the slot is not reserved, or the step is here already or comes after the simulation's end.
        """

    @abstractmethod
    def cancel(self, slot: int) -> None:
        """A reserved slot will not be filled."""

    @abstractmethod
    def end(self, simulation: int) -> None:
        """No more steps of this simulation will come; starts that can never complete are dropped."""

    @abstractmethod
    def sample(self, count: int) -> list[Window] | None:
        """Draw windows; None where the trainer must wait. Fewer than `count` only where no more can come for now.

        Raises
        ------
        StreamEnded : the buffer is closed and drained, and nothing that was drawn can come back.
        """

    def sample_many(self, counts: Sequence[int]) -> tuple[np.ndarray, list[int]] | None:
        """Draw batches of these numbers of windows, as `sample` does one after the other; as many as it likes.

        Returns
        -------
        A table of `window_dtype`, (windows,), in which the batches follow each other, and how many each of them has.
        None: the trainer must wait.

        Raises
        ------
        StreamEnded : as in `sample`.
        """
        windows = self.sample(counts[0])
        if not windows:
            return None
        table = np.empty(len(windows), window_dtype(len(windows[0].slots)))
        for name, column in zip(Window._fields, zip(*windows, strict=True), strict=True):
            table[name] = column
        return table, [len(table)]

    @abstractmethod
    def release(self, tickets: Sequence[int] | np.ndarray, *, used: bool = True) -> None:
        """The draws were used, or (used=False) given back unseen.

        Raises
        ------
        KeyError : a ticket is not out.
        """

    @abstractmethod
    def close(self) -> None:
        """No simulation will come any more: lift the watermark and drain."""
