"""Run under mpirun: compiled cases on all ranks and on one, compared bit by bit."""

import numpy as np
from mpi4py import MPI

from headrace.solvers import Grid, Periodic
from headrace.solvers.scheme import RK4

from . import problems
from .mpi_blocks import solve


def main():
    world = MPI.COMM_WORLD
    for shape, extent in (((19, 14), (1.0, 0.8)), ((9, 10, 8), (1.0, 0.8, 0.7))):
        for boundary in (Periodic(), problems.mixed_boundary(len(shape))):
            case = problems.make_case(
                grid=Grid(shape=shape, extent=extent), boundary=boundary, rhs=problems.arithmetic, scheme=RK4,
                steps_per_snapshot=4, duration=0.02, compiled=True,
            )  # fmt: skip
            found = solve(case, {"nu": 0.02}, world)
            if world.rank == 0:
                print("equal" if np.array_equal(found, solve(case, {"nu": 0.02}, None)) else "different")


if __name__ == "__main__":
    main()
