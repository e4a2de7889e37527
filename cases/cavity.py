"""The lid-driven cavity: fluid in a square box, moved by its lid (Ghia, Ghia and Shin 1982).

    mpirun -n 2 headrace solve cavity --set reynolds=400 --output one.h5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, Neumann, Parameters, Snapshot, Uniform
from headrace.solvers.mac import solve_mac

if TYPE_CHECKING:
    from mpi4py import MPI


def rest(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """u = v = 0: the lid starts with a jerk."""
    return np.zeros(x[0].shape), np.zeros(x[0].shape), np.zeros(x[0].shape)


def cavity(case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator) -> Iterator[Snapshot]:
    """∂u/∂t + ∇·(u u) = -∇p + ∇²u / Re,  ∇·u = 0."""
    return solve_mac(case, p, comm, rng, viscosity=1 / p.reynolds)


case = Case(
    name="cavity",
    # Values are at the upper faces of the cells, the pressure at their centres: see solvers/mac_grid.py.
    fields=("u", "v", "pressure"),
    grid=Grid(shape=(64, 64), extent=(1.0, 1.0)),
    boundary={
        "u": {"x": Dirichlet(0.0), "y": (Dirichlet(0.0), Dirichlet(1.0))},
        "v": {"x": Dirichlet(0.0), "y": Dirichlet(0.0)},
        "pressure": {"x": Neumann(0.0), "y": Neumann(0.0)},
    },
    parameters={"reynolds": Uniform(100.0, 1000.0)},
    initial=rest,
    solver=cavity,
    duration=20.0,
    num_snapshots=40,
    description="Lid-driven cavity from rest, Reynolds number; staggered grid, projection (Ghia, Ghia and Shin 1982). "
    "Cost: about 10 s on one core.",
)
