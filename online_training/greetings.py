"""Solver jobs that have not yet said hello to their study: told of while they are late, given up after a limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TOLD_EVERY = 60.0
"""Seconds between two words about a job that is late."""


@dataclass
class _Awaited:
    since: float
    told: float


class Greetings:
    """Keeps the time of jobs from their start to the hello of their last rank.

    Times are seconds of one monotonic clock. A job that waits in a scheduler's queue has not begun.

    ranks : of each job, as long as none of its ranks has said how many they are.
    limit : seconds after which a job of which a rank is still missing is given up.
    """

    def __init__(self, ranks: int, limit: float) -> None:
        self._ranks, self._limit = ranks, limit
        self._awaited: dict[str, _Awaited] = {}

    def begin(self, job: str, now: float) -> None:
        """A job's processes have begun."""
        self._awaited[job] = _Awaited(now, now)

    def end(self, job: str) -> None:
        """A job's processes are gone."""
        self._awaited.pop(job, None)

    def look(self, present: Mapping[str, tuple[int, int]], now: float) -> tuple[list[str], dict[str, str]]:
        """Return what to tell of jobs that are late, and why jobs are given up, by their names.

        present : of each job that the intake knows, how many ranks have come, and how many there are.
        """
        late, overdue = [], {}
        for job, one in list(self._awaited.items()):
            count, ranks = present.get(job, (0, self._ranks))
            waited = now - one.since
            said = f"{count} of {ranks} ranks have said hello after {waited:.0f} s"
            if count == ranks:
                del self._awaited[job]
            elif waited >= self._limit:
                del self._awaited[job]
                overdue[job] = (
                    f"Solver job {job} was ended: {said}, and the start limit is {self._limit:g} s (--start-limit)."
                    " Its ranks may hang in MPI_Init, or not reach the intake's address."
                )
            elif now - one.told >= TOLD_EVERY:
                one.told = now
                late.append(f"job {job}: {said}")
        return late, overdue
