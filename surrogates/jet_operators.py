"""The vocabulary `d` of a right-hand side at scattered points: exact derivatives, in a frame that may move.

The jets are in physical space already, so no operator but `advect` knows of a frame; with a frame velocity w it gives
(v - w)·∇u, which leaves no difference of large numbers behind (w·∇u is what ∂u/∂t at a fixed label contains).

`inverse_laplacian` looks at all of space, which scattered points do not know. Its result is therefore an unknown ψ of
its own, a further output of the network, and ∇²ψ - f = 0 a further equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from headrace.solvers.boundary import Boundary
from headrace.solvers.vector_calculus import VectorCalculus, total

from .jet import Jet, constant, stacked

NON_LOCAL = {"mean": "scattered points do not know the mean over the grid"}


class FlowTold(Exception):
    """Ends a right-hand side that is only asked for its flow."""


class JetOperators(VectorCalculus):
    """Differential operators on jets.

    x : coordinates, one jet per axis.
    frame : velocity w of the frame, one tensor (points,) per axis; None for a frame at rest.
    auxiliary : number -> what the so-manyth `inverse_laplacian` gives; None where there is nothing.
    advected : what `advect` was called with, in order: (v, u).
    further : ∇²ψ - f of every `inverse_laplacian`, in order, each (points,).
    only_flow : the first `advect` raises FlowTold.
    """

    def __init__(
        self, x: tuple[Jet, ...], frame: Sequence[torch.Tensor] | None = None, *, without_advection: bool = False,
        auxiliary: Callable[[int], Jet] | None = None,
    ) -> None:  # fmt: skip
        self.x = x
        self._ndim = len(x)
        self._frame = frame
        self._without_advection = without_advection
        self._auxiliary = auxiliary
        self.advected: list[tuple[list[Any], Any]] = []
        self.further: list[torch.Tensor] = []
        self.only_flow = False

    def derivative(self, u: Jet, axis: int, order: int = 1) -> Jet:
        """Return ∂^order u / ∂x_axis^order, order 1 or 2."""
        self._check_axis(axis)
        if order not in (1, 2):
            raise ValueError(f"d.derivative(u, {axis}, order={order}): networks carry derivatives of order 1 and 2.")
        return _operand(u, "derivative").derivative(axis, order)

    def diffuse(self, k: Jet | float, u: Jet) -> Jet:
        """Return ∇·(k ∇u)."""
        if not isinstance(k, Jet):
            return k * self.laplacian(u)
        return self.div([k * part for part in self.grad(u)])

    def advect(self, v: Sequence[Any] | Jet, u: Jet) -> Jet:
        """Return (v - w)·∇u, w the velocity of the frame."""
        parts = self._vector(v, "advect")
        self.advected.append((parts, u))
        if self.only_flow:
            raise FlowTold
        if self._without_advection:
            return u * 0
        slopes = self.grad(u)
        if self._frame is not None:
            parts = [part - constant(w, self._ndim) for part, w in zip(parts, self._frame, strict=True)]
        return total(part * slope for part, slope in zip(parts, slopes, strict=True))

    upwind = advect
    weno = advect

    def weno_div(self, flux: Sequence[Jet] | Jet, speed: Any, u: Jet) -> Jet:
        """Return ∇·flux(u); what a speed is for does not exist here."""
        return self.div(flux)

    def inverse_laplacian(self, f: Jet, boundary: Boundary | None = None) -> Jet:
        """Return ψ, ∇²ψ = f: the next auxiliary output; what it lacks of its equation is appended to `further`."""
        if boundary is not None:
            raise ValueError(
                "d.inverse_laplacian(f, boundary) does not exist under automatic differentiation: the sides of ψ are "
                "those of the fields. Leave the boundary out."
            )
        if self._auxiliary is None:
            raise ValueError("d.inverse_laplacian needs an auxiliary output of a network; here there is none.")
        f = _operand(f, "inverse_laplacian")
        if f.components:
            return stacked([self.inverse_laplacian(part) for part in f])
        psi = self._auxiliary(len(self.further))
        self.further.append(self.laplacian(psi).value - f.value)
        return psi

    def __getattr__(self, name: str) -> Any:
        reason = NON_LOCAL.get(name, "see headrace.solvers.operators.VOCABULARY")
        raise AttributeError(f"d.{name} does not exist under automatic differentiation: {reason}.")


def _operand(u: Any, name: str) -> Jet:
    if not isinstance(u, Jet):
        raise TypeError(f"d.{name} takes a field; {u!r} is the same in all of space, so its derivatives are 0.")
    return u
