"""The Lorenz system: an ensemble of trajectories from neighbouring states, one per point of the axis.

An ordinary differential equation is a case without derivatives: x counts the members, from 0 to 1.
    headrace solve lorenz --set rho=28 --output one.h5
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headrace.solvers import Case, Grid, Uniform
from headrace.solvers.parameters import Seed
from headrace.solvers.scheme import DORMAND_PRINCE

SIGMA, BETA = 10.0, 8 / 3


def lorenz(u: Any, d: Any, p: Any, t: Any) -> Any:
    """dX/dt = 10 (Y - X),  dY/dt = X (ρ - Z) - Y,  dZ/dt = X Y - 8/3 Z."""
    x, y, z = u
    return SIGMA * (y - x), x * (p.rho - z) - y, x * y - BETA * z


def cloud(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A random state near the attractor, and the members within 0.1 of it."""
    centre = rng.uniform((-15.0, -15.0, 15.0), (15.0, 15.0, 35.0))
    return tuple(c + rng.uniform(-0.1, 0.1, x[0].shape) for c in centre)


case = Case(
    name="lorenz",
    fields=("X", "Y", "Z"),
    grid=Grid(shape=(64,), extent=(1.0,)),
    parameters={"rho": Uniform(20.0, 40.0), "state": Seed()},
    initial=cloud,
    rhs=lorenz,
    duration=10.0,
    num_snapshots=500,
    scheme=replace(DORMAND_PRINCE, rtol=1e-8, atol=1e-8),
    description="An ensemble of Lorenz trajectories from neighbouring states; Dormand-Prince, adaptive (Lorenz 1963). "
    "Cost: about 2 s on one core.",
)
