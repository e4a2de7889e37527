"""A pulse between walls, the wave equation of the message-passing paper (Brandstetter, Worrall and Welling 2022).

WE1 has walls where u is 0, WE2 walls where ∂u/∂x is 0, WE3 one of each: on the left 0, on the right ∂u/∂x = 0. (The
published program draws the kind of each wall; here a case has one kind per wall, and WE1 to WE3 are its combinations
up to reflection.)
Cost: about one second per simulation on one core.
    headrace solve wave_we1 --set x0=2 --output one.h5
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, Neumann, Uniform
from headrace.solvers.scheme import RK4

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
    description="A pulse between walls where u = 0, WE1; fourth order, RK4.",
)

we2 = replace(
    we1,
    name="wave_we2",
    boundary=Neumann(0.0),
    description="A pulse between walls where ∂u/∂x = 0, WE2; fourth order, RK4.",
)

we3 = replace(
    we1,
    name="wave_we3",
    boundary={"x": (Dirichlet(0.0), Neumann(0.0))},
    description="A pulse between a wall where u = 0 and one where ∂u/∂x = 0, WE3; fourth order, RK4.",
)

case = we1
