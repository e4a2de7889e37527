"""Heat conduction in a cube whose conductivity depends on temperature.

    mpirun -n 4 headrace solve heat3d --set t0=300 --output one.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, Uniform
from headrace.solvers.parameters import Vector
from headrace.solvers.scheme import BDF2

LOWEST, HIGHEST = 100.0, 500.0
"""Range of all temperatures, K."""


def heat(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂T/∂t = ∇·(k(T) ∇T),  k(T) = 1 + β (T - 100) / 400."""
    return d.diffuse(1 + p.beta / (HIGHEST - LOWEST) * (u - LOWEST), u)


def uniform_cube(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """T = t0 everywhere; the walls jump to their own temperatures at t = 0."""
    return np.full(x[0].shape, p.t0)


def _walls(axis: int) -> tuple[Dirichlet, Dirichlet]:
    """Return both walls of an axis; their temperatures are components of the vector `walls`."""
    low, high = (f"walls_{2 * axis + end}" for end in (0, 1))
    return Dirichlet(lambda x, p, t: p[low]), Dirichlet(lambda x, p, t: p[high])


case = Case(
    name="heat3d",
    fields=("T",),
    grid=Grid(shape=(32, 32, 32), extent=(1.0, 1.0, 1.0)),
    boundary={axis: _walls(index) for index, axis in enumerate("xyz")},
    parameters={
        "t0": Uniform(LOWEST, HIGHEST),
        "walls": Vector.of(Uniform(LOWEST, HIGHEST), 6),
        "beta": Uniform(0.0, 2.0),
    },
    initial=uniform_cube,
    rhs=heat,
    duration=0.1,
    num_snapshots=50,
    scheme=BDF2,
    description="Heat conduction in a cube, seven random temperatures, k(T) with strength beta; BDF2 "
    "(heat2d with a third axis). Cost: about 2 s on one core.",
)
