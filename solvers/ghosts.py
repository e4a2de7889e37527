"""Ghost layers at walls, from the boundary conditions: in place on blocks, by padding on tensors.

Walls lie half a cell outside the outermost points, so layer j = 1, 2, ... mirrors the j-th owned layer:

    Dirichlet   ghost_j = 2·g - owned_j
    Neumann     ghost_j = owned_j + (2j - 1)·h·g     (g is the derivative along the outward normal)

With an accuracy of 4 it is the value there of the polynomial through four owned layers that has g on the wall.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from .blocks import Blocks, Exchange
from .boundary import Dirichlet, Side, sides_of
from .case import Case
from .field import Field, uniform


def coordinates(case: Case, where: Sequence[slice], halo: int) -> tuple[Field, ...]:
    """Return the coordinates of a block, one open-mesh field per axis; periodic ones are wrapped, walls are passed."""
    ndim = case.grid.ndim
    fields = []
    for axis, place in enumerate(where):
        index = np.arange(place.start - halo, place.stop + halo)
        shift = 0.5
        if case.periodic[axis]:
            index, shift = index % case.grid.shape[axis], 0.0
        points = case.grid.origin[axis] + (index + shift) * case.grid.spacing[axis]
        shape = [1] * ndim
        shape[axis] = -1
        fields.append(Field(points.reshape(shape), halo, ndim))
    return tuple(fields)


def wall_value(side: Side, x: tuple[Field, ...], *, axis: int, position: float, p: Any, t: Any) -> Any:
    """Return g on a wall: a number or an array that broadcasts over the layer, 1 point thick along the axis."""
    if not callable(side.value):
        return side.value
    ndim = len(x)
    if hasattr(x[0].array, "requires_grad"):
        wall = uniform(x[0].array.new_full((1,) * ndim, position), ndim)
    else:
        wall = uniform(np.full((1,) * ndim, position), ndim)
    value = side.value((*x[:axis], wall, *x[axis + 1 :]), p, t)
    return value.array if isinstance(value, Field) else value


@dataclass(frozen=True, kw_only=True)
class GhostFormula:
    """ghost_j = wall·g + Σ weight_i·owned_i, layers counted from the wall."""

    wall: float
    owned: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, side: Side, j: int, spacing: float, accuracy: int | str) -> GhostFormula:
        """Return the formula for ghost layer j = 1, 2, ... at a wall."""
        if accuracy == 4:
            return cls._fourth_order(isinstance(side, Dirichlet), j, spacing)
        if isinstance(side, Dirichlet):
            return cls(wall=2.0, owned=((j, -1.0),))
        return cls(wall=(2 * j - 1) * spacing, owned=((j, 1.0),))

    @classmethod
    @lru_cache(maxsize=64)
    def _fourth_order(cls, dirichlet: bool, j: int, spacing: float) -> GhostFormula:
        # In units of the spacing, distances from the wall inwards; the outward derivative is minus the inward one.
        powers = np.arange(5)
        inside = np.arange(1, 5) - 0.5
        on_wall = np.array([1.0, 0, 0, 0, 0]) if dirichlet else np.array([0, -1.0, 0, 0, 0])
        conditions = np.vstack([on_wall, inside[:, None] ** powers])
        weights = np.linalg.solve(conditions.T, (0.5 - j) ** powers)
        scale = 1.0 if dirichlet else spacing
        return cls(wall=float(weights[0]) * scale, owned=tuple(enumerate(map(float, weights[1:]), start=1)))

    def apply(self, value: Any, layer: Callable[[int], Any]) -> Any:
        """Return the ghost values; layer : i -> the i-th owned layer from the wall."""
        total = self.wall * value
        for i, weight in self.owned:
            total = total + weight * layer(i)
        return total


def _layer(array: Any, *, axis: int, start: int) -> Any:
    """Return one layer of a grid axis (counted from the end, negative), kept as an axis of length 1."""
    index = [slice(None)] * -axis
    index[0] = slice(start, start + 1)
    return array[(..., *index)]


def _positions(case: Case, axis: int) -> tuple[float, float]:
    low = case.grid.origin[axis]
    return low, low + case.grid.extent[axis]


class GhostLayers:
    """Fills all ghost layers of one buffer on a block: exchange and walls, axis after axis.

    buffer : (fields, *block + 2·halo) float64; the owned points are `interior`.
    """

    def __init__(self, case: Case, blocks: Blocks, halo: int) -> None:
        shape = tuple(n + 2 * halo for n in blocks.shape)
        self.buffer = np.zeros((len(case.fields), *shape))
        self.interior = self.buffer[(slice(None), *(slice(halo, -halo) for _ in shape))]
        self.x = coordinates(case, blocks.where, halo)
        self._exchange = Exchange(blocks, self.buffer, halo)
        self._walls = [self._plan(case, blocks, halo, axis) for axis in range(len(shape))]

    def _plan(self, case: Case, blocks: Blocks, halo: int, axis: int) -> list[tuple[Side, float, list[tuple]]]:
        """Return, for each condition on a wall of this block, its layers as (ghost, formula, owned layers)."""
        plan = []
        sides = sides_of(case.boundary, case.fields, case.grid)
        n, h, position = blocks.shape[axis], case.grid.spacing[axis], _positions(case, axis)
        for end, direction in enumerate((-1, 1)):
            if not blocks.at_wall(axis, direction):
                continue
            for fields, side in _groups([sides[name][axis][end] for name in case.fields]):
                part = self.buffer[fields]
                lane = axis - len(blocks.shape)
                owned = {
                    i: _layer(part, axis=lane, start=halo + i - 1 if end == 0 else halo + n - i)
                    for i in range(1, min(n, max(halo, 4)) + 1)
                }
                layers = []
                for j in range(1, halo + 1):
                    target = _layer(part, axis=lane, start=halo - j if end == 0 else halo + n + j - 1)
                    layers.append((target, GhostFormula.of(side, j, h, case.accuracy), owned.__getitem__))
                plan.append((side, position[end], layers))
        return plan

    def exchanges(self, axis: int) -> bool:
        """Return whether ghost layers of an axis come from other ranks."""
        return self._exchange.communicates(axis)

    def fill(self, p: Any, t: float, *, meanwhile: Callable[[], None] | None = None) -> None:
        """Fill every ghost layer from the owned points. Collective.

        meanwhile : work that needs no ghost layer, done while those of the first axis are on their way.
        """
        for axis, walls in enumerate(self._walls):
            self._exchange.fill(axis, meanwhile if axis == 0 else None)
            for side, position, layers in walls:
                value = wall_value(side, self.x, axis=axis, position=position, p=p, t=t)
                for target, formula, owned in layers:
                    target[...] = formula.apply(value, owned)

    def free(self) -> None:
        """Give back what MPI holds."""
        self._exchange.free()


def _groups(sides: Sequence[Side]) -> list[tuple[slice, Side]]:
    """Return runs of neighbouring fields with the same condition."""
    groups: list[tuple[slice, Side]] = []
    for index, side in enumerate(sides):
        if groups and groups[-1][1] == side:
            groups[-1] = (slice(groups[-1][0].start, index + 1), side)
        else:
            groups.append((slice(index, index + 1), side))
    return groups


def padded(case: Case, array: Any, halo: int, *, x: tuple[Field, ...], p: Any, t: Any) -> Any:
    """Return an array of the whole grid with ghost layers, without writing in place; arrays and tensors alike.

    array : (fields, *batch, *grid) -> (fields, *batch, *grid + 2·halo), the values that `GhostLayers.fill` gives.
    x : `coordinates` of the whole grid with this halo, in the array's kind.
    """
    ndim = case.grid.ndim
    sides = sides_of(case.boundary, case.fields, case.grid)
    for axis in range(ndim):
        lane, h, position = axis - ndim, case.grid.spacing[axis], _positions(case, axis)
        n = array.shape[lane]
        below, above = [], []
        if case.periodic[axis]:
            below = [_layer(array, axis=lane, start=n - j) for j in range(halo, 0, -1)]
            above = [_layer(array, axis=lane, start=j) for j in range(halo)]
        else:
            for end, layers in ((0, below), (1, above)):
                for j in range(halo, 0, -1) if end == 0 else range(1, halo + 1):
                    starts = [i if end == 0 else n - 1 - i for i in range(min(n, max(halo, 4)))]
                    owned = [_layer(array, axis=lane, start=start) for start in starts]
                    parts = []
                    for fields, side in _groups([sides[name][axis][end] for name in case.fields]):
                        value = wall_value(side, x, axis=axis, position=position[end], p=p, t=t)
                        value = _without_later_ghosts(value, axis=axis, ndim=ndim, halo=halo)
                        formula = GhostFormula.of(side, j, h, case.accuracy)
                        parts.append(formula.apply(value, lambda i, fields=fields, owned=owned: owned[i - 1][fields]))
                    layers.append(_joined(parts, 0))
        array = _joined([*below, array, *above], lane)
    return array


def _without_later_ghosts(value: Any, *, axis: int, ndim: int, halo: int) -> Any:
    """Return a wall value cropped along the axes that are not padded yet."""
    if not getattr(value, "ndim", 0):
        return value
    index = [slice(None)] * ndim
    for later in range(axis + 1, ndim):
        if value.shape[later - ndim] > 1:
            index[later] = slice(halo, -halo)
    return value[(..., *index)]


def _joined(parts: list[Any], axis: int) -> Any:
    if len(parts) == 1:
        return parts[0]
    if hasattr(parts[0], "requires_grad"):
        return sys.modules["torch"].cat(parts, dim=axis)
    return np.concatenate(parts, axis=axis)
