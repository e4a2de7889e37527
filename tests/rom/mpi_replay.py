"""Replays a solver's displacements on all ranks into a store: python -m tests.rom.mpi_replay STEM."""

import sys

from headrace.rom import TimeSeries, solve
from headrace.rom.replay import Replay, replay_to_store
from tests.rom.test_calculix import TIMES, heated_problem


def series():
    """Displacements and temperatures alone."""
    problem = heated_problem("hex8", (4, 3, 3))
    full = solve(problem, TIMES)
    alone = TimeSeries(
        mesh=problem.mesh, times=TIMES, displacements=full.displacements, temperatures=full.temperatures
    )  # fmt: skip
    return problem, full, alone


def main(stem):
    from mpi4py import MPI

    problem, _, alone = series()
    report = replay_to_store(Replay(alone, problem, MPI.COMM_WORLD), stem)
    # The laws alone, without the problem: inner nodes would feel the centrifugal force, so nothing is refused.
    free = Replay(alone, problem.laws, MPI.COMM_WORLD, suspect=None)
    for _ in free.run():
        pass
    assert report.worst()["equilibrium"] < 1e-7 and free.report.worst()["equilibrium"] > 1e-4


if __name__ == "__main__":
    main(sys.argv[1])
