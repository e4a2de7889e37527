"""Finite differences on arrays by pure slicing, so that one formula serves numpy blocks and torch tensors.

Grid axes are the last `ndim` axes of an array; a stencil of reach r leaves r points less on both sides of all of them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

Index = tuple[Any, ...]

CENTRAL: dict[tuple[int, int], tuple[float, ...]] = {
    (1, 2): (1 / 2,),
    (2, 2): (1.0,),
    (3, 2): (-1.0, 1 / 2),
    (4, 2): (-4.0, 1.0),
    (1, 4): (2 / 3, -1 / 12),
    (2, 4): (4 / 3, -1 / 12),
    (3, 4): (-13 / 8, 1.0, -1 / 8),
    (4, 4): (-13 / 2, 2.0, -1 / 6),
}
"""(order of the derivative, accuracy) -> weights of the points at distance 1, 2, ...; Fornberg 1988, table 1."""


def reach_of(order: int, accuracy: int) -> int:
    """Return the ghost layers that a central difference takes."""
    return len(CENTRAL[order, accuracy])


def central(a: Any, ndim: int, axis: int, spacing: float, *, order: int, accuracy: int, reach: int) -> Any:
    """Return the central difference ∂^order a / ∂x_axis^order, for the points `reach` layers inside."""
    centre = a[window(ndim, reach, axis, 0)]
    total = None
    for distance, weight in enumerate(CENTRAL[order, accuracy], start=1):
        up, down = a[window(ndim, reach, axis, distance)], a[window(ndim, reach, axis, -distance)]
        # Differences first: a constant field gives exactly zero.
        term = (up - down if order % 2 else (up - centre) - (centre - down)) * (weight / spacing**order)
        total = term if total is None else total + term
    return total


def diffusion(k: Any, u: Any, ndim: int, axis: int, spacing: float) -> Any:
    """Return ∂/∂x (k ∂u/∂x), second order, conservative, one layer inside; k at a face is the mean of its points."""
    high, low = along(ndim, axis, 1, None, 1), along(ndim, axis, None, -1, 1)
    right, left = along(ndim, axis, 1, None, 0), along(ndim, axis, None, -1, 0)
    flux = (k[high] + k[low]) * (u[high] - u[low])
    return (flux[right] - flux[left]) * (0.5 / spacing**2)


def diffusion4(k: Any, u: Any, ndim: int, axis: int, spacing: float) -> Any:
    """Return ∂/∂x (k ∂u/∂x), fourth order, conservative, three layers inside.

    Flux at the faces and its divergence by the staggered difference (v_-3/2 - 27 v_-1/2 + 27 v_1/2 - v_3/2) / 24h.
    """
    a, b, c, d = (along(ndim, axis, s, s - 3 or None, 3) for s in range(4))
    flux = (9 * (k[b] + k[c]) - (k[a] + k[d])) * (27 * (u[c] - u[b]) - (u[d] - u[a]))
    a, b, c, d = (along(ndim, axis, s, s - 3 or None, 0) for s in range(4))
    return (27 * (flux[c] - flux[b]) - (flux[d] - flux[a])) * (1 / (16 * 24**2 * spacing**2))


@cache
def window(ndim: int, reach: int, axis: int, offset: int) -> Index:
    """Return the index of the points `reach` layers inside on every axis, moved by offset along one."""
    inner = [slice(reach, -reach)] * ndim
    inner[axis] = slice(reach + offset, offset - reach or None)
    return (..., *inner)


@cache
def along(ndim: int, axis: int, start: int | None, stop: int | None, reach: int) -> Index:
    """Return the index of start:stop along one axis, and of the points `reach` layers inside on the others."""
    inner = [slice(reach, -reach) if reach else slice(None)] * ndim
    inner[axis] = slice(start, stop)
    return (..., *inner)
