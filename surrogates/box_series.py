"""Smooth functions on a box by few numbers: Fourier series along periodic axes, Chebyshev series between walls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from headrace.solvers.grid import Grid

from .jet import Jet, pairs

_MODES = {1: 64, 2: 10, 3: 4}
"""Highest wave number, and half the highest degree, per axis."""


class BoxSeries:
    """Fits values on its own nodes and gives them back with exact derivatives, high modes damped (e^(-36 (k/K)^8)).

    What does not fit into so few modes comes back smoother. Beyond walls it goes on as a straight line.
    """

    def __init__(self, grid: Grid, periodic: Sequence[bool]) -> None:
        self._grid, self._periodic = grid, tuple(periodic)
        self._highest = _MODES[grid.ndim]
        self._count = 2 * self._highest + 1
        self._nodes = 2 * self._count
        self._slopes: dict[int, torch.Tensor] = {}

    def nodes(self, like: torch.Tensor) -> torch.Tensor:
        """Return the places whose values `fit` takes, (ndim, places)."""
        number = torch.arange(self._nodes, dtype=like.dtype, device=like.device) + 0.5
        axes = []
        for axis, periodic in enumerate(self._periodic):
            unit = number / self._nodes if periodic else 0.5 - 0.5 * torch.cos(math.pi * number / self._nodes)
            axes.append(self._grid.origin[axis] + unit * self._grid.extent[axis])
        return torch.stack([axis.reshape(-1) for axis in torch.meshgrid(*axes, indexing="ij")])

    def fit(self, values: torch.Tensor) -> torch.Tensor:
        """Return the coefficients of values on the nodes: (rows, places) -> (rows, modes, ..., modes)."""
        ndim, rows = self._grid.ndim, len(values)
        parts = values.reshape(rows, *(self._nodes,) * ndim)
        nodes = self.nodes(values).reshape(ndim, *(self._nodes,) * ndim)
        for axis in range(ndim):
            line = nodes[axis].movedim(axis, 0).reshape(self._nodes, -1)[:, 0]
            inverse = torch.linalg.pinv(self._basis(axis, line)[0]) * self._damping(axis, values)[:, None]
            parts = (parts.movedim(1 + axis, -1) @ inverse.T).movedim(-1, 1 + axis)
        return parts

    @torch.no_grad()
    def jet(self, coefficients: torch.Tensor, places: torch.Tensor, row_of: torch.Tensor) -> Jet:
        """Return the function at places (ndim, points), with derivatives; row_of : which coefficients count there."""
        ndim = self._grid.ndim
        bases = [self._basis(axis, places[axis]) for axis in range(ndim)]

        def along(*axes: int) -> torch.Tensor:
            orders = [axes.count(axis) for axis in range(ndim)]
            parts = coefficients
            for axis in axes:
                parts = (parts.movedim(1 + axis, -1) @ self._slope(axis, parts).T).movedim(-1, 1 + axis)
            first = bases[0][orders[0]]
            if len(parts) == 1:
                parts = torch.tensordot(first, parts[0], dims=1)
            else:
                parts = torch.einsum("pa,pa...->p...", first, parts[row_of])
            for axis in range(1, ndim):
                parts = torch.einsum("pa,pa...->p...", bases[axis][orders[axis]], parts)
            return parts

        return Jet(along(), [along(i) for i in range(ndim)], {key: along(*key) for key in pairs(ndim)})

    def _damping(self, axis: int, like: torch.Tensor) -> torch.Tensor:
        order = torch.arange(self._count, dtype=like.dtype, device=like.device)
        if self._periodic[axis]:  # 1, cosines, sines
            order = torch.cat((order[: self._highest + 1], order[1 : self._highest + 1])) * 2
        return torch.exp(-36 * (order / (self._count - 1)) ** 8)

    def _slope(self, axis: int, like: torch.Tensor) -> torch.Tensor:
        """Return the matrix that takes the coefficients of a function to those of its derivative along an axis."""
        if axis not in self._slopes:
            matrix = np.zeros((self._count, self._count))
            if self._periodic[axis]:
                for k in range(1, self._highest + 1):
                    w = 2 * math.pi * k / self._grid.extent[axis]
                    matrix[k, self._highest + k], matrix[self._highest + k, k] = w, -w
            else:  # T_n' = 2n (T_(n-1) + T_(n-3) + ...), with T_0 counted half
                for n in range(1, self._count):
                    matrix[n - 1 :: -2, n] = 2 * n
                matrix[0] /= 2
                matrix *= 2 / self._grid.extent[axis]
            self._slopes[axis] = torch.tensor(matrix)
        return self._slopes[axis].to(like)

    def _basis(self, axis: int, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the basis for the function, its first and its second derivative, each (points, modes)."""
        corner, extent = self._grid.origin[axis], self._grid.extent[axis]
        if self._periodic[axis]:
            w = 2 * math.pi / extent * torch.arange(1, self._highest + 1, dtype=x.dtype, device=x.device)
            angle = (x - corner)[:, None] * w
            return [torch.cat((torch.ones_like(x)[:, None], torch.cos(angle), torch.sin(angle)), 1)] * 3
        whole = 2 * (x - corner) / extent - 1
        inner = whole.clamp(-1, 1)
        value = torch.cos(torch.acos(inner)[:, None] * torch.arange(self._count, dtype=x.dtype, device=x.device))
        beyond = ((whole - inner) * extent / 2)[:, None]
        return [value + beyond * (value @ self._slope(axis, x)), value, value * (beyond == 0)]
