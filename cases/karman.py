"""A Karman vortex street behind a circular cylinder in a free stream.

Lengths are in diameters, the velocity in units of the stream's. Sides are free-slip, 4 diameters away.
    mpirun -n 2 headrace solve karman --set reynolds=100 --output one.h5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, Neumann, Parameters, Snapshot, Uniform
from headrace.solvers.mac import solve_mac

if TYPE_CHECKING:
    from mpi4py import MPI

CENTRE = (4.0, 4.0)
"""Of the cylinder."""


def cylinder(x: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return which points lie within the cylinder of diameter 1."""
    return (x[0] - CENTRE[0]) ** 2 + (x[1] - CENTRE[1]) ** 2 < 0.25


def stream(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """u = 1 with a gust across behind the cylinder, so that shedding starts without waiting for rounding errors."""
    gust = 0.5 * np.exp(-((x[0] - CENTRE[0] - 1.5) ** 2) - (x[1] - CENTRE[1]) ** 2)
    return np.ones(x[0].shape), gust, np.zeros(x[0].shape)


def karman(case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator) -> Iterator[Snapshot]:
    """∂u/∂t + ∇·(u u) = -∇p + ∇²u / Re,  ∇·u = 0,  u = 0 on the cylinder."""
    return solve_mac(case, p, comm, rng, viscosity=1 / p.reynolds, solid=cylinder)


case = Case(
    name="karman",
    # Values are at the upper faces of the cells, the pressure at their centres: see solvers/mac_grid.py.
    fields=("u", "v", "pressure"),
    grid=Grid(shape=(256, 128), extent=(16.0, 8.0)),
    boundary={
        "u": {"x": (Dirichlet(1.0), Neumann(0.0)), "y": Neumann(0.0)},
        "v": {"x": (Dirichlet(0.0), Neumann(0.0)), "y": Dirichlet(0.0)},
        "pressure": {"x": (Neumann(0.0), Dirichlet(0.0)), "y": Neumann(0.0)},
    },
    parameters={"reynolds": Uniform(60.0, 200.0)},
    initial=stream,
    solver=karman,
    duration=100.0,
    num_snapshots=400,
    description="Vortex street behind a cylinder, Reynolds number; staggered grid, direct pressure (Williamson 1989). "
    "Cost: about 80 s on one core.",
)
