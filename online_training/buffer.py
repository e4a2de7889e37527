"""The contract of a training buffer: which window starts may be drawn, and which steps may be forgotten."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class StreamEnded(Exception):
    """Nothing is left to draw and nothing more will come."""


@dataclass(frozen=True)
class Window:
    """One draw: `window` consecutive steps of a simulation that lie in the slots named.

    ticket : names this draw until it is released.
    first : no earlier draw of this window start was released.
    """

    ticket: int
    simulation: int
    attempt: int
    start: int
    slots: tuple[int, ...]
    first: bool


class Buffer(ABC):
    """Keeps track of slots, steps and window starts; holds no data and no sockets itself.

    The unit of sampling, of "seen" and of eviction is the window start: of a simulation with steps
    0..n-1 the valid starts are 0..n-window. A slot is freed when no live start needs its step.
    """

    @abstractmethod
    def reserve(self, simulation: int) -> int | None:
        """Return a slot for the simulation's next step, evicting seen starts if need be; None where it must wait."""

    @abstractmethod
    def put(self, simulation: int, attempt: int, step: int, slot: int) -> None:
        """The step is complete in its slot; starts that it completes become available."""

    @abstractmethod
    def cancel(self, slot: int) -> None:
        """A reserved slot will not be filled."""

    @abstractmethod
    def end(self, simulation: int) -> None:
        """No more steps of this simulation will come; starts that can never complete are dropped."""

    @abstractmethod
    def sample(self, count: int) -> list[Window] | None:
        """Draw windows uniformly; None where the trainer must wait.

        Raises
        ------
        StreamEnded : the buffer is closed and drained.
        """

    @abstractmethod
    def release(self, tickets: list[int], *, used: bool = True) -> None:
        """The draws were used, or (used=False) given back unseen."""

    @abstractmethod
    def close(self) -> None:
        """No simulation will come any more: lift the watermark and drain."""
