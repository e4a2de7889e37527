"""Heat conduction in a plate whose conductivity depends on temperature.

    mpirun -n 4 headrace solve heat2d --set t0=300 --output one.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, Uniform
from headrace.solvers.scheme import BDF2

K0 = 1.0
"""Conductivity at 100 K, in units of (plate width)² / time."""

LOWEST, HIGHEST = 100.0, 500.0
"""Range of all temperatures, K."""


def heat(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂T/∂t = ∇·(k(T) ∇T),  k(T) = k0 (1 + β (T - 100) / 400)."""
    k = K0 * (1 + p.beta / (HIGHEST - LOWEST) * (u - LOWEST))
    return d.diffuse(k, u)


def uniform_plate(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """T = t0 everywhere; the walls jump to their own temperatures at t = 0."""
    return np.full(x[0].shape, p.t0)


def _wall(name: str) -> Dirichlet:
    return Dirichlet(lambda x, p, t: p[name])


case = Case(
    name="heat2d",
    fields=("T",),
    grid=Grid(shape=(64, 64), extent=(1.0, 1.0)),
    boundary={"x": (_wall("t_left"), _wall("t_right")), "y": (_wall("t_bottom"), _wall("t_top"))},
    parameters={
        "t0": Uniform(LOWEST, HIGHEST),
        "t_left": Uniform(LOWEST, HIGHEST),
        "t_right": Uniform(LOWEST, HIGHEST),
        "t_bottom": Uniform(LOWEST, HIGHEST),
        "t_top": Uniform(LOWEST, HIGHEST),
        "beta": Uniform(0.0, 2.0),
    },
    initial=uniform_plate,
    rhs=heat,
    # The slowest mode decays by exp(-2 π² 0.1) = 0.14: the transient fills the whole duration.
    duration=0.1,
    num_snapshots=100,
    # L-stable: walls that jump at t = 0 must not ring. (One step may undershoot by half a per cent of the jump.)
    scheme=BDF2,
    description="Heat conduction in a plate, five random temperatures, k(T) with strength beta "
    "(after Meyer et al. 2023). Cost: about 0.7 s on one core.",
)
