"""A preconditioner for implicit diffusion: the exact inverse for constant coefficients, by fast diagonalisation.

Per field, (sigma - beta k ∇²)^-1 is diagonal in the eigenvectors Q of the one-dimensional second differences
(Lynch, Rice and Thomas 1964). Q is applied axis by axis as a matrix product; along a split axis the blocks of
one line are gathered and each rank computes its own rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .blocks import Blocks
from .boundary import Dirichlet, Periodic, sides_of
from .case import Case

LONGEST_AXIS = 1024
"""Beyond this length the dense transforms would cost more than the iterations they save."""


@lru_cache(maxsize=64)
def eigenpairs(n: int, low: str, high: str, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Q (n, n) and eigenvalues (n,) of -∂²/∂x² with homogeneous conditions.

    low, high : "periodic", "dirichlet" or "neumann", on cell-centred points at walls.
    """
    A = 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)
    for index, side in ((0, low), (-1, high)):
        if side != "periodic":
            A[index, index] += 1 if side == "dirichlet" else -1
    if low == "periodic":
        A[0, -1] -= 1
        A[-1, 0] -= 1
    values, Q = np.linalg.eigh(A / spacing**2)
    return Q, np.maximum(values, 0.0)


@dataclass(frozen=True, kw_only=True)
class _Transform:
    """Eigenvectors along one axis, Q (n, n): forward and backward are this block's rows of Q^T and Q."""

    eigenvectors: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    values: np.ndarray


class DiffusionPreconditioner:
    """Approximates (sigma - beta J)^-1 where J is dominated by diffusion.

    The coefficient k needs no declaration: J applied to a checkerboard gives -4 k Σ 1/h² times the checkerboard
    (less at Neumann walls), because advection by central differences does not see one.
    """

    def __init__(self, case: Case, blocks: Blocks) -> None:
        self._blocks = blocks
        self._fields = len(case.fields)
        self._ndim = case.grid.ndim
        self._sum_inverse_squares = sum(1 / h**2 for h in case.grid.spacing)
        self.possible = max(case.grid.shape) <= LONGEST_AXIS
        if not self.possible:
            return
        grids = np.ix_(*(np.arange(s.start, s.stop) for s in blocks.where))
        self._checkerboard = (-1.0) ** (sum(grids) % 2)
        # Unsplit axes first; the last one is a split one where there is any.
        self._order = sorted(range(self._ndim), key=lambda axis: blocks.dims[axis] > 1)
        self._transforms: list[list[_Transform]] = []
        self._responses: list[np.ndarray] = []
        sides = sides_of(case.boundary, case.fields, case.grid)
        for name in case.fields:
            per_axis, responses = [], []
            for axis in range(self._ndim):
                low, high = (_kind(side) for side in sides[name][axis])
                Q, values = eigenpairs(case.grid.shape[axis], low, high, case.grid.spacing[axis])
                rows = blocks.where[axis]
                alternating = (-1.0) ** np.arange(len(Q))
                responses.append((alternating * (Q @ (values * (Q.T @ alternating))))[rows])
                per_axis.append(
                    _Transform(eigenvectors=Q, forward=np.ascontiguousarray(Q.T[rows]), backward=Q[rows], values=values)
                )
            self._transforms.append(per_axis)
            self._responses.append(_outer_sum(responses))
        spectral = [slice(None) if axis == self._order[-1] else blocks.where[axis] for axis in range(self._ndim)]
        self._laplacians = [
            _outer_sum([transform.values[part] for transform, part in zip(per_axis, spectral, strict=True)])
            for per_axis in self._transforms
        ]
        self._inverse: list[np.ndarray | None] = [None] * self._fields
        self._scale: list[np.ndarray] = [np.ones(())] * self._fields

    def refresh(
        self, jvp: Callable[[np.ndarray], np.ndarray], sigma: float, beta: float, shape: tuple[int, ...]
    ) -> None:
        """Estimate the diffusion coefficient of every field from products with the Jacobian J. Collective."""
        if not self.possible:
            return
        probe = np.zeros(shape)
        for field in range(self._fields):
            probe[...] = 0
            probe[field] = self._checkerboard
            k = -jvp(probe)[field] * self._checkerboard / self._responses[field]
            minus_low, high = self._blocks.max(np.array([-np.min(k), np.max(k)]))
            low = -minus_low
            stiffness = beta * high * 4 * self._sum_inverse_squares
            if not np.isfinite(high) or stiffness < 0.5 * sigma:
                self._inverse[field] = None
                continue
            floor = max(low, 1e-3 * high)
            middle = np.sqrt(floor * high)
            # Concus and Golub 1973: scaling by the coefficient makes the constant-coefficient inverse nearly exact.
            self._scale[field] = 1 / np.sqrt(np.clip(k, floor, high))
            self._inverse[field] = 1 / (sigma / middle + beta * self._laplacians[field])

    def __call__(self, r: np.ndarray, sigma: float) -> np.ndarray:
        """Return the approximate solution of (sigma - beta J) u = r; r : (fields, *block). Collective."""
        if not self.possible or all(inverse is None for inverse in self._inverse):
            return r * (1 / sigma)
        u = np.empty_like(r)
        for field, inverse in enumerate(self._inverse):
            if inverse is None:
                np.multiply(r[field], 1 / sigma, out=u[field])
                continue
            v = r[field] * self._scale[field]
            transforms = self._transforms[field]
            for axis in self._order[:-1]:
                v = self._along(transforms[axis].forward, v, axis)
            # On the last axis every rank transforms the whole line: one gather serves both directions.
            last = self._order[-1]
            v = self._along(transforms[last].eigenvectors.T, v, last)
            v *= inverse
            v = np.moveaxis(np.tensordot(transforms[last].backward, v, axes=(1, last)), 0, last)
            for axis in self._order[:-1]:
                v = self._along(transforms[axis].backward, v, axis)
            np.multiply(v, self._scale[field], out=u[field])
        return u

    def _along(self, rows: np.ndarray, v: np.ndarray, axis: int) -> np.ndarray:
        """Return rows @ v along a grid axis of v : (*block)."""
        moved = np.moveaxis(v, axis, 0)
        line = self._blocks.gather_line(moved.reshape(len(moved), -1), axis)
        result = rows @ line.reshape(line.shape[0], -1)
        return np.moveaxis(result.reshape(len(rows), *moved.shape[1:]), 0, axis)


def _kind(side: object) -> str:
    if isinstance(side, Periodic):
        return "periodic"
    return "dirichlet" if isinstance(side, Dirichlet) else "neumann"


def _outer_sum(vectors: list[np.ndarray]) -> np.ndarray:
    return sum(np.ix_(*vectors)[1:], np.ix_(*vectors)[0])
