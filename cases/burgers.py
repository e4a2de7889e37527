"""Burgers' equation: viscous on a line and in a plane from random states, inviscid with a shock.

The random states on a line are those of the Fourier neural operator's data, N(0, 625 (-∇² + 25)^-2) (Li et al. 2021,
section 5.1), there with ν = 0.1.
    headrace solve burgers1d --set nu=0.01 --output one.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.solvers import Case, Grid, LogUniform, Uniform
from headrace.solvers.exponential import ETDRK4
from headrace.solvers.parameters import Seed
from headrace.solvers.random_fields import gaussian_random_field
from headrace.solvers.scheme import SSPRK3


def burgers(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + u·∇u = ν ∇²u."""
    return viscosity(u, d, p, t) - d.advect(u, u)


def steep_burgers(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + u·∇u = ν ∇²u."""
    # Fronts are hardly wider than the grid's spacing: central differences would oscillate there.
    return viscosity(u, d, p, t) - d.weno(u, u)


def viscosity(u: Any, d: Any, p: Any, t: Any) -> Any:
    """The stiff part, ν ∇²u."""
    return p.nu * d.laplacian(u)


def inviscid_burgers(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + ∂(u²/2)/∂x = 0."""
    return -d.weno_div(u * u / 2, abs(u), u)


def random_line(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """u0 ~ N(0, 625 (-∇² + 25)^-2)."""
    return gaussian_random_field(x[0].shape, rng, smoothness=2.0, inverse_length=5.0, amplitude=25.0)


def random_plane(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """u0, v0 ~ N(0, 3200² (-∇² + 100)^-4), smooth, of magnitude 1."""
    return tuple(
        gaussian_random_field(x[0].shape, rng, smoothness=4.0, inverse_length=10.0, amplitude=3200.0) for _ in range(2)
    )


def wave(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """u0 = mean + height sin 2πx: breaks at t = 1 / (2π height), at a point that moves with the mean."""
    return p.mean + p.height * np.sin(2 * np.pi * x[0])


case = Case(
    name="burgers1d",
    fields=("u",),
    grid=Grid(shape=(512,), extent=(1.0,)),
    parameters={"nu": LogUniform(4e-3, 1e-1), "state": Seed()},
    initial=random_line,
    rhs=burgers,
    stiff=viscosity,
    duration=1.0,
    num_snapshots=100,
    scheme=ETDRK4,
    accuracy=4,
    description="Viscous Burgers on a periodic line, random state, viscosity nu; fourth order, ETDRK4 "
    "(Li et al. 2021). Cost: about 0.7 s on one core.",
)

plane = Case(
    name="burgers2d",
    fields=("u", "v"),
    grid=Grid(shape=(64, 64), extent=(1.0, 1.0)),
    parameters={"nu": LogUniform(5e-3, 5e-2), "state": Seed()},
    initial=random_plane,
    rhs=steep_burgers,
    stiff=viscosity,
    duration=0.5,
    num_snapshots=50,
    # (|u| + |v|) dt / h stays below 0.7; off by 2e-5.
    steps_per_snapshot=4,
    scheme=ETDRK4,
    accuracy=4,
    description="Viscous Burgers on a periodic plane, two random velocities, viscosity nu; WENO5, ETDRK4 "
    "(Burgers 1948). Cost: about 3 s on one core.",
)

inviscid = Case(
    name="inviscid_burgers",
    fields=("u",),
    grid=Grid(shape=(256,), extent=(1.0,)),
    parameters={"mean": Uniform(-0.5, 0.5), "height": Uniform(0.5, 1.0)},
    initial=wave,
    rhs=inviscid_burgers,
    duration=0.6,
    num_snapshots=60,
    scheme=SSPRK3,
    # |u| <= 1.5: 15 steps a snapshot keep |u| dt / h below 0.26.
    steps_per_snapshot=15,
    description="A sine wave that steepens into a shock; WENO5 and SSPRK3 (LeVeque 2002). "
    "Cost: about 1 s on one core.",
)
