"""The residual of the staggered scheme on whole grids, for arrays and tensors: what a physics loss minimises.

It is the defect of `mac.MacMidpoint`, with the same formulas: a trajectory of the solver makes it vanish.
"""

from __future__ import annotations

from typing import Any

from .case import Case
from .mac import Force, momentum
from .mac_grid import Edge, MacGrid, Solid
from .mac_operators import divergence, gradient, library_of


class MacResidual:
    """The defect of the implicit midpoint rule for states (fields, *batch, *grid), velocity components then pressure.

    force, solid : as `mac.solve_mac` takes them.
    """

    def __init__(self, case: Case, *, force: Force | None = None, solid: Solid | None = None) -> None:
        self.grid = MacGrid(case, [slice(0, n) for n in case.grid.shape], solid)
        self._force = force

    def __call__(self, old: Any, new: Any, t: float, dt: float, *, viscosity: Any, p: Any) -> Any:
        """Return the defect of momentum at every face and the divergence of every cell, the shape of a state.

            (u' - u)/dt - N((u + u')/2, t + dt/2) + ∇p',    ∇·u'

        On walls and obstacles, where the velocity is given, the first is (u' - given)/dt.

        old, new : at t and t + dt; the pressure of `old` is not used.
        viscosity, p : ν and the parameters of the boundary values; per sample with axes for the batch.
        """
        grid, u, new_u = self.grid, old[:-1], new[:-1]
        middle = self.padded(0.5 * (u + new_u), p, t + 0.5 * dt)
        defect = (new_u - u) * (1 / dt) - momentum(
            grid, middle, viscosity=viscosity, force=self._force, t=t + 0.5 * dt
        )
        defect = defect + gradient(self._padded_pressure(new[-1]), grid.spacing)
        free = grid.constant(grid.free, new_u)
        defect = free * defect + (1 - free) * (new_u - self._given(new_u, p, t + dt)) * (1 / dt)
        parts = [*(defect[c] for c in range(grid.ndim)), divergence(self.padded(new_u, p, t + dt), grid.spacing)]
        return library_of(new).stack(parts)

    def padded(self, u: Any, p: Any, t: float) -> Any:
        """Return the velocity with one ghost layer, (ndim, *batch, *grid + 2), without writing in place."""
        grid, concatenate = self.grid, library_of(u).concatenate
        for axis in range(grid.ndim):
            lane = axis - grid.ndim
            if grid.edges[axis][0] is Edge.PERIODIC:
                u = concatenate([_layer(u, lane, -1), u, _layer(u, lane, 0)], lane)
                continue
            parts = []
            for component in range(grid.ndim):
                v = u[component]
                ghosts = []
                for end in (0, 1):
                    value = self._cropped(grid.wall_value(component, axis, end, p, t, v), axis)
                    near, second = (_layer(v, lane, 0), _layer(v, lane, 1)) if end == 0 else (
                        _layer(v, lane, -1), _layer(v, lane, -2)
                    )  # fmt: skip
                    ghosts.append(grid.ghost(component, axis, end, value, near, second))
                parts.append(concatenate([ghosts[0], v, ghosts[1]], lane))
            u = library_of(u).stack(parts)
        return u

    def _padded_pressure(self, phi: Any) -> Any:
        for axis, (low, high) in enumerate(self.grid.edges):
            lane = axis - self.grid.ndim
            first, last = _layer(phi, lane, 0), _layer(phi, lane, -1)
            if low is Edge.PERIODIC:
                first, last = last, first
            elif high is Edge.OUTFLOW:
                last = -last
            phi = library_of(phi).concatenate([first, phi, last], lane)
        return phi

    def _given(self, u: Any, p: Any, t: float) -> Any:
        """Return the velocity that upper walls prescribe; 0 elsewhere."""
        grid, parts = self.grid, []
        for axis in range(grid.ndim):
            v, lane = 0 * u[axis], axis - grid.ndim
            if grid.edges[axis][1] is Edge.WALL:
                value = grid.wall_value(axis, axis, 1, p, t, v)
                if getattr(value, "ndim", 0):
                    value = value[(..., *[slice(1, -1) if n > 1 else slice(None) for n in value.shape[-grid.ndim :]])]
                n = v.shape[lane]
                body = v[(..., slice(0, n - 1), *[slice(None)] * (grid.ndim - 1 - axis))]
                v = library_of(u).concatenate([body, _layer(v, lane, -1) + value], lane)
            parts.append(v)
        return library_of(u).stack(parts)

    def _cropped(self, value: Any, axis: int) -> Any:
        """Return a wall value without the ghosts of axes that are not padded yet."""
        if not getattr(value, "ndim", 0):
            return value
        crop = [slice(None)] * self.grid.ndim
        for later in range(axis + 1, self.grid.ndim):
            if value.shape[later - self.grid.ndim] > 1:
                crop[later] = slice(1, -1)
        return value[(..., *crop)]


def _layer(a: Any, lane: int, index: int) -> Any:
    """Return one layer of a grid axis (counted from the end), kept as an axis of length 1."""
    stop = index + 1 or None
    return a[(..., slice(index, stop), *[slice(None)] * (-1 - lane))]
