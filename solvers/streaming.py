"""Someone else's MPI program as the solver of a case: it streams to its study itself, from all of its ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .case import Case
from .external import ProgramError, filled
from .parameters import Parameters
from .sink import Snapshot

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True, kw_only=True)
class StreamingProgram:
    """Solves a case by a program that speaks the client library; `Case(solver=StreamingProgram(...))`.

    A study starts the program, which asks it for parameters and streams each rank's own block (docs/clients.md). It may
    take one simulation and end, or ask for one after another; a study starts it again while there are any left.

    Parameters
    ----------
    equation : what the program solves, for people.
    command : words of the command line that starts all ranks under the program's own MPI, e.g. ("mpirun", "-n",
        "{ranks}", "./heat", "{nx}"): {ranks} stands for the study's ranks, {nx}, {ny}, {nz} for points along an axis,
        {num_snapshots} and {duration} for those of the case, {python} for this interpreter. No shell is involved.
        Parameters come through the stream, not here.
    """

    equation: str
    command: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.command, str) or not self.command:
            raise ValueError(f"command {self.command!r} must be words: ('mpirun', '-n', '{{ranks}}', './heat').")
        # `equation` is shown where the docstring of a right-hand side would be.
        object.__setattr__(self, "__doc__", self.equation)

    def words(self, case: Case, ranks: int) -> list[str]:
        """Return the command line for a number of ranks.

        Raises
        ------
        ValueError : as `filled`.
        """
        known: dict[str, Any] = {
            "python": sys.executable, "ranks": ranks, "duration": case.duration, "num_snapshots": case.num_snapshots,
            **dict(zip(("nx", "ny", "nz"), case.grid.shape, strict=False)),
        }  # fmt: skip
        return filled(self.command, known, case)

    def __call__(
        self, case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
    ) -> Iterator[Snapshot]:
        """Raise: outside a study nobody gives the program its parameters.

        Raises
        ------
        ProgramError : always; says how the case is run.
        """
        raise ProgramError(
            f"Case {case.name} is solved by {self.command[0]}, which streams to a study: use headrace train or headrace"
            " certify, or start the program yourself with HEADRACE_OUTPUT=FOLDER and then headrace convert FOLDER."
        )
