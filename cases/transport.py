"""Problems of transport with exact solutions: what physics-informed networks are judged by.

    headrace solve transport_convection --set c=30
    headrace train transport_burgers --model lpinn

Sources: convection and reaction, Krishnapriyan et al. (NeurIPS 2021); convection with diffusion and the moving shock,
Mojgani, Balajewicz and Hassanzadeh (CMAME 404, 2023); the bump in a linear flow, Batchelor (J. Fluid Mech. 5, 1959);
the standing shock, Basdevant et al. (Computers & Fluids 14, 1986); the breaking wave, LeVeque (2002); the solid that
turns, Zalesak (J. Comput. Phys. 31, 1979).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, Uniform
from headrace.solvers.scheme import RK4

TURN = 2 * np.pi


def convected(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + c ∂u/∂x = ν ∂²u/∂x²."""
    return p.nu * d.laplacian(u) - d.advect((p.c,), u)


def carried(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + c ∂u/∂x = 0."""
    return -d.advect((p.c,), u)


def stretched(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + λ x ∂u/∂x = ν ∂²u/∂x²."""
    return p.nu * d.laplacian(u) - d.advect((p.rate * d.x[0],), u)


def reacting(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + c ∂u/∂x = ρ u (1 - u)."""
    return p.rho * u * (1 - u) - d.advect((p.c,), u)


def burgers_law(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + u ∂u/∂x = ν ∂²u/∂x²."""
    return p.nu * d.laplacian(u) - d.advect(u, u)


def inviscid_law(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + u ∂u/∂x = 0."""
    return -d.advect(u, u)


def turned(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + w·∇u = ν ∇²u,  w = Ω (-y, x)."""
    return p.nu * d.laplacian(u) - d.advect((-p.omega * d.x[1], p.omega * d.x[0]), u)


def sine(x: Any, p: Any, rng: Any) -> Any:
    """u = sin x."""
    return np.sin(x[0])


def sine_and_speed(x: Any, p: Any, rng: Any) -> Any:
    """u = C + sin x."""
    return p.C + np.sin(x[0])


def falling_sine(x: Any, p: Any, rng: Any) -> Any:
    """u = C - sin πx."""
    return p.C - np.sin(np.pi * x[0])


def gaussian(x: Any, p: Any, rng: Any) -> Any:
    """u = exp(-2x²): variance 1/4."""
    return np.exp(-2 * x[0] ** 2)


def periodic_bell(x: Any, p: Any, rng: Any) -> Any:
    """u = exp(2 (cos(x - π) - 1))."""
    return np.exp(2 * (np.cos(x[0] - np.pi) - 1))


def bell_beside(x: Any, p: Any, rng: Any) -> Any:
    """u = exp(-|x - (1/2, 0)|² / 0.04)."""
    return np.exp(-((x[0] - 0.5) ** 2 + x[1] ** 2) / 0.04)


convection_diffusion = Case(
    name="transport_convection_diffusion", fields=("u",), grid=Grid(shape=(256,), extent=(TURN,)), rhs=convected,
    parameters={"c": Uniform(1.0, 50.0), "nu": Uniform(0.01, 0.1)}, initial=sine, duration=1.0, num_snapshots=20,
    scheme=RK4, accuracy=4,
    description="sin x on a circle, carried with c, spreading with nu; fourth order, "
    "RK4 (Mojgani et al. 2023). Cost: about 0.4 s on one core.",
)  # fmt: skip

convection = replace(
    convection_diffusion, name="transport_convection", parameters={"c": Uniform(1.0, 100.0)}, rhs=carried,
    description="sin x on a circle, carried with c and unchanged; fourth order, "
    "RK4 (Krishnapriyan et al. 2021). Cost: about 0.4 s on one core.",
)

stretching = Case(
    name="transport_stretching", fields=("u",), grid=Grid(shape=(256,), extent=(8.0,), origin=(-4.0,)), rhs=stretched,
    parameters={"nu": Uniform(0.01, 0.1), "rate": Uniform(-1.0, 1.0)}, initial=gaussian, boundary=Dirichlet(0.0),
    duration=1.0, num_snapshots=20, scheme=RK4, accuracy=4,
    description="A bump in a flow of speed rate·x, stretched or squeezed; fourth order, "
    "RK4 (Batchelor 1959). Cost: about 0.2 s on one core.",
)  # fmt: skip

reaction = Case(
    name="transport_reaction", fields=("u",), grid=Grid(shape=(256,), extent=(TURN,)), rhs=reacting,
    parameters={"c": Uniform(0.0, 50.0), "rho": Uniform(1.0, 5.0)}, initial=periodic_bell, duration=1.0,
    num_snapshots=20, scheme=RK4, accuracy=4,
    description="A bell that grows logistically while it is carried with c; fourth order, "
    "RK4 (Krishnapriyan et al. 2021). Cost: about 0.3 s on one core.",
)  # fmt: skip

burgers = Case(
    name="transport_burgers", fields=("u",), grid=Grid(shape=(512,), extent=(TURN,)), rhs=burgers_law,
    parameters={"nu": Uniform(0.01, 0.1), "C": Uniform(0.0, 70.0)}, initial=sine_and_speed, duration=1.0,
    num_snapshots=20, scheme=RK4, accuracy=4,
    description="C + sin x steepens into a shock that moves with C; fourth order, "
    "RK4 (Mojgani et al. 2023). Cost: about 1.3 s on one core.",
)  # fmt: skip

standing_shock = Case(
    name="transport_standing_shock", fields=("u",), grid=Grid(shape=(512,), extent=(2.0,), origin=(-1.0,)),
    parameters={"nu": Uniform(3e-3, 0.1), "C": Uniform(0.0, 70.0)}, initial=falling_sine, rhs=burgers_law, duration=1.0,
    num_snapshots=20, scheme=RK4, accuracy=4,
    description="-sin πx steepens into a shock that stands at 0 for C = 0; fourth order, "
    "RK4 (Basdevant et al. 1986). Cost: about 5 s on one core.",
)  # fmt: skip

breaking = Case(
    name="transport_breaking", fields=("u",), grid=Grid(shape=(512,), extent=(TURN,)), rhs=inviscid_law,
    parameters={"C": Uniform(0.0, 10.0)}, initial=sine_and_speed, duration=0.9, num_snapshots=18, scheme=RK4,
    accuracy=4,
    description="C + sin x without viscosity, until nine tenths of the time at which it breaks; fourth order, "
    "RK4 (LeVeque 2002). Cost: about 0.1 s on one core.",
)  # fmt: skip

rotation = Case(
    name="transport_rotation", fields=("u",), grid=Grid(shape=(96, 96), extent=(3.0, 3.0), origin=(-1.5, -1.5)),
    parameters={"omega": Uniform(1.0, TURN), "nu": Uniform(0.0, 5e-3)}, initial=bell_beside, rhs=turned,
    boundary=Dirichlet(0.0), duration=1.0, num_snapshots=20, scheme=RK4, accuracy=4,
    description="A bell that turns with a solid, up to once, and spreads with nu; fourth order, "
    "RK4 (Zalesak 1979). Cost: about 0.5 s on one core.",
)  # fmt: skip

case = burgers


def cole_hopf(x: np.ndarray, t: float, nu: float, primitive: Any, period: float) -> np.ndarray:
    """Return the solution of viscous Burgers on a circle at t > 0 by quadrature of Cole's and Hopf's formula.

    x : (points,), within one period of 0. primitive : antiderivative of the initial state without its mean.
    """
    y = np.linspace(-2 * period, 3 * period, 40_001)
    exponent = primitive(y) + (x[:, None] - y) ** 2 / (2 * t)
    weight = np.exp(-(exponent - exponent.min(axis=1, keepdims=True)) / (2 * nu))
    return ((x[:, None] - y) / t * weight).sum(axis=1) / weight.sum(axis=1)


def exact(name: str, x: tuple[np.ndarray, ...], t: float, p: Any) -> np.ndarray:
    """Return the exact solution of a case of this file at one time, shaped like x[0].

    Raises
    ------
    ValueError : the case has none here.
    """
    if name not in _EXACT:
        raise ValueError(f"Case {name!r} has no exact solution here; there is {', '.join(_EXACT)}.")
    return _EXACT[name](x, t, p)


def _spreading(x: Any, t: float, p: Any) -> np.ndarray:
    growth = np.expm1(-2 * p.rate * t) / -p.rate if p.rate else 2 * t
    variance = 0.25 + p.nu * growth
    return np.sqrt(0.25 / variance) * np.exp(-((x[0] * np.exp(-p.rate * t)) ** 2) / (2 * variance))


def _grown(x: Any, t: float, p: Any) -> np.ndarray:
    start = periodic_bell((x[0] - p.c * t,), p, None)
    return start * np.exp(p.rho * t) / (1 - start + start * np.exp(p.rho * t))


def _steepened(x: Any, t: float, p: Any) -> np.ndarray:
    moved = (x[0] - p.C * t + np.pi) % TURN - np.pi
    if t == 0:
        return p.C + np.sin(moved)
    return p.C + cole_hopf(moved, t, p.nu, lambda y: -np.cos(y), TURN)


def _stood(x: Any, t: float, p: Any) -> np.ndarray:
    moved = (x[0] - p.C * t + 1) % 2 - 1
    if t == 0:
        return p.C - np.sin(np.pi * moved)
    return p.C + cole_hopf(moved, t, p.nu, lambda y: np.cos(np.pi * y) / np.pi, 2.0)


def _unbroken(x: Any, t: float, p: Any) -> np.ndarray:
    moved = (x[0] - p.C * t + np.pi) % TURN - np.pi
    low, high = moved - t - 1e-12, moved + t + 1e-12
    for _ in range(80):  # X + t sin X grows with X until it breaks
        middle = 0.5 * (low + high)
        below = middle + t * np.sin(middle) < moved
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return p.C + np.sin(0.5 * (low + high))


def _turned_back(x: Any, t: float, p: Any) -> np.ndarray:
    c, s, wider = np.cos(p.omega * t), np.sin(p.omega * t), 1 + 100 * p.nu * t
    back = (c * x[0] + s * x[1], c * x[1] - s * x[0])
    return bell_beside((0.5 + (back[0] - 0.5) / np.sqrt(wider), back[1] / np.sqrt(wider)), p, None) / wider


_EXACT = {
    convection_diffusion.name: lambda x, t, p: np.exp(-p.nu * t) * np.sin(x[0] - p.c * t),
    convection.name: lambda x, t, p: np.sin(x[0] - p.c * t),
    stretching.name: _spreading, reaction.name: _grown, burgers.name: _steepened, standing_shock.name: _stood,
    breaking.name: _unbroken, rotation.name: _turned_back,
}  # fmt: skip
