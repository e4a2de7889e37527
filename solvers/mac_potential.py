"""The staggered scheme for states given by a potential: velocities without divergence, and the defect of their steps.

In two dimensions u = ∂a/∂y, v = -∂a/∂x with one component of a, in three u = ∇ × a; a lies on the edges of the cells
and the differences are those of the grid, so that ∇·u vanishes to rounding whatever a is. Networks that give a and the
pressure need no equation for ∇·u (Wandel, Weinmann and Klein 2021).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from .case import Case
from .mac import Force
from .mac_grid import Edge, Solid
from .mac_operators import library_of
from .mac_residual import MacResidual
from .parameters import Parameters


class PotentialResidual:
    """The defect of the implicit midpoint rule for states (*lead, fields, *grid) of potential and pressure.

    There is no net flow through any section of the box. The components of a potential that lie on a wall are 0 there,
    so that nothing flows through it.

    viscosity, p, force, solid : as `MacResidual` takes them; the force is that at t = 0 where steps are told no time.

    Raises
    ------
    ValueError : a side is open, or the case has one axis.
    """

    def __init__(
        self, case: Case, *, viscosity: float, p: Parameters, force: Force | None = None, solid: Solid | None = None
    ) -> None:
        self.residual = MacResidual(case, force=force, solid=solid)
        self.spacing, self.ndim = case.grid.spacing, case.grid.ndim
        self._viscosity, self._p = viscosity, p
        edges = self.residual.grid.edges
        self._walls = [low is not Edge.PERIODIC for low, _ in edges]
        if self.ndim == 1 or any(edge not in (Edge.PERIODIC, Edge.WALL) for pair in edges for edge in pair):
            raise ValueError(f"Case {case.name}: potentials are for planes and boxes with walls or periodic sides; its "
                             f"sides are {edges}.")  # fmt: skip

    def velocity(self, potential: Any) -> Any:
        """Return the velocities at the faces, (ndim, *lead, *grid), of (components, *lead, *grid)."""
        if self.ndim == 2:
            a = self._closed(potential[0], (0, 1))
            return library_of(a).stack([self._slope(a, 1), -self._slope(a, 0)])
        a, s = [self._closed(potential[c], {0, 1, 2} - {c}) for c in range(3)], self._slope
        return library_of(potential).stack([s(a[2], 1) - s(a[1], 2), s(a[0], 2) - s(a[2], 0), s(a[1], 0) - s(a[0], 1)])

    def state(self, fields: Any) -> Any:
        """Return velocities and pressure (ndim + 1, *lead, *grid) of (*lead, fields, *grid)."""
        axis = -1 - self.ndim
        fields = library_of(fields).moveaxis(fields, axis, 0)
        return library_of(fields).concatenate([self.velocity(fields[:-1]), fields[-1:]])

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return dt times the defect of momentum, (*lead, ndim, *grid): the change of velocity that is missing."""
        defect = self.residual(self.state(old), self.state(new), t, dt, viscosity=self._viscosity, p=self._p)
        return library_of(defect).moveaxis(defect[:-1] * dt, 0, -1 - self.ndim)

    def size(self, fields: Any) -> Any:
        """Return the velocities, whose mean square is the scale of the loss, (*lead, ndim, *grid)."""
        velocity = self.state(fields)[:-1]
        return library_of(velocity).moveaxis(velocity, 0, -1 - self.ndim)

    def _closed(self, a: Any, across: Collection[int]) -> Any:
        """Return a component of the potential with 0 on the upper walls that it lies on: those of other axes."""
        for axis, wall in enumerate(self._walls):
            if wall and axis in across:
                lane = axis - self.ndim
                inside = a[(..., slice(None, -1), *[slice(None)] * (-1 - lane))]
                last = a[(..., slice(-1, None), *[slice(None)] * (-1 - lane))]
                a = library_of(a).concatenate([inside, 0 * last], lane)
        return a

    def _slope(self, a: Any, axis: int) -> Any:
        lane = axis - self.ndim
        rest = [slice(None)] * (-1 - lane)
        last = a[(..., slice(-1, None), *rest)]
        before = library_of(a).concatenate([0 * last if self._walls[axis] else last, a[(..., slice(None, -1), *rest)]],
                                           lane)  # fmt: skip
        return (a - before) * (1 / self.spacing[axis])
