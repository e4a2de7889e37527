"""Run under mpirun: a foreign program as the solver, its trajectory gathered into the file named; and its failure."""

import sys

import numpy as np
from mpi4py import MPI

from headrace.solvers import MemorySink
from headrace.solvers.external import ProgramError
from headrace.solvers.simulate import simulate
from tests.solvers.test_external import foreign_case


def main(path):
    comm = MPI.COMM_WORLD
    case, sink = foreign_case(), MemorySink()
    simulate(case, case.accept({"nu": 0.02}), sink, comm=comm)
    pieces = comm.gather((sink.where, sink.values))
    failing = foreign_case("fail-at", "2")
    message = ""
    try:
        simulate(failing, failing.accept({"nu": 0.02}), MemorySink(), comm=comm)
    except ProgramError as error:
        message = str(error)
    messages = comm.gather(message)
    if comm.rank == 0:
        whole = np.concatenate([values for _, values in pieces], axis=-1)
        np.savez(path, values=whole, messages=messages)


if __name__ == "__main__":
    main(sys.argv[1])
