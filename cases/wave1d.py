"""A pulse between walls, the wave equation of the message-passing paper (Brandstetter, Worrall and Welling 2022).

WE1 has walls where u is 0, WE2 walls where ∂u/∂x is 0, and WE3 draws the kind of each wall anew for every simulation
(the published program never drew the right one at first): bc_left and bc_right are 0 where u is 0, and 1 where ∂u/∂x
is. A boundary belongs to a case, so WE3 has a solver, which solves the case with the walls of its simulation.
    headrace solve wave_we1 --set x0=2 --output one.h5
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, Neumann, Parameters, Snapshot, Uniform
from headrace.solvers.parameters import Integers
from headrace.solvers.scheme import RK4
from headrace.solvers.simulate import snapshots

if TYPE_CHECKING:
    from mpi4py import MPI

SPEED = 2.0


def wave(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t = v,  ∂v/∂t = 4 ∂²u/∂x²."""
    return u[1], SPEED**2 * d.derivative(u[0], 0, order=2)


def pulse(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """u0 = exp(-(x - x0)²),  v0 = -2 c (x - x0) u0: the pulse sets out to the left."""
    u = np.exp(-((x[0] - p.x0) ** 2))
    return u, -2 * SPEED * (x[0] - p.x0) * u


we1 = Case(
    name="wave_we1",
    fields=("u", "v"),
    grid=Grid(shape=(200,), extent=(16.0,), origin=(-8.0,)),
    boundary=Dirichlet(0.0),
    parameters={"x0": Uniform(-4.0, 4.0)},
    initial=pulse,
    rhs=wave,
    duration=100.0,
    num_snapshots=249,
    # c dt / h = 0.84. The pulse crosses the line a dozen times: it would be late with the dispersion of second order.
    steps_per_snapshot=12,
    scheme=RK4,
    accuracy=4,
    description="A pulse between walls where u = 0, WE1; fourth order, RK4 (Brandstetter et al. 2022). "
    "Cost: about 2 s on one core.",
)

we2 = replace(
    we1,
    name="wave_we2",
    boundary=Neumann(0.0),
    description="A pulse between walls where ∂u/∂x = 0, WE2; fourth order, RK4 (Brandstetter et al. 2022). "
    "Cost: about 2 s on one core.",
)

KINDS = (Dirichlet(0.0), Neumann(0.0))


def between_drawn_walls(
    case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
) -> Iterator[Snapshot]:
    """∂u/∂t = v,  ∂v/∂t = 4 ∂²u/∂x²,  and at each wall u = 0 or ∂u/∂x = 0."""
    sides = tuple(KINDS[int(kind)] for kind in (p.bc_left, p.bc_right))
    return snapshots(replace(case, solver=None, rhs=wave, boundary={"x": sides}), p, comm, rng)


we3 = replace(
    we1,
    name="wave_we3",
    boundary={"x": (Dirichlet(0.0), Neumann(0.0))},
    parameters={"x0": Uniform(-4.0, 4.0), "bc_left": Integers(0, 1), "bc_right": Integers(0, 1)},
    rhs=None,
    solver=between_drawn_walls,
    description="A pulse between walls whose kind is drawn, u = 0 or ∂u/∂x = 0, WE3; fourth order, RK4 "
    "(Brandstetter et al. 2022). Cost: about 2 s on one core.",
)

case = we1
