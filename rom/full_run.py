"""A run of the full model, from whichever source: the embedded solver, CalculiX, or somebody's result files.

The sources look alike from here on: increments on this rank's subdomain, with stress and internal variables. Where only
displacements are known, these are replayed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from .calculix_deck import write_deck
from .calculix_reader import CalculixReader
from .calculix_solver import DECK, CalculixSolver
from .campaign import finished_seconds, run_campaign
from .communicator import Communicator
from .mesh import Mesh
from .meshio_reader import MeshioReader, read_mesh
from .problem import Problem
from .reader import Reader
from .replay import Replay
from .solver import Increment, Solver
from .store import Store, stem_of

EMBEDDED, CALCULIX = "embedded", "calculix"


def open_reader(path: str, ranks: Communicator, *, displacement: str = "displacement") -> Reader:
    """Return the reader of a path: a CalculiX deck (.inp), a store of ours, or what `MeshioReader` reads.

    displacement : what the last call the displacement.

    Raises
    ------
    ValueError, RuntimeError, OSError : what the reader says of the files.
    """
    if Path(path).suffix.lower() == ".inp":
        return CalculixReader(path)
    stem = stem_of(path)
    if stem.with_name(stem.name + ".json").is_file():
        return Store(path, ranks)
    return MeshioReader(path, displacement=displacement)


def mesh_of(path: str) -> Mesh:
    """Return the whole mesh of a file, of a series of files, or of a store.

    Raises
    ------
    ValueError, RuntimeError, OSError : what the reader says of the files.
    """
    stem = stem_of(path)
    if stem.with_name(stem.name + ".json").is_file():
        with Store(path) as store:
            return store.mesh
    series = "*" in path or Path(path).suffix.lower() in (".pvd", ".xdmf", ".xmf")
    return MeshioReader(path).mesh if series else read_mesh(path)


def run_decks(problems: Mapping[str, tuple[Problem, np.ndarray]], ranks: Communicator, *, at_once: int = 1) -> None:
    """Run CalculiX on problems and their times, by folder, so that `CalculixSolver` finds them done. Collective.

    Raises
    ------
    RuntimeError : a run failed, in CalculiX's own words; DeckError : see `write_deck`.
    """
    error: Exception | None = None
    if ranks.rank == 0:
        try:
            decks = {folder: write_deck(Path(folder) / DECK, *what) for folder, what in problems.items()}
            failed = [r.error for r in run_campaign(decks, at_once=at_once).values() if r.error]
            error = RuntimeError(failed[0]) if failed else None
        except (ValueError, OSError) as caught:
            error = caught
    ranks.raise_together(error, RuntimeError)


class FullRun:
    """The increments of a problem, the start left out; iterate once. Collective.

    Parameters
    ----------
    problem : with the mesh, laws, loads and supports.
    times : of the increments, the start included; result files have their own.
    source : "embedded"; "calculix", which runs ccx on a deck of the problem; or a path that `open_reader` reads.
    ranks : the communicator.
    scratch : folder of CalculiX's deck and results.
    displacement : see `open_reader`.

    Attributes
    ----------
    local : the problem on this rank's subdomain.
    start : the time before the first increment, at which the body is virgin.
    seconds, cores : what the full model took so far; seconds are None where result files do not say.
    replay_seconds : what reading and replaying took.
    checks : worst figures of the replay's checks, once finished.

    Raises
    ------
    ValueError, RuntimeError, OSError : what the source refuses; on every rank.
    """

    def __init__(
        self, problem: Problem, times: np.ndarray, source: str, ranks: Communicator, *, scratch: Path,
        displacement: str = "displacement",
    ) -> None:  # fmt: skip
        self.ranks, self.cores, self.seconds, self.checks = ranks, ranks.size, None, {}
        self._replay: Replay | None = None
        self._calculix: CalculixSolver | None = None
        begin = time.perf_counter()
        if source == EMBEDDED:
            solver = Solver(problem, ranks)
            self.local, self._increments = solver.local, solver.run(times)
            self.start = float(times[0])
            self.replay_seconds, self.seconds = 0.0, ranks.maximum(time.perf_counter() - begin)
            return
        if source == CALCULIX:
            self._calculix = CalculixSolver(problem, scratch, ranks)
            self.local, self._increments = self._calculix.local, self._calculix.run(times)
            self.start, self.cores = float(times[0]), 1
            self.replay_seconds = ranks.maximum(time.perf_counter() - begin)
            return
        error, reader = None, None
        try:
            reader = open_reader(source, ranks, displacement=displacement)
        except (ValueError, RuntimeError, OSError) as caught:
            error = caught
        ranks.raise_together(error, ValueError)
        if isinstance(reader, CalculixReader):
            self.seconds, self.cores = finished_seconds(source), 1
        self._replay = Replay(reader, problem, ranks)
        self.local, self.start = self._replay.local, float(reader.times[0])
        self._increments = (increment for k, increment in enumerate(self._replay.run()) if k)
        self.replay_seconds = ranks.maximum(time.perf_counter() - begin)

    def __iter__(self) -> Iterator[Increment]:
        """Yield the increments; time that passes at the consumer does not count."""
        while True:
            begin = time.perf_counter()
            increment = next(self._increments, None)
            took = self.ranks.maximum(time.perf_counter() - begin)
            if self._calculix is not None and self.seconds is None:
                self.seconds = self._calculix.seconds
                took = max(took - self.seconds, 0.0)  # the first call runs it, unless it had run before
            if self._calculix is None and self._replay is None:
                self.seconds += took
            else:
                self.replay_seconds += took
            if increment is None:
                break
            yield increment
        report = self._calculix.report if self._calculix else self._replay.report if self._replay else None
        self.checks = report.worst() if report else {}
