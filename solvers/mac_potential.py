"""The staggered scheme for states given by a potential: velocities without divergence, and the defect of their steps.

In two dimensions u = ∂a/∂y, v = -∂a/∂x with one component of a, in three u = ∇ × a; a lies on the edges of the cells
and the differences are those of the grid, so that ∇·u vanishes to rounding whatever a is. Networks that give a and the
pressure need no equation for ∇·u (Wandel, Weinmann and Klein 2021).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from scipy.ndimage import label

from .case import Case
from .mac import Force, SlabFlow
from .mac_grid import Edge, Solid, of_kind
from .mac_operators import divergence, library_of
from .mac_residual import MacResidual
from .parameters import Parameters
from .transforms import slabs


def flow_around(case: Case, base: np.ndarray, *, p: Parameters, solid: Solid) -> np.ndarray:
    """Return a base flow led around obstacles, (ndim, *grid): without divergence, and at rest on their faces."""
    flow = SlabFlow(case, p, slabs(case.grid.shape, case.periodic, None), viscosity=0.0, force=None, solid=solid)
    try:
        return flow.projected(base, 0.0)[0]
    finally:
        flow.free()


class PotentialResidual:
    """The defect of the implicit midpoint rule for states (*lead, fields, *grid) of potential and pressure.

    The components of a potential that lie on a wall are 0 there, so that nothing flows through it; at an outflow they
    are free. What enters through walls with a given normal velocity, or goes around a periodic axis, is the base's.

    viscosity, p, force, solid : as `MacResidual` takes them; the force is that at t = 0 where steps are told no time.
    base : a flow (ndim, *grid) without divergence that has the given normal velocities, e.g. the profile of the inflow
        all along a channel; the potential's flow is added to it.

    Where the base is at rest on all faces of the obstacles (`flow_around` makes it so), the potential is closed there
    too: one value around each of them in a plane, 0 along their edges in a box, so that nothing flows through whatever
    the potential. Otherwise, and where an obstacle reaches a periodic side, that is left to the defect.

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

        self._obstacles = self._closures(given)

    def _closures(self, base: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]] | None:
        """Return for each component of the potential where it is closed, and the shares of means that it has there."""
        grid = self.residual.grid
        solid = grid.solid
        if solid is None or np.abs(base * (1 - grid.free)).max() > 1e-9 * max(1.0, np.abs(base).max()):
            return None
        sides = {(axis, end): np.take(solid, -end, axis).any() for axis in range(self.ndim) for end in (0, 1)}
        if any(sides[axis, end] for axis, end in sides if self._around[axis]):
            return None
        if self.ndim == 3:
            return [(_edges(solid, {0, 1, 2} - {c}), []) for c in range(3)]
        labels, count = label(solid, np.ones((3, 3)))
        means = []
        for number in range(1, count + 1):
            body = labels == number
            at_wall = [np.take(body, 0, axis).any() or (self._walls[axis] and np.take(body, -1, axis).any())
                       for axis in range(2)]  # fmt: skip
            if not any(at_wall):
                means.append(_edges(body, {0, 1}))
        return [(_edges(solid, {0, 1}), [mask / mask.sum() for mask in means])]

    def velocity(self, potential: Any) -> Any:
        """Return the velocities at the faces, (ndim, *lead, *grid), of (components, *lead, *grid)."""
        flow = self._curl(potential)
        return flow if self._base is None else flow + self._like("base", self._base, flow)

    def _like(self, name: str, a: np.ndarray, like: Any, *, lead: bool = True) -> Any:
        key = (name, like.dtype, getattr(like, "device", None), like.ndim)
        if key not in self._tensors:
            # Kept, because an upload in every call costs time and cannot be part of a CUDA graph.
            self._tensors[key] = of_kind(a, like, lead=lead)
        return self._tensors[key]

    def _curl(self, potential: Any) -> Any:
        if self.ndim == 2:
            a = self._closed(potential, 0, (0, 1))
            return library_of(a).stack([self._slope(a, 1), -self._slope(a, 0)])
        a, s = [self._closed(potential, c, {0, 1, 2} - {c}) for c in range(3)], self._slope
        return library_of(potential).stack([s(a[2], 1) - s(a[1], 2), s(a[0], 2) - s(a[2], 0), s(a[1], 0) - s(a[0], 1)])

    def state(self, fields: Any) -> Any:
        """Return velocities and pressure (ndim + 1, *lead, *grid) of (*lead, fields, *grid)."""
        axis = -1 - self.ndim
        fields = library_of(fields).moveaxis(fields, axis, 0)
        return library_of(fields).concatenate([self.velocity(fields[:-1]), fields[-1:]])

    def correction(self, old: Any, new: Any, t: float, dt: Any, viscosity: Any = None) -> Any:
        """Return dt times the defect of momentum, (*lead, ndim, *grid): the change of velocity that is missing.

        dt, viscosity : numbers, or tensors with the axes of (*lead, *grid); a viscosity takes the place of the own.
        """
        nu = self._viscosity if viscosity is None else viscosity
        defect = self.residual(self.state(old), self.state(new), t, dt, viscosity=nu, p=self._p)
        return library_of(defect).moveaxis(defect[:-1] * dt, 0, -1 - self.ndim)

    def size(self, fields: Any) -> Any:
        """Return the velocities, whose mean square is the scale of the loss, (*lead, ndim, *grid)."""
        velocity = self.state(fields)[:-1]
        return library_of(velocity).moveaxis(velocity, 0, -1 - self.ndim)

    def _closed(self, potential: Any, component: int, across: Collection[int]) -> Any:
        """Return a component of the potential with 0 on the upper walls that it lies on, those of other axes, and with
        one value along obstacles.
        """
        a = potential[component]
        for axis, wall in enumerate(self._walls):
            if wall and axis in across:
                lane = axis - self.ndim
                inside = a[(..., slice(None, -1), *[slice(None)] * (-1 - lane))]
                last = a[(..., slice(-1, None), *[slice(None)] * (-1 - lane))]
                a = library_of(a).concatenate([inside, 0 * last], lane)
        if self._obstacles is None:
            return a
        where, shares = self._obstacles[component]
        closed = a * self._like(f"free {component}", 1.0 - where, a, lead=False)
        for number, share in enumerate(shares):
            mean = (a * self._like(f"share {number}", share, a, lead=False)).sum((-2, -1))[..., None, None]
            closed = closed + mean * self._like(f"obstacle {number}", 1.0 * (share > 0), a, lead=False)
        return closed

    def _slope(self, a: Any, axis: int) -> Any:
        lane = axis - self.ndim
        rest = [slice(None)] * (-1 - lane)
        last = a[(..., slice(-1, None), *rest)]
        before = library_of(a).concatenate([last if self._around[axis] else 0 * last, a[(..., slice(None, -1), *rest)]],
                                           lane)  # fmt: skip
        return (a - before) * (1 / self.spacing[axis])


def _edges(solid: np.ndarray, across: Collection[int]) -> np.ndarray:
    """Return which edges, at the upper ends of the axes across, belong to a solid cell."""
    found = solid
    for axis in across:
        lower = np.roll(found, -1, axis)
        lower[(*[slice(None)] * axis, -1)] = False
        found = found | lower
    return found
