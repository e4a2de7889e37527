"""Incompressible Navier-Stokes on a staggered grid, in two and three dimensions, on MPI ranks.

    ∂u/∂t + ∇·(u u) = -∇p + ν ∇²u + g,   ∇·u = 0

Walls, moving lids, inflow, outflow and solid obstacles: see mac_grid. Every stage of a step is projected on the
fields without divergence, directly; so the schemes keep their order in time, and ∇·u = 0 to rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .blocks import Blocks, Exchange
from .case import Case
from .mac_grid import Edge, MacGrid, Solid
from .mac_operators import convection, divergence, laplacian, library_of, slope
from .mac_pressure import PressureLayer, pressure_solver
from .newton import DivergenceError
from .parameters import Parameters
from .scheme import SSPRK3, RungeKutta
from .sink import Snapshot
from .transforms import Ends, slabs

if TYPE_CHECKING:
    from mpi4py import MPI

Force = Callable[[tuple[Any, ...], float], Sequence[Any]]

_CELLS_AT_A_TIME = 16_384
"""Cells of one pass over the right-hand side: a component of them takes 128 KiB."""

_IMBALANCE = 1e-9
"""Allowed mean divergence relative to max|u|/h in a box without outflow."""


def momentum(grid: MacGrid, padded: Any, *, viscosity: Any, force: Force | None, t: float) -> Any:
    """Return -∇·(u u) + ν ∇²u + g on all faces, (ndim, *lead, n + 2, ...) -> (ndim, *lead, n, ...).

    The one formula for solver and physics loss, for arrays and tensors.
    """
    inner = padded[(..., *[slice(1, -1)] * grid.ndim)]
    if isinstance(padded, np.ndarray):
        result = np.empty(inner.shape)
        # A few planes at a time: the temporaries stay in the cache.
        rows = max(1, _CELLS_AT_A_TIME // math.prod(inner.shape[-grid.ndim + 1 :]))
        rest = (slice(None),) * (grid.ndim - 1)
        for start in range(0, inner.shape[-grid.ndim], rows):
            part = padded[(..., slice(start, start + rows + 2), *rest)]
            convection(part, grid.spacing, out=result[(..., slice(start, start + rows), *rest)])
            result[(..., slice(start, start + rows), *rest)] += viscosity * laplacian(part, grid.spacing)
    else:
        result = convection(padded, grid.spacing) + viscosity * laplacian(padded, grid.spacing)
    if grid.friction is not None:
        result = result - viscosity * grid.constant(grid.friction, inner) * inner
    if force is None:
        return result
    parts = []
    for component in range(grid.ndim):
        x = tuple(grid.constant(line, padded, lead=False) for line in grid.coordinates(component))
        parts.append(0 * inner[component] + force(x, t)[component])
    return result + library_of(padded).stack(parts)


class SlabFlow:
    """A velocity field on slabs over MPI ranks, (ndim, *slab): its tendency and its projection.

    Its methods are collective.
    """

    def __init__(
        self, case: Case, p: Parameters, blocks: Blocks, *, viscosity: float, force: Force | None, solid: Solid | None
    ) -> None:
        self.grid = MacGrid(case, blocks.where, solid)
        self.layer = PressureLayer(self.grid, blocks)
        self._p, self._viscosity, self._force = p, viscosity, force
        self._buffer = np.zeros((self.grid.ndim, *(n + 2 for n in blocks.shape)))
        self._exchange = Exchange(blocks, self._buffer, 1)
        self._solver = pressure_solver(self.grid, self.layer)
        self._ends = [
            (axis, end) for axis in range(self.grid.ndim) for end in (0, 1) if self.grid.at_side(axis, end)
        ]

    def padded(self, u: np.ndarray, t: float) -> np.ndarray:
        """Return u with ghost layers, (ndim, *slab + 2), valid until the next call."""
        self._buffer[(slice(None), *[slice(1, -1)] * self.grid.ndim)] = u
        for axis in range(self.grid.ndim):
            self._exchange.fill(axis)
            lead = (slice(None),) * axis
            for _, end in (pair for pair in self._ends if pair[0] == axis):
                for component in range(self.grid.ndim):
                    v = self._buffer[component]
                    target, near, second = ((0, 1, 2), (-1, -2, -3))[end]
                    value = self.grid.wall_value(component, axis, end, self._p, t, v)
                    value = _layer_of(value, axis)
                    v[(*lead, target)] = self.grid.ghost(
                        component, axis, end, value, v[(*lead, near)], v[(*lead, second)]
                    )
        return self._buffer

    def tendency(self, u: np.ndarray, t: float) -> np.ndarray:
        """Return -∇·(u u) + ν ∇²u + g on the faces that move freely, 0 on the others."""
        result = momentum(self.grid, self.padded(u, t), viscosity=self._viscosity, force=self._force, t=t)
        result *= self.grid.free
        return result

    def with_walls(self, u: np.ndarray, t: float) -> np.ndarray:
        """Return u with obstacles at rest and the given normal velocity on upper walls."""
        u = u * self.grid.free
        for axis, end in self._ends:
            if end == 1 and self.grid.edges[axis][1] is Edge.WALL:
                value = _layer_of(self.grid.wall_value(axis, axis, 1, self._p, t, u), axis)
                if np.ndim(value):
                    value = value[tuple(slice(1, -1) if n > 1 else slice(None) for n in value.shape)]
                u[(axis, *[slice(None)] * axis, -1)] = value
        return u

    def projected(self, u: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the part of u without divergence, with the walls of time t, and the potential φ: u = part + ∇φ."""
        u = self.with_walls(u, t)
        phi = self._solver.solve(divergence(self.padded(u, t), self.grid.spacing))
        padded = self.layer.padded(phi)
        for axis in range(self.grid.ndim):
            part = slope(padded, axis, self.grid.spacing)
            part *= self.grid.free[axis]
            u[axis] -= part
        return u, phi

    def pressure(self, u: np.ndarray, t: float) -> np.ndarray:
        """Return the pressure that keeps u without divergence, for walls whose normal velocity is steady."""
        tendency = self.tendency(u, t)
        padded = self._buffer
        padded[...] = 0.0
        padded[(slice(None), *[slice(1, -1)] * self.grid.ndim)] = tendency
        for axis in range(self.grid.ndim):
            self._exchange.fill(axis)
        return self._solver.solve(divergence(padded, self.grid.spacing))

    def rate(self, u: np.ndarray, t: float) -> float:
        """Return Σ max|u_a|/h_a + 4ν Σ 1/h_a², walls included; at least sqrt(Σ max|g_a|/h_a).

        The last is for a fluid at rest, which a force moves within the step.
        """
        spacing = np.array(self.grid.spacing)
        largest = [np.abs(self.padded(u, t)).reshape(self.grid.ndim, -1).max(axis=1)]
        if self._force is not None:
            points = map(tuple, map(self.grid.coordinates, range(self.grid.ndim)))
            largest.append([np.abs(self._force(x, t)[c]).max() for c, x in enumerate(points)])
        fastest, *pushed = self.layer.blocks.max(np.array(largest, dtype=float)) / spacing
        rate = fastest.sum() + 4 * self._viscosity * (1 / spacing**2).sum()
        return float(max(rate, *(math.sqrt(push.sum()) for push in pushed), 0.0))

    def require_balance(self, u: np.ndarray, t: float) -> None:
        """Raise ValueError where more flows in through the walls than out."""
        if Ends.NEUMANN_DIRICHLET in self.grid.ends:
            return
        u = self.with_walls(u, t)
        mean = float(self.layer.blocks.sum(np.array([divergence(self.padded(u, t), self.grid.spacing).sum()]))[0])
        mean /= math.prod(self.layer.blocks.grid_shape)
        if abs(mean) > _IMBALANCE * max(self.rate(u, t), 1e-300):
            raise ValueError(
                f"The normal velocities at the walls do not balance: the mean divergence is {mean:.3g}. Correct "
                "them, or give an upper side an outflow: Neumann for the velocity, Dirichlet(0) for the pressure."
            )

    def free(self) -> None:
        """Give back what MPI holds."""
        self._exchange.free()
        self.layer.free()


def _layer_of(value: Any, axis: int) -> Any:
    """Return a wall value without the axis across the wall."""
    return value.squeeze(axis) if np.ndim(value) else value


@dataclass(frozen=True, kw_only=True)
class MacMidpoint:
    """The implicit midpoint rule with the new pressure:  (u' - u)/dt = N((u + u')/2, t + dt/2) - ∇p',  ∇·u' = 0.

    N is `momentum`. Second order; solved by iterating, for steps within the limits of an explicit method. `residual`
    is what a physics loss minimises; for a scheme of the solver set it as the case's `scheme`.
    tolerance : of the iteration, relative to max|u|.
    """

    tolerance: float = 1e-13
    max_iterations: int = 100
    stable_radius: float = 1.0

    def step(self, flow: SlabFlow, u: np.ndarray, t: float, dt: float) -> tuple[np.ndarray, np.ndarray]:
        """Return velocity and pressure after dt. Collective.

        Raises
        ------
        DivergenceError : the iteration does not converge.
        """
        new = u
        for _ in range(self.max_iterations):
            previous = new
            new, phi = flow.projected(u + dt * flow.tendency(0.5 * (u + new), t + 0.5 * dt), t + dt)
            change, size = flow.layer.largest(new - previous), flow.layer.largest(new)
            if not math.isfinite(change):
                break
            if change <= self.tolerance * size:
                return new, phi / dt
        raise DivergenceError(
            f"the implicit midpoint step of {dt:.3g} did not converge in {self.max_iterations} iterations at "
            f"t = {t:.6g}; take a larger steps_per_snapshot"
        )


MAC_MIDPOINT = MacMidpoint()


def runge_kutta_step(flow: SlabFlow, scheme: RungeKutta, u: np.ndarray, t: float, dt: float) -> np.ndarray:
    """Return u after dt by an explicit method, every stage without divergence. Collective."""
    slopes: list[np.ndarray] = []
    for node, row in zip(scheme.nodes, scheme.matrix, strict=True):
        stage = flow.projected(_advanced(u, dt, row, slopes), t + node * dt)[0] if slopes else u
        slopes.append(flow.tendency(stage, t + node * dt))
    return flow.projected(_advanced(u, dt, scheme.weights, slopes), t + dt)[0]


def _advanced(u: np.ndarray, dt: float, weights: Sequence[float], slopes: Sequence[np.ndarray]) -> np.ndarray:
    for weight, k in zip(weights, slopes, strict=True):
        if weight:
            u = u + (dt * weight) * k
    return u


def solve_mac(
    case: Case, p: Parameters, comm: MPI.Comm | None, rng: np.random.Generator, *,
    viscosity: float, force: Force | None = None, solid: Solid | None = None,
) -> Iterator[Snapshot]:  # fmt: skip
    """Yield velocity and pressure at the times of a case. Collective.

    `case.initial` is called with the points of each velocity component and must return all fields; the velocity is
    projected, the pressure is computed. `case.scheme` is an explicit Runge-Kutta method, SSPRK3 if None, or
    `MAC_MIDPOINT`; without `case.steps_per_snapshot` every step is as long as is stable.

    Parameters
    ----------
    viscosity : ν.
    force : function (x, t) -> one acceleration per component.
    solid : function (x) -> whether cell centres lie in an obstacle.

    Raises
    ------
    ValueError : the case does not fit a staggered grid, or its walls do not balance, or there are too many ranks.
    DivergenceError : a step found no solution.
    """
    scheme = case.scheme or SSPRK3
    if not isinstance(scheme, RungeKutta | MacMidpoint):
        raise ValueError(
            f"Case {case.name}: {scheme!r} is no scheme of the staggered solver; take an explicit Runge-Kutta method "
            "such as SSPRK3, or MAC_MIDPOINT."
        )
    blocks = slabs(case.grid.shape, case.periodic, comm)
    flow = SlabFlow(case, p, blocks, viscosity=viscosity, force=force, solid=solid)
    try:
        u = initial_velocity(case, p, blocks, rng)
        flow.require_balance(u, 0.0)
        u, _ = flow.projected(u, 0.0)
        yield _snapshot(0, 0.0, u, flow.pressure(u, 0.0), blocks)
        for index, time in enumerate(case.times[1:], start=1):
            u, pressure = _interval(flow, scheme, u, case.times[index - 1 : index + 1], case.steps_per_snapshot)
            yield _snapshot(index, float(time), u, pressure, blocks)
    finally:
        flow.free()


def _interval(
    flow: SlabFlow, scheme: RungeKutta | MacMidpoint, u: np.ndarray, times: np.ndarray, steps: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return velocity and pressure at the second of two times."""
    t, end = float(times[0]), float(times[1])
    pressure, done = None, 0
    while True:
        if steps is None:
            rate = flow.rate(u, t)
            if not math.isfinite(rate):
                raise DivergenceError(f"the velocity or the force is not finite at t = {t:.6g}")
            left = max(1, math.ceil((end - t) * rate / (0.8 * scheme.stable_radius)))
        else:
            left = steps - done
        dt = (end - t) / left
        if isinstance(scheme, MacMidpoint):
            u, pressure = scheme.step(flow, u, t, dt)
        else:
            u = runge_kutta_step(flow, scheme, u, t, dt)
        done += 1
        t = end if left == 1 else t + dt
        if left == 1:
            return u, flow.pressure(u, t) if pressure is None else pressure


def _snapshot(step: int, time: float, u: np.ndarray, pressure: np.ndarray, blocks: Blocks) -> Snapshot:
    return Snapshot(step=step, time=time, values=np.concatenate([u, pressure[None]]), where=blocks.where)


def initial_velocity(case: Case, p: Parameters, blocks: Blocks, rng: np.random.Generator) -> np.ndarray:
    """Return the initial velocity of a block at its faces, (ndim, *block), not yet without divergence.

    Every component takes the same random numbers: a random field is one function at all faces.
    """
    whole = MacGrid(case, [slice(0, n) for n in case.grid.shape])
    result = np.empty((case.grid.ndim, *blocks.shape))
    for component, target in enumerate(result):
        x = tuple(np.broadcast_to(line, case.grid.shape) for line in whole.coordinates(component))
        fields = case.initial(x, p, copy.deepcopy(rng))
        if len(fields) != len(case.fields):
            raise ValueError(
                f"Case {case.name}: initial returned {len(fields)} fields; return one array for each of {case.fields}."
            )
        target[...] = np.broadcast_to(np.asarray(fields[component], dtype=float), case.grid.shape)[blocks.where]
    return result
