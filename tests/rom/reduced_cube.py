"""The reduced cube on all ranks of a communicator: python -m tests.rom.reduced_cube FILE."""

import sys

import numpy as np

from headrace.cases.rom_cube import rom_cube, times
from headrace.rom.offline import Snapshots, compress
from headrace.rom.online import Query, ReducedSolver
from headrace.rom.solver import NewtonSettings, Solver


def reduced_cube(comm=None, tolerances=None, problem=None):
    """Return points, positive weights, u and p (full and reduced, gathered, (steps, ...)) and the cubature's error."""
    problem = problem or rom_cube()
    solver = Solver(problem, comm, settings=NewtonSettings(tolerance=1e-11))
    increments = [solver.initial(0.0), *solver.run(times())]
    reduction = compress(solver.local, Snapshots.collect(solver.local, increments[1:]), tolerances)
    online = ReducedSolver(reduction.model, settings=NewtonSettings(tolerance=1e-11))
    answer = online.run([Query.of(problem)], [i.time for i in increments])
    gather = solver.subdomain.gather
    u = reduction.displacement_field(answer.coefficients[0], answer.lifting[0])
    p = reduction.dual_field("p", answer.duals["p"][0])
    return {
        "points": reduction.model.points,
        "weights": reduction.model.weights,
        "gamma": answer.coefficients[0],
        "u": np.stack([gather(f) for f in u]),
        "p": np.stack([gather(f, at="points") for f in p]),
        "full_u": np.stack([gather(i.displacement) for i in increments]),
        "full_p": np.stack([gather(solver.local.material.field("p", i.state), at="points") for i in increments]),
        "error": reduction.error,
    }


def worst(answer, name):
    """The largest l2 error over time, relative to the largest norm."""
    full, miss = (a.reshape(len(a), -1) for a in (answer[f"full_{name}"], answer[name] - answer[f"full_{name}"]))
    return np.linalg.norm(miss, axis=1).max() / np.linalg.norm(full, axis=1).max()


if __name__ == "__main__":
    from mpi4py import MPI

    result = reduced_cube(MPI.COMM_WORLD)
    if MPI.COMM_WORLD.rank == 0:
        np.savez(sys.argv[1], **result)
