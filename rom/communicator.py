"""The few collective operations that rom/ needs: on one process, over MPI, or over threads of one process.

Algorithms of this folder call `communicator(comm)` once on what their caller passed: None is serial, an mpi4py
communicator is MPI, a `Communicator` passes through. Only buffers travel, never pickled objects.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI


class Communicator(ABC):
    """A group of ranks; all methods are collective over it, except `exchange`, which is among neighbours."""

    rank: int
    size: int

    @abstractmethod
    def sum(self, values: np.ndarray | float) -> np.ndarray:
        """Return the sum over all ranks of arrays of equal shape, identical on every rank. Collective."""

    @abstractmethod
    def maximum(self, value: float) -> float:
        """Return the largest of all ranks' numbers. Collective."""

    @abstractmethod
    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Return all ranks' arrays, in rank order, on every rank; lengths of the first axis may differ. Collective."""

    @abstractmethod
    def exchange(self, outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Send one float array to each neighbour and return those of equal shape that they sent here."""

    def any(self, condition: bool) -> bool:
        """Return whether the condition holds on at least one rank. Collective."""
        return bool(self.maximum(float(condition)))

    def raise_together(self, error: Exception | None, kind: type[Exception]) -> None:
        """Raise on every rank if any rank has an error: its own where it has one, else `kind` with the first's message.

        Collective.

        Raises
        ------
        Exception : as said.
        """
        if not self.any(error is not None):
            return
        said = "" if error is None else str(error) or type(error).__name__
        text = np.frombuffer(said.encode(), dtype=np.uint8)
        texts = [piece.tobytes().decode() for piece in self.gather(text)]
        if error is not None:
            raise error
        rank = next(rank for rank, message in enumerate(texts) if message)
        raise kind(f"On rank {rank}: {texts[rank]}")

    def offsets(self, length: int) -> np.ndarray:
        """Return where each rank's piece starts in the concatenation, shape (size + 1,). Collective."""
        lengths = np.concatenate(self.gather(np.array([length], dtype=np.int64)))
        return np.concatenate([[0], np.cumsum(lengths)])


class Serial(Communicator):
    """The communicator of one process alone."""

    rank = 0
    size = 1

    def sum(self, values: np.ndarray | float) -> np.ndarray:
        """Return the values themselves."""
        return np.array(values, dtype=float)

    def maximum(self, value: float) -> float:
        """Return the value itself."""
        return float(value)

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Return the values alone in a list."""
        return [np.array(values)]

    def exchange(self, outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Return nothing: there are no neighbours."""
        assert not outgoing
        return {}


class OverMpi(Communicator):
    """The same operations on an mpi4py communicator."""

    def __init__(self, comm: MPI.Comm) -> None:
        from mpi4py import MPI

        self.mpi = MPI
        self.comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()

    def sum(self, values: np.ndarray | float) -> np.ndarray:
        """Allreduce. Collective."""
        total = np.array(values, dtype=float)
        self.comm.Allreduce(self.mpi.IN_PLACE, total, op=self.mpi.SUM)
        return total

    def maximum(self, value: float) -> float:
        """Allreduce. Collective."""
        largest = np.array([value], dtype=float)
        self.comm.Allreduce(self.mpi.IN_PLACE, largest, op=self.mpi.MAX)
        return float(largest[0])

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Allgatherv along the first axis. Collective."""
        piece = np.ascontiguousarray(values)
        counts = np.empty(self.size, dtype=np.int64)
        self.comm.Allgather(np.array([len(piece)], dtype=np.int64), counts)
        row = int(np.prod(piece.shape[1:], dtype=np.int64))
        whole = np.empty((int(counts.sum()), *piece.shape[1:]), dtype=piece.dtype)
        self.comm.Allgatherv(piece, [whole, counts * row])
        return np.split(whole, np.cumsum(counts)[:-1])

    def exchange(self, outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Nonblocking sends and receives."""
        outgoing = {other: np.ascontiguousarray(buffer, dtype=float) for other, buffer in outgoing.items()}
        incoming = {other: np.empty_like(buffer) for other, buffer in outgoing.items()}
        requests = [self.comm.Irecv(buffer, source=other) for other, buffer in incoming.items()]
        requests += [self.comm.Isend(buffer, dest=other) for other, buffer in outgoing.items()]
        self.mpi.Request.Waitall(requests)
        return incoming


class OverThreads(Communicator):
    """The same operations among threads of one process: studies of many subdomains without a launcher.

    Made by `run_threads`. Every operation writes to a shared slot, waits, reads, waits.
    """

    def __init__(self, rank: int, size: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, size
        self.slots, self.barrier = slots, barrier

    def _share(self, item: Any, read: Callable[[list[Any]], Any]) -> Any:
        self.slots[self.rank] = item
        self.barrier.wait()
        result = read(self.slots)
        self.barrier.wait()
        return result

    def sum(self, values: np.ndarray | float) -> np.ndarray:
        """Sum in rank order. Collective."""
        return self._share(np.array(values, dtype=float), lambda slots: np.sum(slots, axis=0))

    def maximum(self, value: float) -> float:
        """Return the largest number. Collective."""
        return self._share(float(value), max)

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Copy every rank's array. Collective."""
        return self._share(np.array(values), lambda slots: [piece.copy() for piece in slots])

    def exchange(self, outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Copy what the neighbours put down; here collective over all threads."""
        return self._share(outgoing, lambda slots: {other: np.array(slots[other][self.rank]) for other in outgoing})


class Counting(Communicator):
    """Another communicator, with the bytes that this rank hands over counted by operation.

    Attributes
    ----------
    bytes : operation -> bytes; "exchange" counts what goes to each neighbour.
    calls : operation -> number of calls.
    """

    def __init__(self, inner: Communicator) -> None:
        self.inner = inner
        self.rank, self.size = inner.rank, inner.size
        self.bytes = dict.fromkeys(("sum", "maximum", "gather", "exchange"), 0)
        self.calls = dict.fromkeys(self.bytes, 0)

    def _count(self, operation: str, size: int) -> None:
        self.bytes[operation] += size
        self.calls[operation] += 1

    def sum(self, values: np.ndarray | float) -> np.ndarray:
        """Count and sum. Collective."""
        self._count("sum", np.asarray(values, dtype=float).nbytes)
        return self.inner.sum(values)

    def maximum(self, value: float) -> float:
        """Count and return the largest number. Collective."""
        self._count("maximum", 8)
        return self.inner.maximum(value)

    def gather(self, values: np.ndarray) -> list[np.ndarray]:
        """Count and gather. Collective."""
        self._count("gather", np.asarray(values).nbytes)
        return self.inner.gather(values)

    def exchange(self, outgoing: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Count and exchange."""
        self._count("exchange", sum(np.asarray(a, dtype=float).nbytes for a in outgoing.values()))
        return self.inner.exchange(outgoing)


def run_threads(size: int, work: Callable[[Communicator], Any]) -> list[Any]:
    """Call work(communicator) on `size` threads and return the results in rank order.

    Raises
    ------
    Exception : the first exception that any rank raised; the other ranks are released.
    """
    slots: list[Any] = [None] * size
    barrier = threading.Barrier(size)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def body(rank: int) -> None:
        try:
            results[rank] = work(OverThreads(rank, size, slots, barrier))
        except threading.BrokenBarrierError:
            return  # another rank failed and its exception is the one that matters
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def communicator(comm: MPI.Comm | Communicator | None = None) -> Communicator:
    """Return the operations on a caller's comm: None is serial, an mpi4py communicator is MPI.

    Raises
    ------
    TypeError : anything else.
    """
    if comm is None:
        return Serial()
    if isinstance(comm, Communicator):
        return comm
    if hasattr(comm, "Allreduce"):
        return OverMpi(comm)
    raise TypeError(f"comm is {comm!r}; pass None, an mpi4py communicator such as MPI.COMM_WORLD, or a Communicator.")
