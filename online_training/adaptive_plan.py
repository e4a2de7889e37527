"""The plan of a study whose sampler follows the losses: simulations are planned a little ahead of need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .breed import Breed, LossReader
from .design import draw_design
from .ledger import Ledger, RecordWriter, read_records
from .simulation_run import Assignment

if TYPE_CHECKING:
    from headrace.solvers import Case

    from .settings import StudySettings

FIRST_PART = 0.2
"""Fraction of the simulations that the plain design plans before any loss is known."""


def first_generation(settings: StudySettings) -> int:
    """Return how many simulations are planned at once at the start."""
    return min(settings.simulations, max(2 * settings.jobs, round(FIRST_PART * settings.simulations)))


class AdaptivePlan:
    """Draws the parameters of each further simulation when it is about to be needed.

    No job ever waits for it: where no loss is known yet, the plain design's points are taken.

    log : the controller's ledger file, in which every planned simulation is written down before the intake knows of it.
    """

    def __init__(self, run_dir: Path, case: Case, settings: StudySettings, log: RecordWriter) -> None:
        self._case, self._settings, self._log = case, settings, log
        design = draw_design(len(case.parameters), settings.simulations, settings.seed)
        self._breed = Breed(design, first_generation(settings), settings.seed)
        self._losses = LossReader(run_dir)
        self._next = self._begun = 0
        for path in sorted((run_dir / "ledger").glob("study-*.log")):
            for record in read_records(path):
                if record["e"] == "planned" and not record["held_out"]:
                    self._breed.add(record["s"], np.array(record["point"]))
                    self._next = max(self._next, record["s"] + 1)

    @property
    def points(self) -> dict[int, np.ndarray]:
        """The point of the unit cube of each simulation that is planned."""
        return self._breed.points

    @property
    def complete(self) -> bool:
        """Whether all simulations are planned."""
        return self._next >= self._settings.simulations

    def begin(self) -> None:
        """Plan the first generation, where that was not done."""
        while self._next < first_generation(self._settings):
            self._plan()
        self._log.sync()

    def follow(
        self, status: Mapping[str, Any], plan: Callable[[list[Assignment]], None], all_planned: Callable[[], None]
    ) -> None:
        """Take in the newest losses and see that enough simulations are waiting until the next call.

        That is one more than there are jobs, and twice what was begun since the last call.
        """
        for simulation, excess, count in self._losses.news():
            self._breed.observe(simulation, excess, count)
        if self.complete:
            return
        begun = status["planned"] - status["queued"]
        wanted = self._settings.jobs + 1 + 2 * (begun - self._begun)
        self._begun = begun
        missing = min(wanted - status["queued"], self._settings.simulations - self._next)
        new = [self._plan() for _ in range(missing)]
        if new:
            self._log.sync()
            plan(new)
        if self.complete:
            all_planned()

    def _plan(self) -> Assignment:
        number, seed = self._next, self._settings.seed
        point = self._breed.propose(number)
        parameters = dict(self._case.draw(point))
        self._log.append(
            {"e": "planned", "s": number, "held_out": False, "parameters": parameters, "seed": seed,
             "point": point.tolist()}
        )  # fmt: skip
        self._next += 1
        return Assignment(simulation=number, parameters=parameters, seed=seed)


def unplanned(settings: StudySettings, ledger: Ledger) -> int:
    """Return how many training simulations of a study have no parameters yet."""
    return settings.simulations - sum(not one.held_out for one in ledger.simulations.values())
