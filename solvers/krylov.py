"""Preconditioned GMRES on distributed vectors, matrix-free, with one global reduction per iteration.

Saad and Schultz 1986, preconditioned from the right in the form of Saad 1993; classical Gram-Schmidt with all dot
products fused into one reduction, repeated where cancellation would spoil orthogonality. V is the Krylov basis, R the
triangular factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .blocks import Blocks


class Gmres:
    """Solves A x = b for x : (points,), storage for the basis included; no restarts.

    cancellation : part of its square that a new vector may lose in one pass of orthogonalisation; below it a second
        follows. Each such loss multiplies the error of the basis: small values are for a few digits only.
    """

    def __init__(self, blocks: Blocks, points: int, max_iterations: int, *, cancellation: float = 0.5) -> None:
        self._blocks = blocks
        self._cancellation = cancellation
        self._max_iterations = max_iterations
        self._basis = np.empty((0, points))
        self._preconditioned = np.empty((0, points))

    def solve(
        self,
        apply: Callable[[np.ndarray], np.ndarray],
        precondition: Callable[[np.ndarray], np.ndarray],
        b: np.ndarray,
        *,
        norm_b: float,
        relative: float,
    ) -> tuple[np.ndarray, int]:
        """Return x with ‖b - A x‖ <= relative·‖b‖, or the best found, and the iterations. Collective."""
        if norm_b == 0.0 or not math.isfinite(norm_b):
            return np.zeros_like(b), 0
        self._reserve(8)
        self._basis[0] = b / norm_b
        columns: list[np.ndarray] = []
        rotations: list[tuple[float, float]] = []
        g = [norm_b]
        for j in range(self._max_iterations):
            self._reserve(j + 2)
            self._preconditioned[j] = precondition(self._basis[j])
            column, h_next = self._orthogonalise(apply(self._preconditioned[j]), j + 1)
            for i, (c, s) in enumerate(rotations):
                column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
            r = math.hypot(column[j], h_next)
            if r == 0.0 or not math.isfinite(r):
                break
            c, s = column[j] / r, h_next / r
            column[j] = r
            rotations.append((c, s))
            columns.append(column[: j + 1])
            g[j:] = [c * g[j], -s * g[j]]
            if abs(g[j + 1]) <= relative * norm_b:
                break
        return self._combination(columns, g), len(columns)

    def _orthogonalise(self, w: np.ndarray, known: int) -> tuple[np.ndarray, float]:
        """Append w to the basis; return its products with the vectors known, padded by one entry, and its norm."""
        V = self._basis[:known]
        h = np.zeros(known + 1)
        # A second pass is needed only where w lies almost in the span of V.
        for _ in range(2):
            products = self._blocks.sum(np.append(V @ w, w @ w))
            w = w - products[:-1] @ V
            h[:-1] += products[:-1]
            before = products[-1]
            squared = before - products[:-1] @ products[:-1]
            if squared > self._cancellation * before:
                break
        norm = math.sqrt(squared) if squared > 0 else 0.0
        if norm > 0:
            np.multiply(w, 1 / norm, out=self._basis[known])
        return h, norm

    def _combination(self, columns: list[np.ndarray], g: list[float]) -> np.ndarray:
        m = len(columns)
        R = np.zeros((m, m))
        for j, column in enumerate(columns):
            R[: j + 1, j] = column
        y = np.linalg.solve(R, np.array(g[:m])) if m else np.zeros(0)
        return y @ self._preconditioned[:m]

    def _reserve(self, vectors: int) -> None:
        if len(self._basis) < vectors:
            size = min(2 * vectors, self._max_iterations + 1)
            self._basis = _grown(self._basis, size)
            self._preconditioned = _grown(self._preconditioned, size)


def _grown(vectors: np.ndarray, size: int) -> np.ndarray:
    grown = np.empty((size, vectors.shape[1]))
    grown[: len(vectors)] = vectors
    return grown
