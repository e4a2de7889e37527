"""The staggered scheme for states given by a potential: velocities without divergence, and the defect of their steps.

In two dimensions u = ∂a/∂y, v = -∂a/∂x with one component of a, in three u = ∇ × a; a lies on the edges of the cells
and the differences are those of the grid, so that ∇·u vanishes to rounding whatever a is. Networks that give a and the
pressure need no equation for ∇·u (Wandel, Weinmann and Klein 2021).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from .case import Case
from .mac import Force, of_kind
from .mac_grid import Edge, Solid
from .mac_operators import divergence, library_of
from .mac_residual import MacResidual
from .parameters import Parameters


class PotentialResidual:
    """The defect of the implicit midpoint rule for states (*lead, fields, *grid) of potential and pressure.

    The components of a potential that lie on a wall are 0 there, so that nothing flows through it; at an outflow they
    are free. What enters through walls with a given normal velocity, or goes around a periodic axis, is the base's.

    viscosity, p, force, solid : as `MacResidual` takes them; the force is that at t = 0 where steps are told no time.
    base : a flow (ndim, *grid) without divergence that has the given normal velocities, e.g. the profile of the inflow
        all along a channel; the potential's flow is added to it.

    Raises
    ------
    ValueError : the case has one axis, or the base has a divergence or another flow through a wall.
    """

    def __init__(
        self, case: Case, *, viscosity: float, p: Parameters, force: Force | None = None, solid: Solid | None = None,
        base: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.residual = MacResidual(case, force=force, solid=solid)
        self.spacing, self.ndim = case.grid.spacing, case.grid.ndim
        self._viscosity, self._p = viscosity, p
        edges = self.residual.grid.edges
        self._around = [low is Edge.PERIODIC for low, _ in edges]
        self._walls = [high is Edge.WALL for _, high in edges]
        if self.ndim == 1:
            raise ValueError(f"Case {case.name} has one axis; potentials are for planes and boxes.")
        self._base, self._tensors = base, {}
        given = np.zeros((self.ndim, *case.grid.shape)) if base is None else base
        leak = np.abs(divergence(self.residual.padded(given, p, 0.0), self.spacing)).max()
        if leak > 1e-9 * max(1.0, np.abs(given).max()) / min(self.spacing):
            raise ValueError(
                f"Case {case.name}: the base flow has a divergence of {leak:.3g}, inside or against the normal "
                "velocities of the sides. Give base= a flow without divergence that enters and leaves as they say."
            )

    def velocity(self, potential: Any) -> Any:
        """Return the velocities at the faces, (ndim, *lead, *grid), of (components, *lead, *grid)."""
        flow = self._curl(potential)
        return flow if self._base is None else flow + self._base_like(flow)

    def _base_like(self, flow: Any) -> Any:
        key = (flow.dtype, getattr(flow, "device", None), flow.ndim)
        if key not in self._tensors:
            # Kept, because an upload in every call costs time and cannot be part of a CUDA graph.
            self._tensors[key] = of_kind(self._base, flow)
        return self._tensors[key]

    def _curl(self, potential: Any) -> Any:
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
        before = library_of(a).concatenate([last if self._around[axis] else 0 * last, a[(..., slice(None, -1), *rest)]],
                                           lane)  # fmt: skip
        return (a - before) * (1 / self.spacing[axis])
