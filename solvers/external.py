"""Someone else's executable as the solver of a case: started once per simulation, its files read while it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .blocks import Blocks
from .case import Case
from .parameters import Parameters
from .simulate import initial_state
from .sink import Snapshot

if TYPE_CHECKING:
    from mpi4py import MPI

_POLL_SECONDS = 0.01
_PLACE = re.compile(r"@\{(\w+)(?::([^{}]*))?\}")
_LAUNCHER_VARIABLES = ("PMI_", "PMIX_", "OMPI_", "MPI_LOCAL", "HYDRA_", "HYDI_")
"""A program that calls MPI must not believe that our launcher started it."""

PERMISSIONS = "OMPI_ALLOW_RUN_AS_ROOT"
"""What a user permits Open MPI's mpirun holds for the one that a program starts too."""


class ProgramError(RuntimeError):
    """The program could not be started, failed, or did not write what it should; the same on every rank."""


def read_npy(folder: Path, step: int, case: Case) -> np.ndarray:
    """Return snapshot `step` from snapshot-000000.npy, ..., (fields, *grid)."""
    return np.load(folder / f"snapshot-{step:06d}.npy", allow_pickle=False)


@dataclass(frozen=True, kw_only=True)
class ExternalProgram:
    """Solves a case by running a program; `Case(solver=ExternalProgram(...))`.

    The program starts in an empty folder that holds `input.json` (parameters, fields, grid, times) and
    `initial.npy` (fields, *grid), and writes one file per snapshot. A snapshot counts as written when the file of the
    next one exists, or the program has ended: so it need not be written atomically, and is passed on while the program
    still runs. Rank 0 runs the program; a parallel one brings its own mpirun in `command`.

    Parameters
    ----------
    equation : what the program solves, for people.
    command : words of the command line; {name} stands for a parameter, {nx}, {ny}, {nz} for points along an axis,
        {duration}, {num_snapshots} and {interval}, the time between two, for those of the case, {python} for this
        interpreter. No shell is involved.
    files : name -> text of files to write first, a parameter file or an input deck; @{name} in a text stands for what
        {name} is in command, @{name:.8e} for it in a format of Python. Nothing else in the text is touched.
    snapshot : name of the file or folder of a snapshot, with {step} where its number stands, or {time} for its time as
        C prints it (%g). A name without either is one file for all: it is read when the program has ended.
    read : function (folder, step, case) -> array (fields, *grid); readers of common formats: docs/foreign_solvers.md.
    prepare : function (folder, case, p, initial) that writes what else the program needs, e.g. its own input deck.
    timeout : seconds after which a simulation is given up; None waits for ever.
    """

    equation: str
    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)
    snapshot: str = "snapshot-{step:06d}.npy"
    read: Callable[[Path, int, Case], Any] = read_npy
    prepare: Callable[[Path, Case, Parameters, np.ndarray], None] | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.command, str) or not self.command:
            raise ValueError(f"command {self.command!r} must be a tuple of words: ('./solver', '--nu', '{{nu}}').")
        # `equation` is shown where the docstring of a right-hand side would be.
        object.__setattr__(self, "__doc__", self.equation)

    def __call__(
        self, case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
    ) -> Iterator[Snapshot]:
        """Yield the snapshots of one simulation. Collective.

        Raises
        ------
        ProgramError : with the end of what the program said; the same on every rank.
        """
        comm = comm if comm is not None and comm.size > 1 else None
        blocks = Blocks(case.grid.shape, case.periodic, comm, smallest=1)
        whole = Blocks(case.grid.shape, case.periodic, smallest=1)
        states = None
        if comm is None or comm.rank == 0:
            states = self._states(case, p, initial_state(case, p, whole, rng))
        try:
            for step, time_ in enumerate(case.times):
                values = _shared(states, comm)
                yield Snapshot(
                    step=step, time=float(time_), values=values[(slice(None), *blocks.where)], where=blocks.where
                )
        finally:
            if states is not None:
                states.close()

    def _states(self, case: Case, p: Parameters, initial: np.ndarray) -> Iterator[np.ndarray]:
        """Yield whole states as the program writes them; on rank 0 only."""
        with tempfile.TemporaryDirectory(prefix="headrace-") as name:
            folder = Path(name)
            _write_input(folder, case, p, initial)
            self._write_files(folder, case, p)
            if self.prepare is not None:
                self.prepare(folder, case, p, initial)
            with _Run(self._words(case, p), folder, self.timeout) as run:
                for step in range(case.num_snapshots + 1):
                    run.wait_for(self._file(folder, step, case), self._file(folder, step + 1, case))
                    yield self._checked(folder, step, case)

    def _file(self, folder: Path, step: int, case: Case) -> Path:
        return folder / self.snapshot.format(step=step, time=f"{step * case.duration / case.num_snapshots:g}")

    def _write_files(self, folder: Path, case: Case, p: Parameters) -> None:
        known = _known(case, p)

        def filled(match: re.Match[str]) -> str:
            if match[1] not in known:
                raise ProgramError(f"{match[0]} in {name} is no parameter; known are {', '.join(known)}.")
            return format(known[match[1]], match[2] or "")

        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_PLACE.sub(filled, text), encoding="utf-8")

    def _words(self, case: Case, p: Parameters) -> list[str]:
        try:
            return filled(self.command, _known(case, p), case)
        except ValueError as error:
            raise ProgramError(str(error)) from None

    def _checked(self, folder: Path, step: int, case: Case) -> np.ndarray:
        try:
            state = np.asarray(self.read(folder, step, case), dtype=np.float64)
        except (OSError, ValueError, KeyError) as error:
            raise ProgramError(f"Snapshot {step} of {self.command[0]} cannot be read: {error}.") from error
        if state.shape != (len(case.fields), *case.grid.shape):
            raise ProgramError(
                f"Snapshot {step} of {self.command[0]} has shape {state.shape}; the case needs "
                f"{(len(case.fields), *case.grid.shape)}: fields {', '.join(case.fields)}, then the grid, axis 0 is x."
            )
        return state


class _Run:
    """One run of a program in a folder; leaving the context ends it."""

    def __init__(self, words: list[str], folder: Path, timeout: float | None) -> None:
        self._words = words
        self._log = folder / "output.log"
        self._deadline = None if timeout is None else time.monotonic() + timeout
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_LAUNCHER_VARIABLES) or name.startswith(PERMISSIONS)
        }
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    words, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            except OSError as error:
                raise ProgramError(
                    f"{words[0]} cannot be started: {error.strerror}. Give an absolute path: it runs in a folder of "
                    "its own."
                ) from error

    def wait_for(self, file: Path, following: Path) -> None:
        """Return when a file is complete: the following one is there, or the program has ended.

        A file that is its own following one is complete when the program has ended.

        Raises
        ------
        ProgramError : the program ended without it, or with a code other than 0, or takes too long.
        """
        while following == file or not following.exists():
            ended = self._process.poll()
            if ended is not None:
                if ended != 0:
                    raise ProgramError(f"{self._words[0]} ended with code {ended}. It said: {self._said()}")
                if not file.exists():
                    raise ProgramError(f"{self._words[0]} ended without {file.name}. It said: {self._said()}")
                return
            if self._deadline is not None and time.monotonic() > self._deadline:
                raise ProgramError(f"{self._words[0]} did not write {file.name} in time. It said: {self._said()}")
            time.sleep(_POLL_SECONDS)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=5.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _said(self) -> str:
        text = self._log.read_bytes()[-2000:].decode("utf-8", "replace").strip()
        return " | ".join(text.splitlines()[-5:]) or "nothing"


def filled(command: Sequence[str], known: Mapping[str, Any], case: Case) -> list[str]:
    """Return the words of a command with what stands for {name}.

    Raises
    ------
    ValueError : a name that is not known, or a brace that stands for none.
    """
    words = []
    for word in command:
        try:
            words.append(word.format(**known))
        except KeyError as unknown:
            raise ValueError(
                f"The command of case {case.name} has {{{unknown.args[0]}}}; known are {', '.join(known)}."
            ) from None
        except (ValueError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(
                f"The command of case {case.name} has {word!r}, in which braces do not stand for a name: {error}. "
                "Write {{ and }} for braces of its own."
            ) from None
    return words


def _known(case: Case, p: Parameters) -> dict[str, Any]:
    """Return what may stand in a command or in a file."""
    known: dict[str, Any] = {"python": sys.executable, "duration": case.duration, **p}
    known["num_snapshots"] = case.num_snapshots
    known["interval"] = case.duration / case.num_snapshots
    return known | dict(zip(("nx", "ny", "nz"), case.grid.shape, strict=False))


def _write_input(folder: Path, case: Case, p: Parameters, initial: np.ndarray) -> None:
    content = {
        "parameters": dict(p), "fields": list(case.fields), "shape": list(case.grid.shape),
        "extent": list(case.grid.extent), "origin": list(case.grid.origin), "times": case.times.tolist(),
    }  # fmt: skip
    (folder / "input.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    np.save(folder / "initial.npy", initial)


def _shared(states: Iterator[np.ndarray] | None, comm: MPI.Comm | None) -> np.ndarray:
    """Return the next state of rank 0 on every rank, or raise its error on all of them. Collective."""
    if comm is None:
        return next(states)
    state, shape, problem = None, None, None
    if states is not None:
        try:
            state = np.ascontiguousarray(next(states))
            shape = state.shape
        except (ProgramError, OSError, ValueError) as error:
            problem = str(error)
    shape, problem = comm.bcast((shape, problem))
    if problem is not None:
        raise ProgramError(problem)
    if state is None:
        state = np.empty(shape)
    comm.Bcast(state)
    return state
