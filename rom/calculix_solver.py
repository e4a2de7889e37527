"""CalculiX in the place of the embedded solver: the same increments, replayed from the displacements that it prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .calculix_deck import counterpart, write_deck
from .calculix_reader import CalculixReader
from .campaign import run_campaign
from .communicator import Communicator
from .loads import temperature_at
from .problem import LocalProblem, Problem
from .replay import Replay, ReplayReport
from .solver import Increment, Solver
from .subdomain import distribute

if TYPE_CHECKING:
    from mpi4py import MPI


DECK = "calculix.inp"
"""The name of the deck in its folder."""


class CalculixSolver:
    """Solves a problem by CalculiX in a folder; rank 0 runs it, and every rank replays its share of the mesh.

    Attributes
    ----------
    local : the problem on this rank's subdomain, as the embedded solver has it.
    deck : of the run; a run that finished before with the same deck is not repeated.
    seconds : wall time of CalculiX in the last run, with one thread.
    report : what the replay of the last run found.
    """

    def __init__(
        self,
        problem: Problem,
        folder: str | Path,
        comm: MPI.Comm | Communicator | None = None,
        *,
        large_strain: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Prepare a run; large_strain as in `write_deck`, timeout in seconds. Collective."""
        self.problem, self.large_strain, self.timeout = problem, large_strain, timeout
        self.deck = Path(folder) / DECK
        self.subdomain = distribute(problem.mesh, comm)
        self.comm, self.local = self.subdomain.comm, LocalProblem(problem, self.subdomain)
        self.seconds, self.report = 0.0, ReplayReport()

    def run(self, times: Sequence[float]) -> Iterator[Increment]:
        """Yield the increments that lead through the given times, after CalculiX has made all of them. Collective.

        Raises
        ------
        ValueError : times that do not begin at 0, where CalculiX begins.
        RuntimeError : CalculiX failed; with its own words, on every rank.
        DeckError, ReplayError : what it cannot express, and what cannot be replayed.
        """
        if times[0] != 0:
            raise ValueError(f"CalculiX begins at time 0, but times begin at {times[0]:g}.")
        error: Exception | None = None
        if self.comm.rank == 0:
            try:
                deck = write_deck(self.deck, self.problem, times, large_strain=self.large_strain)
                result = run_campaign({"case": deck}, timeout=self.timeout)["case"]
                error, self.seconds = RuntimeError(result.error) if result.error else None, result.seconds
            except (ValueError, OSError) as caught:
                error = caught
        self.comm.raise_together(error, RuntimeError)
        self.seconds = self.comm.maximum(self.seconds)
        mesh = self.problem.mesh
        start = temperature_at(self.problem.temperature, mesh.points, np.arange(mesh.num_nodes), float(times[0]))
        reader = CalculixReader(self.deck, initial_temperature=start)
        # With large strains the difference is one of models, which more digits would not mend.
        replay = Replay(reader, self.problem, self.comm, complete=not self.large_strain)
        self.report = replay.report
        yield from islice(replay.run(), 1, None)


def chosen_solver(
    problem: Problem, arguments: Sequence[str], comm: MPI.Comm | Communicator | None = None
) -> Solver | CalculixSolver:
    """Return the embedded solver or, for the arguments --calculix FOLDER, CalculiX on the problem's counterpart.

    Raises
    ------
    ValueError : other arguments.
    """
    if not arguments:
        return Solver(problem, comm)
    if len(arguments) != 2 or arguments[0] != "--calculix":
        raise ValueError(f"Arguments are none, or --calculix FOLDER; they are {' '.join(arguments)}.")
    return CalculixSolver(counterpart(problem), arguments[1], comm)
