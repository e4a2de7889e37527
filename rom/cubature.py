"""Empirical cubature: few quadrature points with nonnegative weights that integrate given functions and the volume.

Lawson and Hanson's nonnegative least squares, distributed: points stay on their ranks, only chosen columns travel.
With V the volume, b the exact integrals and Σ x = V the residual A x - b is (A - b/V) x. Minimising it with one more
row β Σ x = β V and scaling x to Σ x = V gives the constrained minimum for any β, so the volume is exact.

Three modes. "exact" selects over all points at once. "two-level" selects candidates on every rank alone, gathers their
columns, and selects among them: local rules together are an admissible start, so that it always succeeds. "local"
keeps what every rank selects alone, as Casenave et al. (2020) do: points multiply with the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import qr_delete, qr_insert, solve_triangular

from .communicator import Communicator, Serial, communicator
from .law import ConvergenceError
from .pod import PointProduct, triangle

if TYPE_CHECKING:
    from mpi4py import MPI

TIE = 1e-9  # scores closer than this are equal: then the lowest global number wins, on any partition
MODES = ("exact", "two-level", "local")
LOCAL_SHARE = 0.1  # of the tolerance, for the candidates of the two-level mode


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
    mode: str = "exact",
) -> Cubature:
    """Return points that integrate all integrands to a tolerance relative to their integrals. Collective.

    integrands (local points, functions), exact weights and global numbers of the local points. Points of the mode
    "exact" do not depend on the partition; per iteration: two maxima and one sum of (functions + 1) numbers. Mode
    "two-level" sends the candidates' columns once. Mode "local" meets the tolerance on each rank, not on the whole.

    Raises
    ------
    ValueError : unknown mode, or integrands that are not finite; on every rank.
    ConvergenceError : the tolerance is below what rounding allows.
    """
    ranks = communicator(comm)
    if mode not in MODES:
        raise ValueError(f"Cubature mode {mode!r} is not known; use one of {MODES}.")
    bad = np.argwhere(~np.isfinite(integrands))
    error = ValueError(f"Integrand {bad[0][1]} is not finite at point {numbers[bad[0][0]]}.") if len(bad) else None
    ranks.raise_together(error, ValueError)
    total = ranks.sum(np.append(weights @ integrands, weights.sum()))
    if mode == "exact":
        return _select(integrands, total, numbers, tolerance * _scale(integrands, weights, total, ranks), ranks)
    alone = Serial()
    own = np.append(weights @ integrands, weights.sum())
    if mode == "local":
        allowed = tolerance * _scale(integrands, weights, own, alone)
    else:
        allowed = LOCAL_SHARE * tolerance * _scale(integrands, weights, total, ranks) / ranks.size
    rule, error = None, None
    try:
        rule = _select(integrands, own, np.arange(len(numbers)), allowed, alone)
    except ConvergenceError as caught:
        error = caught
    ranks.raise_together(error, ConvergenceError)
    points = np.concatenate(ranks.gather(numbers[rule.points]))
    columns = np.concatenate(ranks.gather(integrands[rule.points]))
    order = np.argsort(points)
    if mode == "two-level":
        scale = _scale(integrands, weights, total, ranks)
        return _select(columns[order], total, points[order], tolerance * scale, alone)
    found = np.concatenate(ranks.gather(rule.weights))[order]
    miss = np.linalg.norm(found @ columns[order] - total[:-1])
    return Cubature(points=points[order], weights=found, error=float(miss / (np.linalg.norm(total[:-1]) or 1.0)))


def compressed(
    integrands: np.ndarray,
    weights: np.ndarray,
    *,
    tolerance: float,
    comm: MPI.Comm | Communicator | None = None,
) -> np.ndarray:
    """Return few combinations of the integrands whose cubature is that of all of them to a tolerance. Collective.

    They are the left singular vectors times the singular values, so that the norm of a rule's errors on them is that of
    its errors on the integrands; left out is what the exact rule could see of them by at most `tolerance` of the norm
    of all integrals. One butterfly of functions² numbers.
    """
    ranks = communicator(comm)
    total = ranks.sum(np.append(weights @ integrands, weights.sum()))
    _, s, Vt = np.linalg.svd(triangle(PointProduct(weights), integrands, ranks), full_matrices=False)
    # |∫ g| ≤ √V ‖g‖, for all functions together.
    tail = np.sqrt(total[-1] * np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0))
    kept = int(np.argmax(tail <= tolerance * np.linalg.norm(total[:-1]))) if total[:-1].any() else len(s)
    kept = min(max(kept, 1), int(np.sum(s > 1e-14 * s[0])) or 1)
    return integrands @ Vt[:kept].T


def _scale(integrands: np.ndarray, weights: np.ndarray, total: np.ndarray, ranks: Communicator) -> float:
    """Return the norm of the integrals, or where all of them vanish, that of the integrands. Collective."""
    size = float(np.linalg.norm(total[:-1]))
    return size or float(np.sqrt(total[-1] * ranks.sum(weights @ integrands**2).sum())) or 1.0


class _ActiveSet:
    """The chosen columns with their QR factors, updated by one column at a time, and the weights."""

    def __init__(self, right: np.ndarray) -> None:
        self.right = right
        self.numbers: list[int] = []
        self.columns = np.zeros((0, len(right)))
        self.x = np.zeros(0)
        self.Q, self.R = np.zeros((len(right), 0)), np.zeros((0, 0))

    @property
    def residual(self) -> np.ndarray:
        """What the chosen columns leave of the right side."""
        return self.right - self.x @ self.columns

    def add(self, number: int, column: np.ndarray) -> None:
        """Take one more column and solve, dropping columns whose weights turn negative."""
        if self.numbers:
            self.Q, self.R = qr_insert(self.Q, self.R, column, len(self.numbers), which="col", check_finite=False)
        else:
            size = np.linalg.norm(column)
            self.Q, self.R = column[:, None] / size, np.array([[size]])
        self.numbers.append(number)
        self.columns = np.vstack([self.columns, column])
        self.x = np.append(self.x, 0.0)
        while True:
            n = len(self.numbers)
            z = solve_triangular(self.R[:n], (self.Q.T @ self.right)[:n], check_finite=False)
            if (z > 0).all():
                self.x = z
                return
            bad = z <= 0
            step = (self.x[bad] / np.maximum(self.x[bad] - z[bad], 1e-300)).min()
            self.x = self.x + step * (z - self.x)
            self._drop(np.flatnonzero(bad & (self.x <= 1e-14 * self.x.max())))

    def _drop(self, places: np.ndarray) -> None:
        for place in places[::-1]:
            self.Q, self.R = qr_delete(self.Q, self.R, int(place), which="col", check_finite=False)
            self.numbers.pop(int(place))
        self.columns = np.delete(self.columns, places, axis=0)
        self.x = np.delete(self.x, places)


def _select(
    integrands: np.ndarray, total: np.ndarray, numbers: np.ndarray, allowed: float, ranks: Communicator
) -> Cubature:
    """Return the rule whose error, the norm over all functions, is at most allowed. Collective."""
    b, V = total[:-1], total[-1]
    size = np.linalg.norm(b)
    scale = size or np.sqrt(ranks.sum(np.sum(integrands**2))) or 1.0
    A = np.hstack([integrands - b / V, np.full((len(integrands), 1), scale / V)])
    right = np.append(np.zeros(len(b)), scale)
    norms = np.linalg.norm(A, axis=1)
    active = _ActiveSet(right)
    free, places = np.ones(len(A), dtype=bool), {}  # which may be chosen; where those that were are, if on this rank
    error = np.inf
    for _ in range(10 * A.shape[1]):
        scores = np.where(free, A @ active.residual / norms, -np.inf)
        best = ranks.maximum(scores.max(initial=-np.inf))
        near = scores >= best * (1 - TIE)
        number = int(-ranks.maximum(float(-numbers[near].min()) if near.any() else -np.inf)) if best > 0 else -1
        if number < 0:
            break
        places[number] = np.flatnonzero(numbers == number)
        active.add(number, ranks.sum(A[places[number]].sum(axis=0)))
        free[:] = True
        free[np.concatenate([places[chosen] for chosen in active.numbers])] = False
        x = active.x * (V / active.x.sum())
        error = np.linalg.norm(x @ active.columns[:, :-1])
        if error <= allowed:
            order = np.argsort(active.numbers)
            points = np.array(active.numbers, dtype=int)[order]
            return Cubature(points=points, weights=x[order], error=float(error / scale))
    raise ConvergenceError(f"Cubature stopped at an error of {error:.3g}; {allowed:.3g} was asked for.")
