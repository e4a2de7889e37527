"""Gappy POD: a field everywhere from its values at few points, and points that make this well posed.

Points come from pivoted QR of the modes (QDEIM; Drmač and Gugercin, SIAM J. Sci. Comput. 38 (2016) A631); further ones
maximise the determinant of the Gram matrix. Both are chosen over all ranks, so that no subdomain has to be well posed
by itself: where a subdomain never yields it may have no point at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .communicator import Communicator, communicator

if TYPE_CHECKING:
    from mpi4py import MPI

TIE = 1e-9  # scores closer than this are equal: then the lowest global number wins, on any partition
RANK_FLOOR = 1e-10  # singular values of the restricted modes below this part of the largest carry no information


def qdeim_points(
    modes: np.ndarray, numbers: np.ndarray, count: int, comm: MPI.Comm | Communicator | None = None
) -> np.ndarray:
    """Return the global numbers, increasing, of `count` points (fewer if there are not so many) for modes. Collective.

    modes (local points, n) and the global numbers of the local points. The first n are those of pivoted QR, the others
    the rows of largest leverage in what is already chosen. Per point: two maxima and one sum of 2 n numbers.
    """
    ranks = communicator(comm)
    n = modes.shape[1]
    chosen: list[int] = []
    rows = np.zeros((0, n))
    rest = modes.copy()
    for _ in range(count):
        if len(chosen) < n:
            scores = np.einsum("ki,ki->k", rest, rest)
        else:
            scores = np.einsum("ki,ij,kj->k", modes, np.linalg.pinv(rows.T @ rows, rcond=RANK_FLOOR**2), modes)
        scores = np.where(np.isin(numbers, chosen), -np.inf, scores)
        best = ranks.maximum(float(scores.max(initial=-np.inf)))
        if not best > 0:
            break
        near = scores >= best * (1 - TIE)
        number = int(-ranks.maximum(float(-numbers[near].min()) if near.any() else -np.inf))
        both = ranks.sum(np.concatenate([modes[numbers == number].sum(axis=0), rest[numbers == number].sum(axis=0)]))
        chosen.append(number)
        rows = np.vstack([rows, both[:n]])
        direction = both[n:] / max(np.linalg.norm(both[n:]), 1e-300)
        rest -= np.outer(rest @ direction, direction)
    return np.sort(np.array(chosen, dtype=int))


@dataclass(frozen=True, kw_only=True, eq=False)
class Gappy:
    """Modes restricted to the chosen points, (values at points, n), the same on every rank."""

    rows: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "inverse", np.linalg.pinv(self.rows, rcond=RANK_FLOOR))

    def coefficients(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return least squares coefficients (..., n) of values (..., values at points), misfits and norms (...)."""
        coefficients = values @ self.inverse.T
        misfit = np.linalg.norm(values - coefficients @ self.rows.T, axis=-1)
        return coefficients, misfit, np.linalg.norm(values, axis=-1)
