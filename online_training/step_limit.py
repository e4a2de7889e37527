"""Simulations that take too long for a step: told of, or given up after a limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

TOLD_AFTER = 600.0
"""Seconds after which a simulation is told of where there is no limit."""


class Place(NamedTuple):
    """How far a job has come: steps 0..received-1 of an attempt at a simulation."""

    simulation: int
    attempt: int
    received: int


@dataclass
class _Standing:
    place: Place
    since: float
    told: bool = False


class StepLimit:
    """Keeps the time of running simulations from one step to the next, while there is room for it.

    A simulation that waits for the study, because the buffer is full, does not take long. Times are seconds of one
    monotonic clock.

    limit : seconds for one step, the first and the end behind the last too; 0: no limit.
    allowed : whether the study may have a limit.
    """

    def __init__(self, limit: float, *, allowed: bool = True) -> None:
        self._limit = limit
        self._remedy = (
            "stop it, and resume it with --step-limit SECONDS, which takes such simulations out"
            if allowed
            else "stop it; a study without --deterministic can take such simulations out, by --step-limit SECONDS"
        )
        self._standing: dict[str, _Standing] = {}

    def look(
        self, running: Mapping[str, tuple[Place, bool]], now: float
    ) -> tuple[list[str], dict[str, tuple[Place, str]]]:
        """Return what to tell of simulations, and why those of jobs are given up, by the jobs' names.

        running : of each job with a simulation how far it has come, and whether it waits for the study.
        """
        late, overdue = [], {}
        before, self._standing = self._standing, {}
        for job, (place, waits) in running.items():
            one = before.get(job)
            if one is None or waits or one.place != place:
                known = one is not None and one.place[:2] == place[:2]
                self._standing[job] = _Standing(place, now, known and one.told)  # once for all its slow steps
                continue
            self._standing[job] = one
            took = now - one.since
            number, steps = place.simulation, place.received
            said = f"simulation {number} in job {job} has sent {steps} steps, and none for {took:.0f} s"
            if self._limit and took >= self._limit:
                overdue[job] = place, f"{said}, and the step limit is {self._limit:g} s (--step-limit)"
                one.since = now  # one that cannot be ended is not given up anew at once
            elif not self._limit and took >= TOLD_AFTER and not one.told:
                one.told = True
                late.append(f"{said}. If it computes for ever, the study does not end: {self._remedy}.")
        return late, overdue
