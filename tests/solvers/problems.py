"""Small cases that the tests of the solvers share."""

import numpy as np

from headrace.solvers import Case, Dirichlet, Grid, MemorySink, Neumann, Parameters, Periodic, Uniform
from headrace.solvers.blocks import Blocks
from headrace.solvers.right_hand_side import RightHandSide, right_hand_side
from headrace.solvers.simulate import simulate


def make_case(**changes) -> Case:
    """Fisher-KPP on a periodic rectangle, with anything replaced."""
    given = dict(
        name="fisher", fields=("u",), grid=Grid(shape=(20, 14), extent=(1.0, 0.7)), boundary=Periodic(),
        parameters={"nu": Uniform(1e-3, 1e-1), "r": Uniform(1.0, 5.0)}, initial=bump, rhs=fisher,
        duration=0.1, num_snapshots=4,
    )  # fmt: skip
    return Case(**{**given, **changes})


def bump(x, p, rng):
    """A smooth bump that is different in every direction."""
    return 0.5 + 0.4 * sum(np.sin(2 * np.pi * c / (1.0 - 0.3 * i)) / (1 + i) for i, c in enumerate(x))


def fisher(u, d, p, t):
    """∂u/∂t = ν ∇²u + r u (1 - u)."""
    return p.nu * d.laplacian(u) + p.r * u * (1 - u)


def diffusion(u, d, p, t):
    """The stiff part of Fisher-KPP, ν ∇²u."""
    return p.nu * d.laplacian(u)


def gray_scott(u, d, p, t):
    """∂a/∂t = ν ∇²a - a b² + r (1 - a),  ∂b/∂t = ν/2 ∇²b + a b² - b/2."""
    a, b = u
    return p.nu * d.laplacian(a) - a * b * b + p.r * (1 - a), 0.5 * p.nu * d.laplacian(b) + a * b * b - 0.5 * b


def two_bumps(x, p, rng):
    """Two fields."""
    return bump(x, p, rng), 0.3 * bump(x[::-1], p, rng)


def everything(u, d, p, t):
    """Every operator of the vocabulary at once, ghost layers two deep."""
    k = 1 + np.where(u > 0.5, u, 0.5) ** 2
    wind = (np.sin(d.x[0]) + 0.2, -0.5, 0.3)[: len(d.x)]
    total = d.diffuse(k, u) + d.div(d.grad(u)) - d.advect(wind, u) - d.upwind(wind, u)
    return p.nu * total + d.derivative(u, 0, order=2) * 0.01 + d.mean(u) - np.tanh(u) * p.r + t


def arithmetic(u, d, p, t):
    """Nested and mixed operators in pure arithmetic, which is the same in every bit on any block."""
    k = 1 + np.where(u > 0.5, u, 0.5) ** 2
    wind = (d.x[0] * (1 - d.x[-1]) + 0.2, -0.5, 0.3)[: len(d.x)]
    return p.nu * (d.diffuse(k, u) + d.div(d.grad(u)) - d.advect(wind, u) - d.upwind(wind, u)) - u * u * u + t


def regions(u, d, p, t):
    """Two materials, and conditions that count as numbers."""
    inside = (d.x[0] > 0.32) & ~(u > 0.9) | np.logical_not(u > 0.1)
    return np.where(np.equal(inside, 1), 0.1, 1.3) * u + ((u > 0.4) + (u > 0.6)) * u - 2.0 * (t < inside)


def transport(u, d, p, t):
    """High-order and non-local operators at once: a vorticity equation with a flow of its own."""
    wind = d.curl(d.inverse_laplacian(u[0]))
    return p.nu * d.laplacian(u) - d.weno(wind, u[0]) - 0.1 * d.weno_div((u[0] * u[0], u[0]), 2.0, u[0])


def stirred(u, d, p, t):
    """The same flow by central differences, whose result does not hang on the last digits."""
    return p.nu * d.laplacian(u) - d.advect(d.curl(d.inverse_laplacian(u[0])), u[0])


def everywhere(ndim: int) -> dict:
    """Walls of every kind, with values that depend on place, parameters and time."""
    moving = Dirichlet(lambda x, p, t: p.nu + t + 0.1 * np.sin(3 * x[-1]))
    flux = Neumann(lambda x, p, t: 0.2 * x[0] - t)
    return {axis: pair for axis, pair in zip("xyz"[:ndim], ((moving, flux), (flux, 0.3), (0.1, moving)), strict=False)}


def mixed_boundary(ndim: int) -> dict:
    """Return walls of every kind as a boundary."""
    sides = everywhere(ndim)
    return {
        axis: tuple(side if isinstance(side, Dirichlet | Neumann) else Dirichlet(side) for side in pair)
        for axis, pair in sides.items()
    }


def walls_of_each_field() -> dict:
    """Return walls of its own kind for each of two fields."""
    return {"a": mixed_boundary(2), "b": {"x": (Neumann(0.1), Dirichlet(lambda x, p, t: p.nu * x[1])), "y": Neumann()}}


def serial_rhs(case: Case, parameters: Parameters, state: np.ndarray) -> RightHandSide:
    """Return f of a case on one block; state : (fields, *grid)."""
    return right_hand_side(case, parameters, Blocks(case.grid.shape, case.periodic), state)


def run(case: Case, parameters=None, **kwargs) -> MemorySink:
    """Simulate into memory."""
    sink = MemorySink()
    simulate(case, case.accept(parameters or {}), sink, **kwargs)
    return sink


def orders(errors: list[float]) -> np.ndarray:
    """Return observed orders between successive halvings."""
    errors = np.array(errors)
    return np.log2(errors[:-1] / errors[1:])
