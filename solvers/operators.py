"""The vocabulary `d` of a right-hand side: differences on a block that carries ghost layers.

Stencils are pure slicing, so one formula serves numpy blocks and torch tensors. An operator returns a field with as
many ghost layers less than its operand as its stencil reaches; boundary conditions are in the ghost layers, never in
the operators. What looks at the whole grid (`mean`, `inverse_laplacian`, spectral derivatives) asks `WholeGrid`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import weno
from .boundary import Boundary
from .field import Field, GhostLayersExhausted, uniform
from .stencils import central, diffusion, diffusion4, reach_of, window
from .vector_calculus import VectorCalculus, total
from .whole_grid import WholeGrid

VOCABULARY = (
    "x", "grad", "div", "curl", "laplacian", "diffuse", "advect", "upwind", "weno", "weno_div", "derivative",
    "inverse_laplacian", "mean",
)  # fmt: skip


class Operators(VectorCalculus):
    """Differential operators on one block of a uniform grid.

    Parameters
    ----------
    spacing : distance of neighbouring points along each axis.
    shape : owned points of the block along each axis.
    x : coordinates, one field per axis with the ghost layers of the state.
    whole : what looks beyond the block.
    accuracy : 2, 4 or "spectral", of the central operators; upwind and weno have an order of their own.
    """

    def __init__(
        self, spacing: Sequence[float], shape: Sequence[int], x: tuple[Field, ...], whole: WholeGrid,
        accuracy: int | str = 2,
    ) -> None:  # fmt: skip
        self.x = x
        self._spacing = tuple(spacing)
        self._shape = tuple(shape)
        self._ndim = len(self._shape)
        self._whole = whole
        self._accuracy = accuracy

    def derivative(self, u: Field, axis: int, order: int = 1) -> Field:
        """Return ∂^order u / ∂x_axis^order, order 1 to 4, by a central difference or the spectrum."""
        self._check_axis(axis)
        if isinstance(order, bool) or order not in (1, 2, 3, 4):
            raise ValueError(f"d.derivative(u, {axis}, order={order}): 1, 2, 3 or 4 is allowed; nest calls for more.")
        if self._accuracy == "spectral":
            field = self._operand(u, "derivative", 0)
            array = self._whole.derivative(field.array, axis, order, field.halo)
            return Field(array, field.halo, self._ndim, field.components)
        reach = reach_of(order, self._accuracy)
        field = self._operand(u, "derivative", reach)
        h, n = self._spacing[axis], self._ndim
        return self._result(
            central(field.array, n, axis, h, order=order, accuracy=self._accuracy, reach=reach), field, reach
        )

    def inverse_laplacian(self, f: Field, boundary: Boundary | None = None) -> Field:
        """Return ψ with ∇²ψ = f, ∇² the discrete Laplacian of this accuracy. Collective.

        boundary : of ψ, every value 0; None takes that of the first unknown, without its values. Where it leaves the
            constant free, f is taken without its mean and the mean of ψ is 0.
        """
        field = self._operand(f, "inverse_laplacian", 0)
        halo = field.halo
        array = self._whole.inverse_laplacian(field.cropped(0).array, halo, boundary)
        return Field(array, halo, self._ndim, field.components)

    def diffuse(self, k: Field | float, u: Field) -> Field:
        """Return ∇·(k ∇u) in conservative compact form; k at a face is interpolated from its points."""
        if not isinstance(k, Field) or k.halo is None:
            return k * self.laplacian(u)
        if self._accuracy == "spectral":
            return self.div([k * part for part in self.grad(u)])
        reach, flux = (1, diffusion) if self._accuracy == 2 else (3, diffusion4)
        k = self._operand(k, "diffuse", reach)
        field = self._operand(u, "diffuse", reach)
        halo = min(k.halo, field.halo)
        k, field = k.cropped(halo), field.cropped(halo)
        total = None
        for axis in range(self._ndim):
            term = flux(k.array, field.array, self._ndim, axis, self._spacing[axis])
            total = term if total is None else total + term
        return Field(total, halo - reach, self._ndim, k.components or field.components)

    def advect(self, v: Sequence[Field | float] | Field, u: Field) -> Field:
        """Return v·∇u by central differences; v has one component per axis."""
        return total(part * self.derivative(u, axis) for axis, part in enumerate(self._vector(v, "advect")))

    def upwind(self, v: Sequence[Field | float] | Field, u: Field) -> Field:
        """Return v·∇u by first-order differences taken from where v comes."""
        field = self._operand(u, "upwind", 1)
        a, n = field.array, self._ndim
        centre = a[window(n, 1, 0, 0)]

        def sides(axis: int) -> tuple[Any, Any]:
            scale = 1 / self._spacing[axis]
            return (centre - a[window(n, 1, axis, -1)]) * scale, (a[window(n, 1, axis, 1)] - centre) * scale

        return self._from_upstream(self._vector(v, "upwind"), sides, field, 1)

    def weno(self, v: Sequence[Field | float] | Field, u: Field) -> Field:
        """Return v·∇u by fifth-order WENO differences taken from where v comes."""
        field = self._operand(u, "weno", weno.REACH)

        def sides(axis: int) -> tuple[Any, Any]:
            return weno.biased(field.array, self._ndim, axis, self._spacing[axis])

        return self._from_upstream(self._vector(v, "weno"), sides, field, weno.REACH)

    def weno_div(self, flux: Sequence[Field] | Field, speed: Any, u: Field) -> Field:
        """Return ∇·flux(u) by conservative fifth-order WENO: jumps in u travel at the right speed.

        flux : one field per axis, computed from u point by point.
        speed : bound of |∂flux/∂u|, field or number, one per axis or one for all.
        """
        fluxes = self._vector(flux, "weno_div")
        speeds = list(speed) if isinstance(speed, tuple | list) else [speed] * self._ndim
        if len(speeds) != self._ndim:
            raise ValueError(f"d.weno_div takes one speed, or {self._ndim}, one per axis; got {len(speeds)}.")
        parts = []
        for axis, (f, s) in enumerate(zip(fluxes, speeds, strict=True)):
            fields = [self._operand(one, "weno_div", weno.REACH) for one in (f, u)]
            if isinstance(s, Field) and s.halo is not None:
                fields.append(self._operand(s, "weno_div", weno.REACH))
            halo = min(field.halo for field in fields)
            arrays = [field.cropped(halo).array for field in fields]
            bound = arrays[2] if len(arrays) == 3 else getattr(s, "array", s)
            array = weno.flux_difference(
                arrays[0], bound, arrays[1], self._ndim, axis, self._spacing[axis]
            )
            parts.append(Field(array, halo - weno.REACH, self._ndim, fields[0].components or fields[1].components))
        return total(parts)

    def mean(self, u: Field) -> Field:
        """Return the mean of u over the whole grid, the same in all of space. Collective."""
        if not isinstance(u, Field) or u.halo is None:
            return u
        result = uniform(self._whole.mean(self._expanded(u.cropped(0)).array), self._ndim)
        result.components = u.components
        return result

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"d has no operator {name!r}; it has {', '.join('d.' + word for word in VOCABULARY)}.")

    def _from_upstream(
        self, v: Sequence[Any], sides: Callable[[int], tuple[Any, Any]], operand: Field, reach: int
    ) -> Field:
        """Return Σ v ∂u/∂x; sides : axis -> differences towards lower and higher points."""
        total = None
        for axis, part in enumerate(v):
            backward, forward = (self._result(array, operand, reach) for array in sides(axis))
            term = np.maximum(part, 0.0) * backward + np.minimum(part, 0.0) * forward
            total = term if total is None else total + term
        return total

    def _operand(self, u: Any, name: str, reach: int) -> Field:
        if not isinstance(u, Field) or u.halo is None:
            raise TypeError(f"d.{name} takes a field; {u!r} is the same in all of space, so its derivatives are 0.")
        if u.halo < reach:
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

    def _result(self, array: Any, operand: Field, reach: int) -> Field:
        return Field(array, operand.halo - reach, self._ndim, operand.components)

