"""Empirical cubature: few quadrature points with nonnegative weights that integrate given functions and the volume.

Lawson and Hanson's nonnegative least squares, distributed: points stay on their ranks, only chosen columns travel.
With V the volume, b the exact integrals and Σ x = V the residual A x - b is (A - b/V) x. Minimising it with one more
row β Σ x = β V and scaling x to Σ x = V gives the constrained minimum for any β, so the volume is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .communicator import Communicator, communicator
from .law import ConvergenceError

if TYPE_CHECKING:
    from mpi4py import MPI

TIE = 1e-9  # scores closer than this are equal: then the lowest global number wins, on any partition


@dataclass(frozen=True, kw_only=True)
class Cubature:
    """Chosen points by global number, increasing, their weights, and the relative error; the same on every rank."""

    points: np.ndarray
    weights: np.ndarray
    error: float


def cubature(
    integrands: np.ndarray,
    weights: np.ndarray,
    numbers: np.ndarray,
    *,
    tolerance: float,
    comm: MPI.Comm | Communicator | None = None,
) -> Cubature:
    """Return points that integrate all integrands to a tolerance relative to their integrals. Collective.

    integrands (local points, functions), exact weights and global numbers of the local points. Points do not depend on
    the partition. Per iteration: two maxima and one sum of (functions + 2) numbers.

    Raises
    ------
    ConvergenceError : the tolerance is below what rounding allows.
    """
    ranks = communicator(comm)
    total = ranks.sum(np.append(weights @ integrands, weights.sum()))
    b, V = total[:-1], total[-1]
    scale = np.linalg.norm(b) or np.sqrt(V * float(ranks.sum(weights @ integrands**2).sum())) or 1.0
    A = np.hstack([integrands - b / V, np.full((len(weights), 1), scale / V)])
    right = np.append(np.zeros(len(b)), scale)
    norms = np.linalg.norm(A, axis=1)
    chosen, columns, x = np.zeros(0, dtype=int), np.zeros((0, A.shape[1])), np.zeros(0)
    error = np.inf
    for _ in range(10 * A.shape[1]):
        scores = np.where(np.isin(numbers, chosen), -np.inf, A @ (right - x @ columns) / norms)
        best = ranks.maximum(scores.max(initial=-np.inf))
        near = scores >= best * (1 - TIE)
        number = int(-ranks.maximum(float(-numbers[near].min()) if near.any() else -np.inf)) if best > 0 else -1
        if number < 0:
            break
        column = ranks.sum(A[numbers == number].sum(axis=0))
        chosen, columns, x = np.append(chosen, number), np.vstack([columns, column]), np.append(x, 0.0)
        chosen, columns, x = _solve(chosen, columns, x, right)
        error = np.linalg.norm(x @ columns[:, :-1]) * V / x.sum() / scale
        if error <= tolerance:
            order = np.argsort(chosen)
            return Cubature(points=chosen[order], weights=(x * V / x.sum())[order], error=float(error))
    raise ConvergenceError(f"Cubature stopped at a relative error of {error:.3g}; {tolerance:.3g} was asked for.")


def _solve(
    chosen: np.ndarray, columns: np.ndarray, x: np.ndarray, right: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the least squares solution on the chosen points after dropping those whose weights turn negative."""
    while True:
        z = np.linalg.lstsq(columns.T, right, rcond=None)[0]
        if (z > 0).all():
            return chosen, columns, z
        bad = z <= 0
        x = x + (x[bad] / np.maximum(x[bad] - z[bad], 1e-300)).min() * (z - x)
        keep = ~(bad & (x <= 1e-14 * x.max()))
        chosen, columns, x = chosen[keep], columns[keep], x[keep]
