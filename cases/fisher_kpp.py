"""Fisher-KPP: a population that grows and spreads in fronts of speed 2 √(r ν).

    mpirun -n 2 headrace solve fisher_kpp --set nu=0.005 --output one.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.solvers import Case, Grid, LogUniform, Uniform


def fisher_kpp(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂u/∂t = ν ∇²u + r u (1 - u)."""
    return p.nu * d.laplacian(u) + p.r * u * (1 - u)


def colony(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """One colony at (x0, 1/2)."""
    return np.exp(-((x[0] - p.x0) ** 2 + (x[1] - 0.5) ** 2) / 0.01)


case = Case(
    name="fisher_kpp",
    fields=("u",),
    grid=Grid(shape=(64, 64), extent=(1.0, 1.0)),
    parameters={"nu": LogUniform(1e-3, 1e-2), "r": Uniform(1.0, 10.0), "x0": Uniform(0.3, 0.7)},
    initial=colony,
    rhs=fisher_kpp,
    duration=1.0,
    num_snapshots=50,
    description="Fronts of a growing population on a periodic plane, diffusion nu, growth r; SSPRK3 (Fisher 1937). "
    "Cost: about 0.2 s on one core.",
)
