"""Kolmogorov flow: two-dimensional turbulence stirred by a sine wave and slowed by drag.

    mpirun -n 2 headrace solve kolmogorov --set reynolds=500 --output one.h5
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.solvers import Case, Grid, Parameters, Snapshot, Uniform
from headrace.solvers.navier_stokes_spectral import solve_vorticity
from headrace.solvers.parameters import Seed
from headrace.solvers.random_fields import gaussian_random_field

if TYPE_CHECKING:
    from mpi4py import MPI

WAVES = 4
"""Waves of the forcing across the torus."""

DRAG = 0.1
"""Linear friction with the ground: without it energy gathers in the largest vortices."""


def sine_wave(x: tuple[np.ndarray, ...]) -> np.ndarray:
    """f = -4 cos 4y, the curl of the force (sin 4y, 0)."""
    return -WAVES * np.cos(WAVES * x[1]) + 0 * x[0]


def random_vorticity(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """ω0 : Gaussian, of the magnitude that the forcing keeps up."""
    return 15 * gaussian_random_field(x[0].shape, rng)


def kolmogorov(case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator) -> Iterator[Snapshot]:
    """∂ω/∂t + u·∇ω = ∇²ω / Re - 0.1 ω - 4 cos 4y,  u = (∂ψ/∂y, -∂ψ/∂x),  ∇²ψ = -ω."""
    return solve_vorticity(case, p, comm, rng, viscosity=1 / p.reynolds, drag=DRAG, forcing=sine_wave)


case = Case(
    name="kolmogorov",
    fields=("vorticity",),
    grid=Grid(shape=(64, 64), extent=(2 * np.pi, 2 * np.pi)),
    parameters={"reynolds": Uniform(100.0, 600.0), "vorticity0": Seed()},
    initial=random_vorticity,
    solver=kolmogorov,
    duration=10.0,
    num_snapshots=50,
    description="Kolmogorov flow on a torus, random vorticity, Reynolds number; pseudo-spectral, ETDRK4 "
    "(Kochkov et al. 2021). Cost: about 0.9 s on one core.",
)
