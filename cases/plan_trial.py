"""A short trial of a case's solver under mpirun: seconds of a simulation, and memory of a rank.

Run as `mpirun -n N python -m headrace.cases.plan_trial CASE.json`; rank 0 prints one JSON line. Loads what a solver's
rank loads.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from headrace.solvers import Parameters, Snapshot
from headrace.solvers.case_file import CaseReference
from headrace.solvers.simulate import simulate
from headrace.solvers.sink import Sink

if TYPE_CHECKING:
    from mpi4py import MPI

    from headrace.solvers import Case

_TRIAL_SECONDS = 5.0


class _Trial(Sink):
    """Notes when each snapshot came, and ends the simulation when rank 0 knows enough."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.times: list[float] = []
        self._comm = comm

    def open(self, case: Case, parameters: Parameters, comm: MPI.Comm | None) -> None:
        pass

    def write(self, snapshot: Snapshot) -> bool:
        self.times.append(time.perf_counter())
        return self._comm.bcast(len(self.times) < 3 or self.times[-1] - self.times[0] < _TRIAL_SECONDS)

    def close(self, *, failure: str | None = None) -> None:
        pass


def main() -> None:
    """Run the first seconds of a simulation with parameters drawn at random, and say what the whole would take."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    case = CaseReference.from_dict(json.loads(Path(sys.argv[1]).read_text())).load()
    trial = _Trial(comm)
    began = time.perf_counter()
    parameters = case.draw(np.random.default_rng(0).random(len(case.parameters)))
    simulate(case, parameters, trial, comm=comm, study_seed=0)
    intervals = np.diff(trial.times)
    first = trial.times[0] - began
    # The first interval pays for what is set up once.
    later = float(np.median(intervals[1:])) if len(intervals) > 1 else float(intervals.sum())
    seconds = first + (float(intervals[0]) if len(intervals) else 0.0) + later * max(0, case.num_snapshots - 1)
    held = psutil.Process().memory_info().rss
    if comm.rank == 0:
        print(json.dumps({"seconds": seconds, "bytes": held}))


if __name__ == "__main__":
    main()
