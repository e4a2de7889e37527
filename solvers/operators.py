"""The vocabulary `d` of a right-hand side: second-order differences on a block that carries ghost layers.

Every stencil is pure slicing, so one formula serves numpy blocks and torch tensors. An operator
returns a field with one ghost layer less than its operand; boundary conditions are in the ghost layers,
never in the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from .field import Field, GhostLayersExhausted, uniform

Index = tuple[Any, ...]
VOCABULARY = ("x", "grad", "div", "laplacian", "diffuse", "advect", "upwind", "derivative", "mean")


class Operators:
    """Differential operators on one block of a uniform grid.

    Parameters
    ----------
    spacing : distance of neighbouring points along each axis.
    shape : owned points of the block along each axis.
    x : coordinates, one field per axis with the ghost layers of the state.
    grid_mean : mean over the whole grid of an array (*lead, *block), shape (*lead, 1, ..., 1); collective on ranks.
    """

    def __init__(
        self, spacing: Sequence[float], shape: Sequence[int], x: tuple[Field, ...], grid_mean: Callable[[Any], Any]
    ) -> None:
        self.x = x
        self._spacing = tuple(spacing)
        self._shape = tuple(shape)
        self._ndim = len(self._shape)
        self._grid_mean = grid_mean

    def derivative(self, u: Field, axis: int, order: int = 1) -> Field:
        """Return the central difference ∂u/∂x_axis (order 1) or ∂²u/∂x_axis² (order 2)."""
        self._check_axis(axis)
        if order not in (1, 2):
            raise ValueError(f"d.derivative(u, {axis}, order={order}): 1 or 2 is allowed; nest two calls for more.")
        field = self._operand(u, "derivative")
        a, h, n = field.array, self._spacing[axis], self._ndim
        up, down = a[_shifted(n, axis, 1)], a[_shifted(n, axis, -1)]
        if order == 1:
            return self._result((up - down) * (0.5 / h), field)
        centre = a[_shifted(n, axis, 0)]
        return self._result(((up - centre) - (centre - down)) * (1 / h**2), field)

    def grad(self, u: Field) -> tuple[Field, ...]:
        """Return ∇u by central differences, one field per axis."""
        return tuple(self.derivative(u, axis) for axis in range(self._ndim))

    def div(self, v: Sequence[Field] | Field) -> Field:
        """Return ∇·v by central differences; v has one component per axis."""
        parts = [self.derivative(part, axis) for axis, part in enumerate(self._vector(v, "div"))]
        return sum(parts[1:], parts[0])

    def laplacian(self, u: Field) -> Field:
        """Return ∇²u, the compact sum of second differences."""
        field = self._operand(u, "laplacian")
        a, n = field.array, self._ndim
        centre = a[_shifted(n, 0, 0)]
        total = None
        for axis in range(n):
            # Differences first: a constant field gives exactly zero.
            second = (a[_shifted(n, axis, 1)] - centre) - (centre - a[_shifted(n, axis, -1)])
            term = second * (1 / self._spacing[axis] ** 2)
            total = term if total is None else total + term
        return self._result(total, field)

    def diffuse(self, k: Field | float, u: Field) -> Field:
        """Return ∇·(k ∇u) in conservative compact form; k at a face is the mean of its two points."""
        if not isinstance(k, Field) or k.halo is None:
            return k * self.laplacian(u)
        k = self._operand(k, "diffuse")
        field = self._operand(u, "diffuse")
        halo = min(k.halo, field.halo)
        k, field = k.cropped(halo), field.cropped(halo)
        total = None
        for axis in range(self._ndim):
            high, low, right, left = _faces(self._ndim, axis)
            flux = (k.array[high] + k.array[low]) * (field.array[high] - field.array[low])
            term = (flux[right] - flux[left]) * (0.5 / self._spacing[axis] ** 2)
            total = term if total is None else total + term
        return Field(total, halo - 1, self._ndim, k.components or field.components)

    def advect(self, v: Sequence[Field | float] | Field, u: Field) -> Field:
        """Return v·∇u by central differences; v has one component per axis."""
        parts = [part * self.derivative(u, axis) for axis, part in enumerate(self._vector(v, "advect"))]
        return sum(parts[1:], parts[0])

    def upwind(self, v: Sequence[Field | float] | Field, u: Field) -> Field:
        """Return v·∇u by first-order differences taken from where v comes."""
        field = self._operand(u, "upwind")
        a, n, total = field.array, self._ndim, None
        centre = a[_shifted(n, 0, 0)]
        for axis, part in enumerate(self._vector(v, "upwind")):
            scale = 1 / self._spacing[axis]
            backward = self._result((centre - a[_shifted(n, axis, -1)]) * scale, field)
            forward = self._result((a[_shifted(n, axis, 1)] - centre) * scale, field)
            term = np.maximum(part, 0.0) * backward + np.minimum(part, 0.0) * forward
            total = term if total is None else total + term
        return total

    def mean(self, u: Field) -> Field:
        """Return the mean of u over the whole grid, the same in all of space. Collective."""
        if not isinstance(u, Field) or u.halo is None:
            return u
        result = uniform(self._grid_mean(self._expanded(u.cropped(0)).array), self._ndim)
        result.components = u.components
        return result

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"d has no operator {name!r}; it has {', '.join('d.' + word for word in VOCABULARY)}.")

    def _check_axis(self, axis: int) -> None:
        if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < self._ndim:
            raise ValueError(f"Axis {axis!r} does not exist; the grid has axes 0 to {self._ndim - 1}.")

    def _operand(self, u: Any, name: str) -> Field:
        if not isinstance(u, Field) or u.halo is None:
            raise TypeError(f"d.{name} takes a field; {u!r} is the same in all of space, so its derivatives are 0.")
        if u.halo < 1:
            raise GhostLayersExhausted(name)
        return self._expanded(u)

    def _expanded(self, field: Field) -> Field:
        """Return the field with every grid axis at full length; coordinates come as (n, 1), (1, n)."""
        full = tuple(n + 2 * field.halo for n in self._shape)
        array = field.array
        if tuple(array.shape[-self._ndim :]) == full:
            return field
        lead = tuple(array.shape[: -self._ndim])
        wide = array.expand(lead + full) if hasattr(array, "expand") else np.broadcast_to(array, lead + full)
        return Field(wide, field.halo, self._ndim, field.components)

    def _vector(self, v: Any, name: str) -> list[Any]:
        parts = list(v) if isinstance(v, Field | tuple | list) else [v]
        if len(parts) != self._ndim:
            raise ValueError(f"d.{name} takes a vector with {self._ndim} components, one per axis; got {len(parts)}.")
        return parts

    def _result(self, array: Any, operand: Field) -> Field:
        return Field(array, operand.halo - 1, self._ndim, operand.components)


@cache
def _shifted(ndim: int, axis: int, offset: int) -> Index:
    """Index of the points one layer in from the edge, moved by offset along an axis."""
    inner = [slice(1, -1)] * ndim
    inner[axis] = {-1: slice(None, -2), 0: slice(1, -1), 1: slice(2, None)}[offset]
    return (..., *inner)


@cache
def _faces(ndim: int, axis: int) -> tuple[Index, Index, Index, Index]:
    """Indices of the points right and left of every face of an axis, and of the faces right and left of a point."""
    high, low = [slice(1, -1)] * ndim, [slice(1, -1)] * ndim
    high[axis], low[axis] = slice(1, None), slice(None, -1)
    right, left = [slice(None)] * ndim, [slice(None)] * ndim
    right[axis], left[axis] = slice(1, None), slice(None, -1)
    return (..., *high), (..., *low), (..., *right), (..., *left)
