"""Where a running solver puts its snapshots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

    from .case import Case
    from .parameters import Parameters


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The state at one recorded time, on the block of the grid that this rank owns.

    step : index k of the snapshot; its time is k·duration / num_snapshots, k = 0 is the initial state.
    time : that time.
    values : (fields, *block) float64, owned cells only, no ghost layers; valid until the call returns.
    where : the block's place in the global grid, one slice per axis.
    """

    step: int
    time: float
    values: np.ndarray
    where: tuple[slice, ...]


class Sink(ABC):
    """Receives the snapshots of one simulation; every call is collective over the solver's communicator.

    The order of calls is open, write for k = 0, 1, ..., then close exactly once, also after a failure.
    """

    @abstractmethod
    def open(self, case: Case, parameters: Parameters, comm: MPI.Comm | None) -> None:
        """Get ready for one simulation. Collective."""

    @abstractmethod
    def write(self, snapshot: Snapshot) -> bool:
        """Take one snapshot; return False, on every rank alike, where the solver should stop early. Collective."""

    @abstractmethod
    def close(self, *, failure: str | None = None) -> None:
        """End the simulation; failure says why it did not reach its duration. Collective."""


class MemorySink(Sink):
    """Keeps this rank's blocks in memory: `times` (snapshots,) and `values` (snapshots, fields, *block)."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._values: list[np.ndarray] = []
        self.where: tuple[slice, ...] = ()
        self.failure: str | None = None

    @property
    def times(self) -> np.ndarray:
        """Times of the snapshots so far, shape (snapshots,)."""
        return np.array(self._times)

    @property
    def values(self) -> np.ndarray:
        """This rank's blocks so far, shape (snapshots, fields, *block)."""
        return np.stack(self._values)

    def open(self, case: Case, parameters: Parameters, comm: MPI.Comm | None) -> None:
        """Forget what an earlier simulation left."""
        self._times, self._values, self.failure = [], [], None

    def write(self, snapshot: Snapshot) -> bool:
        """Keep a copy of the block."""
        self._times.append(snapshot.time)
        self._values.append(snapshot.values.copy())
        self.where = snapshot.where
        return True

    def close(self, *, failure: str | None = None) -> None:
        """Keep the reason of a failure."""
        self.failure = failure
