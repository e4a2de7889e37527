"""A bump that is carried along and spreads, on a line and in a plane; without spreading, linear convection.

Sources of the linear convection cases: the standard test of physics-informed networks on moving features.
    headrace solve convection1d --set c=2 --output one.h5
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headrace.solvers import Case, Grid, LogUniform, Uniform
from headrace.solvers.parameters import Vector
from headrace.solvers.scheme import RK4

WIDTH = 0.05
"""Standard deviation of the bump at t = 0."""


def advection_diffusion(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + c ∂u/∂x = ν ∂²u/∂x²."""
    return p.nu * d.laplacian(u) - d.advect((p.c,), u)


def convection(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + c ∂u/∂x = 0."""
    return -d.advect((p.c,), u)


def advection_diffusion_plane(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + w·∇u = ν ∇²u."""
    return p.nu * d.laplacian(u) - d.advect(p.wind, u)


def convection_plane(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + w·∇u = 0."""
    return -d.advect(p.wind, u)


def bump(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """u = exp(-(x - x0)² / 2σ²) and its periodic images."""
    return _images(x[0] - p.x0)


def bump_plane(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """u = exp(-|x - x0|² / 2σ²) and its periodic images."""
    return _images(x[0] - p.x0[0]) * _images(x[1] - p.x0[1])


def _images(distance: np.ndarray) -> np.ndarray:
    return sum(np.exp(-((distance - image) ** 2) / (2 * WIDTH**2)) for image in (-1, 0, 1))


line = Case(
    name="advection_diffusion1d",
    fields=("u",),
    grid=Grid(shape=(200,), extent=(1.0,)),
    parameters={"c": Uniform(0.5, 2.0), "nu": LogUniform(1e-4, 1e-2), "x0": Uniform(0.0, 1.0)},
    initial=bump,
    rhs=advection_diffusion,
    duration=1.0,
    num_snapshots=50,
    scheme=RK4,
    accuracy=4,
    description="A bump on a periodic line, carried with speed c and spreading with nu; fourth order, RK4 "
    "(exact solution: Crank 1975). Cost: about 0.2 s on one core.",
)

convection_line = replace(
    line,
    name="convection1d",
    parameters={"c": Uniform(0.5, 2.0), "x0": Uniform(0.0, 1.0)},
    rhs=convection,
    description="A bump on a periodic line, carried with speed c and unchanged; fourth order, RK4 "
    "(Krishnapriyan et al. 2021). Cost: about 0.1 s on one core.",
)

plane = Case(
    name="advection_diffusion2d",
    fields=("u",),
    grid=Grid(shape=(64, 64), extent=(1.0, 1.0)),
    parameters={
        "wind": Vector.of(Uniform(-1.0, 1.0), 2),
        "nu": LogUniform(1e-4, 1e-2),
        "x0": Vector.of(Uniform(0.0, 1.0), 2),
    },
    initial=bump_plane,
    rhs=advection_diffusion_plane,
    duration=1.0,
    num_snapshots=50,
    scheme=RK4,
    accuracy=4,
    description="A bump on a periodic plane, carried by a steady wind and spreading with nu; fourth order, RK4 "
    "(exact solution: Crank 1975). Cost: about 0.3 s on one core.",
)

convection_in_plane = replace(
    plane,
    name="convection2d",
    parameters={"wind": Vector.of(Uniform(-1.0, 1.0), 2), "x0": Vector.of(Uniform(0.0, 1.0), 2)},
    rhs=convection_plane,
    description="A bump on a periodic plane, carried by a steady wind and unchanged; fourth order, RK4 "
    "(Krishnapriyan et al. 2021, with a second axis). Cost: about 0.06 s on one core.",
)

case = line
