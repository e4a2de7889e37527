"""A sink that sends the snapshots of a running solver to its study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.solvers.sink import Sink, Snapshot

from .client import STOP, Stream

if TYPE_CHECKING:
    from mpi4py import MPI

    from headrace.solvers.case import Case
    from headrace.solvers.parameters import Parameters


class StreamSink(Sink):
    """Sends every rank's own block, and stops the solver when the study says so.

    stream : of one simulation, not ended; leaving its `with` block ends it, as failed where an exception passes.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def open(self, case: Case, parameters: Parameters, comm: MPI.Comm | None) -> None:
        """Do nothing: fields and steps were declared when the job connected."""

    def write(self, snapshot: Snapshot) -> bool:
        """Send the block, waiting while the study has no room; False after the word stop. Collective."""
        word = self._stream.send(
            step=snapshot.step, time=snapshot.time, values=snapshot.values, where=snapshot.where
        )
        return word != STOP

    def close(self, *, failure: str | None = None) -> None:
        """End the simulation; a failure travels with its reason. Collective."""
        self._stream.end(failure=failure)
