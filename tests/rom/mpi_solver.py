"""Runs the cyclic problem of test_solver on all ranks and writes the answer: python -m tests.rom.mpi_solver FILE."""

import sys
from dataclasses import replace

import numpy as np
from mpi4py import MPI

from headrace.rom.solver import NewtonSettings, Solver, solve
from tests.rom.test_solver import Brittle, cyclic_problem, outcome


def main(path):
    comm = MPI.COMM_WORLD
    problem = cyclic_problem("hex8")
    u, p, iterations = outcome(problem, comm)
    # A law that fails in one element stops every rank, with the same words on those that did not have it.
    bad = replace(problem, laws={**problem.laws, "foot": Brittle(1e-30)})
    try:
        solve(bad, [0, 1], comm, settings=NewtonSettings(max_cuts=1))
        message = "solved"
    except RuntimeError as error:
        message = str(error)
    messages = comm.gather(message)
    solver = Solver(problem, comm)
    pieces = comm.gather(np.array([solver.subdomain.mesh.num_elements]))
    if comm.rank == 0:
        np.savez(path, u=u, p=p, iterations=iterations, messages=np.array(messages), pieces=np.concatenate(pieces))


if __name__ == "__main__":
    main(sys.argv[1])
