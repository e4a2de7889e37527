"""A trainer worker's side of the stream: the batches that a supply has gathered, one after the other."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .client import Word
from .draws import MAX_PENDING
from .supply import RELEASE_SECONDS, Pace, Supply, gather

if TYPE_CHECKING:
    from .device_blocks import OnDevice


@dataclass(frozen=True, kw_only=True)
class Draw:
    """This worker's slice of one batch, in memory that the reservoir does not share, but batches that came with it do.

    states : (batch, window, fields, *grid), float32; None where they lie on a device only.
    times : (batch, window), float64.
    parameters : (batch, number of parameters), float64, in the order of the study's names.
    table : (batch,) records with ticket, simulation, attempt, start and first (1: never used before).
    checksums : (batch, window), XXH3 of each step of the windows that were never used before; of others it or 0.
    on_device : states, times and parameters on a device, where the feed has sent them there.
    """

    states: np.ndarray | None
    times: np.ndarray
    parameters: np.ndarray
    table: np.ndarray
    checksums: np.ndarray
    on_device: OnDevice | None = None


class DrawSource(ABC):
    """A worker's batches of windows, one after the other. Not thread-safe."""

    starved_seconds = 0.0
    """Time that `next` has waited for a batch."""

    def __init__(self) -> None:
        self.before_telling: Callable[[], None] = lambda: None
        """Called before the intake, which may forget them then, is told of batches that were used."""

    @abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Wait until the normaliser is frozen; return {"count", "mean", "std"}, lists in the order of the fields.

        Raises
        ------
        ConnectionError : the intake is gone.
        """

    def begin_at(self, batch: int) -> None:  # noqa: B027
        """Do nothing: after a restart the intake goes on with what was not used, whatever the batch's number."""

    @abstractmethod
    def next(self) -> Draw | None:
        """Return this worker's slice of the next batch; None where the stream has ended.

        Raises
        ------
        ConnectionError : the intake is gone, or who fetches from it.
        """

    @abstractmethod
    def release(self, draw: Draw) -> None:
        """Say that a draw was used, so that its windows may be replaced."""

    @abstractmethod
    def steer(self, simulation: int, word: Word, reason: str) -> None:
        """Let the intake say a word to a running simulation, with the acknowledgement of its next step."""

    @abstractmethod
    def close(self) -> None:
        """Leave the intake and give memory back; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Feed(DrawSource):
    """Batches of windows from the intake, in the same order and number for all workers. Not thread-safe.

    While the trainer works on one batch, the next ones are asked for and, as soon as the intake has answered, gathered
    by a thread of its own; the trainer itself never waits for a solver unless no batch is there. The worker holds no
    more than prefetch + 1 batches. A trainer on a GPU has a process of its own for this (feeder_process.py).

    The trainer starts again after the loss of its intake, as a new generation, from its checkpoint; its HELLO then
    waits as long as the lease.

    address : ZeroMQ addresses of the intake separated by commas, best first.
    token : the run's 256 bits.
    study : identity of the study.
    rank, num_ranks : which of the trainer's workers this is.
    generation : grows with each start of the trainer; the intake takes back what older ones left unused.
    batch_size : windows of one batch over all workers.
    prefetch : batches ahead; None: as many as are wanted in 10 ms (`Supply`).

    Raises
    ------
    ConnectionError : no intake answers within the lease.
    RuntimeError : the intake refuses this worker, e.g. because a younger generation works already.
    """

    def __init__(
        self, address: str, token: bytes, study: int, *, rank: int = 0, num_ranks: int = 1, generation: int = 0,
        batch_size: int, prefetch: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require_batch(batch_size, num_ranks, prefetch)
        self._supply = Supply(
            self._take, address, token, study, rank=rank, num_ranks=num_ranks, generation=generation,
            batch_size=batch_size, prefetch=prefetch,
        )  # fmt: skip
        self._supply.before_telling = lambda: self.before_telling()
        self._gatherer = ThreadPoolExecutor(1, thread_name_prefix="headrace-gather")
        self._gathered: dict[int, Future[list[Draw]]] = {}  # what comes together, by the first of its batches
        self._pace = Pace()
        self._ready: deque[Draw] = deque()
        self._next = 0

    def statistics(self) -> dict[str, Any]:
        """Wait for them, and return them."""
        supply = self._supply
        if supply.statistics is None:
            supply.ask_statistics()
        while supply.statistics is None:
            supply.receive(1.0)
        return supply.statistics

    def next(self) -> Draw | None:
        """Return the next batch."""
        began, supply = time.monotonic(), self._supply
        seconds = self._pace.tick(began)
        supply.want(self._next, self._pace.seconds)
        if seconds > RELEASE_SECONDS:
            supply.receive(0.0)  # which finds out, too, whether the intake is still there
        supply.take_all()
        while not self._ready and self._next not in self._gathered and not self._ended:
            # What is waited for may need the room, or the uses, of what was used.
            supply.send_released()
            supply.receive(1.0)
        if not self._ready and not self._ended:
            self._ready.extend(self._gathered.pop(self._next).result())
        draw = self._ready.popleft() if self._ready else None
        if draw is None:
            supply.send_released()
        self.starved_seconds += time.monotonic() - began
        self._next += draw is not None
        return draw

    def release(self, draw: Draw) -> None:
        """Say that a draw was used."""
        self._supply.release(draw.table["ticket"])

    def steer(self, simulation: int, word: Word, reason: str) -> None:
        """Let the intake say a word to a simulation."""
        self._supply.steer(simulation, word, reason)

    def close(self) -> None:
        """Leave the intake and unmap the reservoir."""
        self._gatherer.shutdown(cancel_futures=True)
        self._supply.close()

    @property
    def _ended(self) -> bool:
        return self._supply.end is not None and self._next >= self._supply.end

    def _take(self, index: int, *content: Any) -> None:
        self._gathered[index] = self._gatherer.submit(self._gather, *content)

    def _gather(self, table: np.ndarray, count: int, steps: np.ndarray, where: np.ndarray) -> list[Draw]:
        states = np.empty((len(table), where.shape[1], *steps.shape[1:]), np.float32)
        checksums = np.zeros(where.shape, np.uint32)
        gather(table, steps, where, states, checksums)
        return cut(table, states, checksums, count)


def cut(
    table: np.ndarray, states: np.ndarray | None, checksums: np.ndarray, count: int,
    on_device: list[OnDevice | None] | None = None,
) -> list[Draw]:  # fmt: skip
    """Return the draws of `count` batches of one length, whose records lie one behind the other."""
    times, parameters = table["times"], table["parameters"]
    if on_device is None:
        # A single record's column counts as contiguous, but its strides are those of the packed record.
        times, parameters = times.copy(), parameters.copy()
    size = len(table) // count
    rows = [slice(size * number, size * (number + 1)) for number in range(count)]
    return [
        Draw(
            states=None if states is None else states[one], times=times[one], parameters=parameters[one],
            table=table[one], checksums=checksums[one], on_device=there,
        )
        for one, there in zip(rows, on_device or [None] * count, strict=True)
    ]  # fmt: skip


def require_batch(batch_size: int, num_ranks: int, prefetch: int | None) -> None:
    """Raise ValueError where a batch cannot be dealt to the workers, or prefetch is no number of batches."""
    if batch_size < num_ranks:
        raise ValueError(f"A batch of {batch_size} windows cannot be dealt to {num_ranks} workers; enlarge it.")
    if prefetch is not None and prefetch < 0:
        raise ValueError(f"prefetch is a number of batches, 0 or more; got {prefetch}.")
    if prefetch is not None and prefetch >= MAX_PENDING:
        raise ValueError(f"prefetch {prefetch} is more than an intake draws ahead, {MAX_PENDING - 1} batches.")
