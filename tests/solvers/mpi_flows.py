"""Run under mpirun: solves short flows on all ranks and writes the trajectories, gathered, to the file named."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np

from headrace.cases.kolmogorov import case as kolmogorov
from headrace.cases.navier_stokes2d import case as navier_stokes
from headrace.cases.navier_stokes2d import differences, recipe
from headrace.solvers import Grid, MemorySink, mac
from headrace.solvers.mac import MAC_MIDPOINT
from headrace.solvers.simulate import simulate
from headrace.solvers.vorticity import ADAMS_BASHFORTH_CRANK_NICOLSON

from .mac_cases import driven_box, duct, pipe, street
from .mpi_blocks import same_divergence
from .mpi_transforms import gathered


def short(case, shape, duration, **changes):
    """Return a case on a small grid for a short time, three snapshots."""
    grid = Grid(shape=shape, extent=case.grid.extent)
    return replace(case, grid=grid, duration=duration, num_snapshots=3, **changes)


def cases():
    """Name -> case, parameters."""
    return {
        "spectral, free step": (short(navier_stokes, (36, 25), 1.5), {"nu": 3e-4}),
        "spectral, recipe": (short(recipe, (16, 20), 0.03, steps_per_snapshot=10), {}),
        "differences, midpoint": (short(differences, (18, 15), 0.6), {"nu": 3e-4}),
        "differences, explicit": (short(differences, (16, 20), 1.5, scheme=ADAMS_BASHFORTH_CRANK_NICOLSON), {}),
        "staggered, lid": (driven_box((13, 10)), {}),
        "staggered, cylinder": (street((28, 12)), {}),
        "staggered, pipe": (pipe(steps_per_snapshot=3), {}),
        "staggered, duct": (duct((9, 8, 7), scheme=MAC_MIDPOINT, steps_per_snapshot=4), {}),
        "spectral, drag": (short(kolmogorov, (24, 24), 0.5, steps_per_snapshot=4), {}),
    }


def divergent():
    """Flows whose steps are far too long, one for each solver with explicit steps."""
    long = {"duration": 3000.0, "steps_per_snapshot": 20}
    return [
        short(navier_stokes, (36, 25), initial=lambda x, p, rng: 1e4 * np.sin(x[0]) * np.cos(2 * x[1] + x[0]), **long),
        short(differences, (16, 20), scheme=ADAMS_BASHFORTH_CRANK_NICOLSON, **long),
        replace(driven_box((13, 10)), **long),
    ]


def solve(case, values, comm):
    """Return the whole trajectory, (snapshots, fields, *grid)."""
    sink = MemorySink()
    simulate(case, case.accept(values), sink, comm=comm, study_seed=2, simulation=1)
    return gathered(comm, sink.where, sink.values, case.grid.shape)


def solve_by_conjugate_gradients(comm):
    """Return the trajectory around the cylinder with the pressure from conjugate gradients."""
    direct = mac.pressure_solver
    mac.pressure_solver = partial(direct, most_cut_faces=0)
    try:
        return solve(street((28, 12), steps_per_snapshot=5), {}, comm)
    finally:
        mac.pressure_solver = direct


if __name__ == "__main__":
    from mpi4py import MPI

    found = {name: solve(case, values, MPI.COMM_WORLD) for name, (case, values) in cases().items()}
    found["krylov"] = solve_by_conjugate_gradients(MPI.COMM_WORLD)
    found["diverged"] = [same_divergence(MPI.COMM_WORLD, case, {}) for case in divergent()]
    if MPI.COMM_WORLD.rank == 0:
        np.savez(sys.argv[1], **found)
