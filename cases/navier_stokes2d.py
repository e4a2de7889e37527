"""Two-dimensional turbulence on a torus: the Navier-Stokes data of the Fourier neural operator (Li et al. 2021).

Three cases: `case`, solved by spectra; `differences`, by second-order differences whose residual a physics loss can
take; `recipe`, the published data set with its own time stepping.

    mpirun -n 2 headrace solve navier_stokes2d --set nu=1e-4 --output one.h5
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from headrace.solvers import Case, Grid, LogUniform, Parameters, Snapshot
from headrace.solvers.navier_stokes_residual import SpectralResidual
from headrace.solvers.navier_stokes_spectral import CRANK_NICOLSON_EULER, solve_vorticity
from headrace.solvers.parameters import Seed
from headrace.solvers.random_fields import gaussian_random_field
from headrace.solvers.vorticity import IMPLICIT_MIDPOINT, solve_vorticity_by_differences

if TYPE_CHECKING:
    from mpi4py import MPI


def stirring(x: tuple[np.ndarray, ...]) -> np.ndarray:
    """f = 0.1 (sin 2π(x + y) + cos 2π(x + y)), the same for all simulations."""
    phase = 2 * np.pi * (x[0] + x[1])
    return 0.1 * (np.sin(phase) + np.cos(phase))


def random_vorticity(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> np.ndarray:
    """ω0 ~ N(0, 7³ (-∇² + 49)^(-2.5)), E[ω0²] = 0.0343."""
    return gaussian_random_field(x[0].shape, rng)


def navier_stokes(
    case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
) -> Iterator[Snapshot]:
    """∂ω/∂t + u·∇ω = ν ∇²ω + f,  u = (∂ψ/∂y, -∂ψ/∂x),  ∇²ψ = -ω."""
    return solve_vorticity(case, p, comm, rng, viscosity=p.nu, forcing=stirring)


def spectral_correction(case: Case) -> Callable[..., Any]:
    """Return what is missing of a state to the one that ETDRK4 reaches from the old one, in steps of at most 0.04.

    Where the case says how many steps the solver takes, these are the same. The old state is taken as given, without a
    gradient: the error of a state is not laid at its predecessor's door.
    """
    residual = SpectralResidual(case, forcing=stirring)

    def correction(old: Any, new: Any, t: Any, dt: float, p: Parameters) -> Any:
        old = old.detach() if hasattr(old, "detach") else old
        steps = case.steps_per_snapshot or math.ceil(dt / 0.04)
        return dt * residual(old, new, dt, viscosity=p.nu, steps=steps)

    return correction


def navier_stokes_by_recipe(
    case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
) -> Iterator[Snapshot]:
    """∂ω/∂t + u·∇ω = ν ∇²ω + f,  explicit Euler for u·∇ω - f, Crank-Nicolson for ν ∇²ω."""
    return solve_vorticity(
        case, p, comm, rng, viscosity=p.nu, forcing=stirring, integrator=CRANK_NICOLSON_EULER
    )


def navier_stokes_by_differences(
    case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator
) -> Iterator[Snapshot]:
    """∂ω/∂t + J(ω, ψ) = ν ∇²ω + f,  ∇²ψ = -ω,  Arakawa's J, implicit midpoint in time."""
    return solve_vorticity_by_differences(case, p, comm, rng, viscosity=p.nu, forcing=stirring)


case = Case(
    name="navier_stokes2d",
    fields=("vorticity",),
    grid=Grid(shape=(64, 64), extent=(1.0, 1.0)),
    parameters={"nu": LogUniform(1e-5, 1e-3), "vorticity0": Seed()},
    initial=random_vorticity,
    solver=navier_stokes,
    correction=spectral_correction,
    duration=20.0,
    num_snapshots=20,
    description="2-D Navier-Stokes on a torus, random vorticity, viscosity nu; pseudo-spectral, ETDRK4 "
    "(Li et al. 2021). Cost: about 1 s on one core.",
)

recipe = replace(
    case,
    name="navier_stokes2d_recipe",
    grid=Grid(shape=(256, 256), extent=(1.0, 1.0)),
    solver=navier_stokes_by_recipe,
    correction=None,
    # The published step, 1e-4; records at t = 0, 1, 2, ..., of which the data sets keep every fourth point.
    steps_per_snapshot=10_000,
    description="The published Navier-Stokes data set with its own step and its first-order integrator "
    "(Li et al. 2021). Cost: about 18 minutes on one core.",
)

differences = replace(
    case,
    name="navier_stokes2d_differences",
    solver=navier_stokes_by_differences,
    correction=None,
    scheme=IMPLICIT_MIDPOINT,
    description="2-D Navier-Stokes on a torus by second-order differences, implicit midpoint (Arakawa 1966). "
    "Cost: about 2 s on one core.",
)
