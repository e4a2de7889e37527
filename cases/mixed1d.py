"""The one-dimensional family of the message-passing paper (Brandstetter, Worrall and Welling 2022): E1, E2 and E3.

    ∂u/∂t + ∂/∂x (α u²/2 - β ∂u/∂x + γ ∂²u/∂x²) = δ(x, t),   δ = Σ_j A_j sin(ω_j t + 2π l_j x / L + φ_j),   u0 = δ(x, 0)

on a periodic line of length 16, as the published program solves it: u²/2 where the paper writes u², thus α up to 6
for the paper's 3, and a duration of 2 for E3. 200 points are its reference resolution. All twenty numbers of the
forcing are parameters, because it acts during the whole simulation.
    headrace solve mixed_e3 --set alpha=3 --output one.h5
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headrace.solvers import Case, Grid, Uniform
from headrace.solvers.exponential import ETDRK4
from headrace.solvers.parameters import Integers, Vector
from headrace.solvers.scheme import SSPRK3

LENGTH = 16.0


def forcing(x: Any, p: Any, t: Any) -> Any:
    """δ(x, t), a sum of five waves that travel slowly."""
    waves = zip(p.amplitude, p.omega, p.waves, p.phase, strict=True)
    return sum(a * np.sin(omega * t + 2 * np.pi / LENGTH * number * x + phase) for a, omega, number, phase in waves)


def initial(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """u0 = δ(x, 0)."""
    return forcing(x[0], p, 0.0)


def transport(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + ∂(u²/2)/∂x = δ(x, t)."""
    return forcing(d.x[0], p, t) - d.weno_div(u * u / 2, abs(u), u)


def with_diffusion(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + ∂/∂x (u²/2 - β ∂u/∂x) = δ(x, t)."""
    return transport(u, d, p, t) + diffusion(u, d, p, t)


def diffusion(u: Any, d: Any, p: Any, t: Any) -> Any:
    """The stiff part, β ∂²u/∂x²."""
    return p.beta * d.derivative(u, 0, order=2)


def mixed(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + ∂/∂x (α u²/2 - β ∂u/∂x + γ ∂²u/∂x²) = δ(x, t)."""
    flux = d.weno_div(p.alpha * u * u / 2, abs(p.alpha * u), u)
    return forcing(d.x[0], p, t) - flux + dispersion(u, d, p, t)


def dispersion(u: Any, d: Any, p: Any, t: Any) -> Any:
    """The stiff part, β ∂²u/∂x² - γ ∂³u/∂x³."""
    return p.beta * d.derivative(u, 0, order=2) - p.gamma * d.derivative(u, 0, order=3)


WAVES = {
    # With a free phase the same waves as amplitudes in [-1/2, 1/2], and no zero in the middle.
    "amplitude": Vector.of(Uniform(0.0, 0.5), 5),
    "omega": Vector.of(Uniform(-0.4, 0.4), 5),
    "waves": Vector.of(Integers(1, 2), 5),
    "phase": Vector.of(Uniform(0.0, 2 * np.pi), 5),
}

e1 = Case(
    name="mixed_e1",
    fields=("u",),
    grid=Grid(shape=(200,), extent=(LENGTH,)),
    parameters=WAVES,
    initial=initial,
    rhs=transport,
    duration=4.0,
    # The published data have 250 times, the initial state among them.
    num_snapshots=249,
    # |u| is 3 at most, so that |u| dt / h stays below 0.3.
    steps_per_snapshot=2,
    scheme=SSPRK3,
    accuracy=4,
    description="Burgers without diffusion under random forcing, E1; WENO5, SSPRK3 (Brandstetter et al. 2022). "
    "Cost: about 1 s on one core.",
)

e2 = replace(
    e1,
    name="mixed_e2",
    parameters={"beta": Uniform(0.0, 0.2), **WAVES},
    rhs=with_diffusion,
    stiff=diffusion,
    scheme=ETDRK4,
    description="Burgers with diffusion beta under random forcing, E2; WENO5, ETDRK4 (Brandstetter et al. 2022). "
    "Cost: about 2 s on one core.",
)

e3 = replace(
    e1,
    name="mixed_e3",
    parameters={"alpha": Uniform(0.0, 6.0), "beta": Uniform(0.1, 0.4), "gamma": Uniform(0.0, 1.0), **WAVES},
    rhs=mixed,
    stiff=dispersion,
    duration=2.0,
    # |α u| is up to 15: 3 steps a snapshot keep |α u| dt / h near 0.5.
    steps_per_snapshot=3,
    scheme=ETDRK4,
    description="Transport alpha, diffusion beta and dispersion gamma under random forcing, E3; WENO5, ETDRK4 "
    "(Brandstetter et al. 2022). Cost: about 3 s on one core.",
)

case = e3
