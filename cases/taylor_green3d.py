"""The Taylor-Green vortex in three dimensions: large vortices that break down into turbulence (Brachet et al. 1983).

    mpirun -n 2 headrace solve taylor_green3d --set reynolds=100 --output one.h5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.solvers import Case, Grid, LogUniform, Parameters, Snapshot
from headrace.solvers.mac import solve_mac

if TYPE_CHECKING:
    from mpi4py import MPI


def vortices(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """u = (sin x cos y cos z, -cos x sin y cos z, 0) and its pressure."""
    u = np.sin(x[0]) * np.cos(x[1]) * np.cos(x[2])
    v = -np.cos(x[0]) * np.sin(x[1]) * np.cos(x[2])
    pressure = (np.cos(2 * x[0]) + np.cos(2 * x[1])) * (np.cos(2 * x[2]) + 2) / 16
    return u, v, np.zeros(x[0].shape), pressure


def taylor_green(case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator) -> Iterator[Snapshot]:
    """∂u/∂t + ∇·(u u) = -∇p + ∇²u / Re,  ∇·u = 0."""
    return solve_mac(case, p, comm, rng, viscosity=1 / p.reynolds)


case = Case(
    name="taylor_green3d",
    # Values are at the upper faces of the cells, the pressure at their centres: see solvers/mac_grid.py.
    fields=("u", "v", "w", "pressure"),
    grid=Grid(shape=(32, 32, 32), extent=(2 * np.pi, 2 * np.pi, 2 * np.pi)),
    parameters={"reynolds": LogUniform(50.0, 1600.0)},
    initial=vortices,
    solver=taylor_green,
    duration=10.0,
    num_snapshots=20,
    description="Taylor-Green vortex in three dimensions, Reynolds number; staggered grid, projection "
    "(Brachet et al. 1983). Cost: about 3 s on one core.",
)
