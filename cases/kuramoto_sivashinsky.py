"""The Kuramoto-Sivashinsky equation: the simplest chaos in space and time.

    headrace solve kuramoto_sivashinsky --set nu=1 --output one.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.solvers import Case, Grid, Uniform
from headrace.solvers.exponential import ETDRK4
from headrace.solvers.parameters import Seed


def kuramoto_sivashinsky(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t + u ∂u/∂x + ∂²u/∂x² + ν ∂⁴u/∂x⁴ = 0."""
    return linear(u, d, p, t) - 0.5 * d.derivative(u * u, 0)


def linear(u: Any, d: Any, p: Any, t: Any) -> Any:
    """The stiff part, -∂²u/∂x² - ν ∂⁴u/∂x⁴."""
    return -d.derivative(u, 0, order=2) - p.nu * d.derivative(u, 0, order=4)


def random_waves(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """u0 : eight waves with random amplitudes and phases, without mean."""
    waves = np.arange(1, 9)[:, None]
    amplitudes, phases = rng.normal(size=(8, 1)), rng.uniform(0, 2 * np.pi, size=(8, 1))
    return 0.3 * np.sum(amplitudes * np.sin(2 * np.pi * waves * x[0] / LENGTH + phases), axis=0)


LENGTH = 64.0

case = Case(
    name="kuramoto_sivashinsky",
    fields=("u",),
    grid=Grid(shape=(256,), extent=(LENGTH,)),
    parameters={"nu": Uniform(0.7, 1.3), "state": Seed()},
    initial=random_waves,
    rhs=kuramoto_sivashinsky,
    stiff=linear,
    duration=100.0,
    num_snapshots=200,
    # dt = 0.1: off by 2e-4 after 20 units of time, in which neighbouring states part by a factor of ten.
    steps_per_snapshot=5,
    scheme=ETDRK4,
    accuracy="spectral",
    description="Chaos on a periodic line, random state, hyperviscosity nu; spectral, ETDRK4 "
    "(Kuramoto and Tsuzuki 1976, Sivashinsky 1977). Cost: about 2 s on one core.",
)
