"""Second-order differences on the staggered grid, as pure slicing: one formula for blocks and for tensors.

Arrays carry one ghost layer, (*lead, n + 2, ...), and results have none. Component c of a cell is at its upper face
along axis c: see mac_grid.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np


def library_of(a: Any) -> Any:
    """Return numpy for an array, torch for a tensor."""
    return sys.modules["torch"] if hasattr(a, "new_tensor") else np


@cache
def _inner(ndim: int, *changes: tuple[int, int | None, int | None]) -> tuple[Any, ...]:
    """Index of the points without ghosts, but for (axis, start, stop)."""
    index = [slice(1, -1)] * ndim
    for axis, start, stop in changes:
        index[axis] = slice(start, stop)
    return (..., *index)


@cache
def _from_second(ndim: int, axis: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Indices of all layers but the first, and of all but the last."""
    upper, lower = [slice(None)] * ndim, [slice(None)] * ndim
    upper[axis], lower[axis] = slice(1, None), slice(None, -1)
    return (..., *upper), (..., *lower)


def divergence(velocity: Any, spacing: Sequence[float]) -> Any:
    """Return ∇·u at the cell centres, (ndim, *lead, n + 2, ...) -> (*lead, n, ...)."""
    ndim, total = len(spacing), None
    for axis, h in enumerate(spacing):
        u = velocity[axis]
        term = (u[_inner(ndim)] - u[_inner(ndim, (axis, None, -2))]) * (1 / h)
        total = term if total is None else total + term
    return total


def gradient(pressure: Any, spacing: Sequence[float]) -> Any:
    """Return ∇p at the faces, (*lead, n + 2, ...) -> (ndim, *lead, n, ...)."""
    return library_of(pressure).stack([slope(pressure, axis, spacing) for axis in range(len(spacing))])


def slope(pressure: Any, axis: int, spacing: Sequence[float]) -> Any:
    """Return ∂p/∂x_axis at the faces of one axis, (*lead, n + 2, ...) -> (*lead, n, ...)."""
    ndim = len(spacing)
    return (pressure[_inner(ndim, (axis, 2, None))] - pressure[_inner(ndim)]) * (1 / spacing[axis])


def convection(velocity: Any, spacing: Sequence[float], out: Any = None) -> Any:
    """Return -∇·(u u) at the faces, (ndim, *lead, n + 2, ...) -> (ndim, *lead, n, ...).

    out : array to write to; None makes a new one, as tensors need.
    Fluxes are products of means of two neighbours: where ∇·u = 0 the kinetic energy is conserved.
    """
    ndim = len(spacing)
    results = []
    for component in range(ndim):
        u, total = velocity[component], None
        for axis, h in enumerate(spacing):
            carried = u[_inner(ndim, (axis, None, -1))] + u[_inner(ndim, (axis, 1, None))]
            if axis == component:
                flux = carried * carried
            else:
                v = velocity[axis]
                carrier = v[_inner(ndim, (axis, None, -1))] + v[_inner(ndim, (axis, None, -1), (component, 2, None))]
                flux = carrier * carried
            upper, lower = _from_second(ndim, axis)
            term = (flux[lower] - flux[upper]) * (0.25 / h)
            total = term if total is None else total + term
        if out is None:
            results.append(total)
        else:
            out[component] = total
    return library_of(velocity).stack(results) if out is None else out


def laplacian(a: Any, spacing: Sequence[float]) -> Any:
    """Return ∇²a, the compact sum of second differences, (*lead, n + 2, ...) -> (*lead, n, ...)."""
    ndim, centre, total = len(spacing), a[_inner(len(spacing))], None
    for axis, h in enumerate(spacing):
        second = (a[_inner(ndim, (axis, 2, None))] - centre) - (centre - a[_inner(ndim, (axis, None, -2))])
        term = second * (1 / h**2)
        total = term if total is None else total + term
    return total
