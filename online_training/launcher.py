"""The contract of a launcher: starts, watches and stops solver jobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Job:
    """One solver job to start.

    name : unique in the run, e.g. "2-0003": session and number.
    command : the program of one rank and its arguments; the launcher puts its mpirun or srun before it.
    ranks : MPI ranks.
    environment : variables to set beside the scrubbed environment of the launcher.
    log : file for stdout and stderr of all ranks.
    own_mpirun : the command starts all ranks by itself; the launcher puts nothing before it.
    """

    name: str
    command: Sequence[str]
    ranks: int
    environment: Mapping[str, str]
    log: Path
    own_mpirun: bool = False


class Launcher(ABC):
    """Starts MPI jobs on this node or through a scheduler. Not thread-safe."""

    @abstractmethod
    def start(self, job: Job) -> int:
        """Start a job and return at once, with its number: mpirun's process id, or the scheduler's job number.

        Raises
        ------
        RuntimeError : what is missing (mpirun, the scheduler), and how to get it.
        """

    def start_many(self, jobs: Sequence[Job]) -> list[int]:
        """Start several jobs that differ in names and logs only; a scheduler that has job arrays takes them as one.

        Raises
        ------
        RuntimeError : as `start`; then jobs before the one that failed may run, and `stop_all` ends them.
        """
        return [self.start(job) for job in jobs]

    @abstractmethod
    def poll(self) -> dict[str, int]:
        """Return the exit codes of the jobs that ended since the last call, by name."""

    def waits(self, name: str) -> bool:
        """Say whether a job that was started still waits in a scheduler's queue, as far as `poll` has seen."""
        return False

    @abstractmethod
    def stop(self, name: str) -> None:
        """End a job: SIGTERM, after a grace period SIGKILL, to all of its processes."""

    @abstractmethod
    def stop_all(self) -> None:
        """End every job that this launcher started."""
