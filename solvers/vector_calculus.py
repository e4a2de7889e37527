"""The operators of a right-hand side that are sums of derivatives, the same for blocks, tensors and networks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any


class VectorCalculus(ABC):
    """∇, ∇·, ∇× and ∇² from `derivative`.

    u : a field, whatever its kind; `components` says that it holds several unknowns, one after the other.
    """

    _ndim: int
    """Number of axes."""

    @abstractmethod
    def derivative(self, u: Any, axis: int, order: int = 1) -> Any:
        """Return ∂^order u / ∂x_axis^order."""

    def grad(self, u: Any) -> tuple[Any, ...]:
        """Return ∇u, one field per axis."""
        return tuple(self.derivative(u, axis) for axis in range(self._ndim))

    def div(self, v: Sequence[Any] | Any) -> Any:
        """Return ∇·v; v has one component per axis."""
        return total(self.derivative(part, axis) for axis, part in enumerate(self._vector(v, "div")))

    def curl(self, v: Sequence[Any] | Any) -> Any:
        """Return the curl.

        In the plane ∂v_y/∂x - ∂v_x/∂y of a vector, and (∂ψ/∂y, -∂ψ/∂x) of a single field ψ; in space the vector ∇ x v.
        """
        if self._ndim == 1:
            raise ValueError("d.curl needs a grid with 2 or 3 axes; this one has 1.")
        if self._ndim == 2:
            if not getattr(v, "components", True):
                return self.derivative(v, 1), -self.derivative(v, 0)
            a, b = self._vector(v, "curl")
            return self.derivative(b, 0) - self.derivative(a, 1)
        a, b, c = self._vector(v, "curl")
        return (
            self.derivative(c, 1) - self.derivative(b, 2),
            self.derivative(a, 2) - self.derivative(c, 0),
            self.derivative(b, 0) - self.derivative(a, 1),
        )

    def laplacian(self, u: Any) -> Any:
        """Return ∇²u, the sum of second derivatives."""
        return total(self.derivative(u, axis, 2) for axis in range(self._ndim))

    def _check_axis(self, axis: Any) -> None:
        """Refuse an axis that does not exist."""
        if isinstance(axis, bool) or not isinstance(axis, int) or not 0 <= axis < self._ndim:
            raise ValueError(f"Axis {axis!r} does not exist; the grid has axes 0 to {self._ndim - 1}.")

    def _vector(self, v: Any, name: str) -> list[Any]:
        """Return the components of v, one per axis; name : of the operator, for the message."""
        parts = list(v) if isinstance(v, tuple | list) or getattr(v, "components", False) else [v]
        if len(parts) != self._ndim:
            raise ValueError(f"d.{name} takes a vector with {self._ndim} components, one per axis; got {len(parts)}.")
        return parts


def total(parts: Iterable[Any]) -> Any:
    """Return the sum of fields."""
    first, *rest = parts
    return sum(rest, first)
