"""Proper orthogonal decomposition of snapshots spread over ranks, in the inner product of the finite elements.

Snapshots are columns, (local rows, snapshots). An inner product turns them into plain rows, block by block, such that
the Gram matrix is the sum of rowsᵀ rows over blocks and ranks: TSQR of these rows needs no factor of the mass matrix,
counts no interface node twice and keeps full precision, where the Gram matrix keeps half of the digits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .communicator import Communicator, communicator
from .kinematics import Kinematics

if TYPE_CHECKING:
    from mpi4py import MPI

BLOCK_ROWS = 4096  # rows that are factored at once: they stay in cache
GRAM_FLOOR = 1e-7  # the Gram matrix has no information on singular values below about √ε


class InnerProduct(ABC):
    """An inner product of local fields that adds up over ranks."""

    @abstractmethod
    def rows(self, fields: np.ndarray) -> Iterator[np.ndarray]:
        """Yield blocks of rows, (any, columns), whose rowsᵀ rows add up to the local Gram matrix of the columns."""

    def gram(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the local share of the inner products of all columns of a with all of b."""
        both = np.hstack([a, b])
        total = np.zeros((a.shape[1], b.shape[1]))
        for rows in self.rows(both):
            total += rows[:, : a.shape[1]].T @ rows[:, a.shape[1] :]
        return total


class PointProduct(InnerProduct):
    """∫ a b of fields at quadrature points by the weights (num_points,); with weights of ones, the Euclidean one."""

    def __init__(self, weights: np.ndarray) -> None:
        self.roots = np.sqrt(weights)

    def rows(self, fields: np.ndarray) -> Iterator[np.ndarray]:
        """Yield fields times the roots of the weights."""
        for first in range(0, len(fields), BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            yield fields[part] * self.roots[part, None]


class MassProduct(InnerProduct):
    """∫ u·v of displacements, rows 3 * local node + direction, over the own elements (so interfaces count once)."""

    def __init__(self, kinematics: Kinematics) -> None:
        factors = [np.linalg.cholesky(mass) for mass in kinematics.mass()]
        self.blocks = [
            (nodes, np.swapaxes(factor, 1, 2))
            for (_, _, nodes), factor in zip(kinematics.mesh.blocks(), factors, strict=True)
        ]

    def rows(self, fields: np.ndarray) -> Iterator[np.ndarray]:
        """Yield Cholesky factors of element mass matrices times the fields of the elements."""
        nodal = fields.reshape(-1, 3 * fields.shape[1])
        for nodes, factor in self.blocks:
            step = max(1, BLOCK_ROWS // (3 * nodes.shape[1]))
            for first in range(0, len(nodes), step):
                part = slice(first, first + step)
                yield (factor[part] @ nodal[nodes[part]]).reshape(-1, fields.shape[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """Orthonormal modes: local rows of them (rows, modes), their singular values, and those of everything (spectrum).

    energy is the squared norm of all snapshots, discarded the squared norm of what truncations left out.
    """

    modes: np.ndarray
    singular_values: np.ndarray
    spectrum: np.ndarray
    energy: float
    discarded: float


def triangle(product: InnerProduct, fields: np.ndarray, comm: MPI.Comm | Communicator | None = None) -> np.ndarray:
    """Return R of the QR factors of all ranks' rows (TSQR), (columns, columns), the same bits everywhere. Collective.

    A butterfly: log₂(ranks) exchanges of columns² numbers with a partner.
    """
    ranks = communicator(comm)
    k = fields.shape[1]
    R = np.zeros((0, k))
    for rows in product.rows(fields):
        R = np.linalg.qr(np.concatenate([R, rows]), mode="r")
    R = np.concatenate([R, np.zeros((k - len(R), k))])
    half = 1 << (ranks.size.bit_length() - 1)
    fold = {ranks.rank ^ half} if (ranks.rank ^ half) < ranks.size and half < ranks.size else set()
    R = _merge(ranks, R, fold)
    level = 1
    while level < half:
        R = _merge(ranks, R, {ranks.rank ^ level} if ranks.rank < half else set())
        level *= 2
    final = ranks.exchange(dict.fromkeys(fold, R))
    return final[ranks.rank ^ half] if ranks.rank >= half else R


def _merge(ranks: Communicator, R: np.ndarray, partner: set[int]) -> np.ndarray:
    """Return R of this rank's and the partner's triangle, stacked in rank order so that both get the same bits."""
    for other, theirs in ranks.exchange(dict.fromkeys(partner, R)).items():
        pair = [R, theirs] if ranks.rank < other else [theirs, R]
        return np.linalg.qr(np.concatenate(pair), mode="r")
    return R


def pod(
    snapshots: np.ndarray,
    product: InnerProduct,
    *,
    tolerance: float,
    comm: MPI.Comm | Communicator | None = None,
    method: str = "tsqr",
) -> Basis:
    """Return the modes that hold all snapshots (local rows, snapshots) to a relative tolerance. Collective.

    Kept are singular values above tolerance times the largest, and as many as leave a projection error of at most
    tolerance times the norm of all snapshots. Snapshots that vanish everywhere give no modes.

    Raises
    ------
    ValueError : snapshots that are not finite, unknown method, or method "gram" with a tolerance below 1e-7.
    """
    ranks = communicator(comm)
    if method not in ("tsqr", "gram"):
        raise ValueError(f"POD method {method!r} is not known; use 'tsqr' or 'gram'.")
    if not 0 < tolerance < 1 or (method == "gram" and tolerance < GRAM_FLOOR):
        raise ValueError(f"POD tolerance {tolerance} with {method!r}: use (0, 1); below {GRAM_FLOOR} only 'tsqr'.")
    _check_finite(snapshots, ranks)
    if method == "tsqr":
        _, s, Vt = np.linalg.svd(triangle(product, snapshots, ranks))
    else:
        values, vectors = np.linalg.eigh(ranks.sum(product.gram(snapshots, snapshots)))
        s, Vt = np.sqrt(np.maximum(values[::-1], 0)), vectors.T[::-1]
    n = _count(s, tolerance)
    modes = _orthonormal(snapshots @ (Vt[:n].T / s[:n]), product, ranks)
    return Basis(modes=modes, singular_values=s[:n], spectrum=s, energy=float(s @ s), discarded=float(s[n:] @ s[n:]))


def enrich(
    basis: Basis,
    snapshots: np.ndarray,
    product: InnerProduct,
    *,
    tolerance: float,
    comm: MPI.Comm | Communicator | None = None,
) -> Basis:
    """Return the POD of the old modes weighted by their singular values and new snapshots together. Collective.

    Called for one time step after the other it is the incremental POD (Brand, Lin. Alg. Appl. 415 (2006) 20), which
    never holds all snapshots; the truncations of all calls add up in `discarded`.
    """
    ranks = communicator(comm)
    _check_finite(snapshots, ranks)
    n = len(basis.singular_values)
    C = np.zeros((n, snapshots.shape[1]))
    rest = snapshots
    for _ in range(2):  # the second pass removes what rounding left along the old modes
        step = ranks.sum(product.gram(basis.modes, rest))
        C, rest = C + step, rest - basis.modes @ step
    _, r, Vt = np.linalg.svd(triangle(product, rest, ranks))
    new = int(np.sum(r > 1e-13 * np.sqrt(basis.energy + np.sum(C**2) + r @ r)))
    both = _orthonormal(np.hstack([basis.modes, rest @ (Vt[:new].T / r[:new])]), product, ranks)
    K = np.block([[np.diag(basis.singular_values), C], [np.zeros((new, n)), r[:new, None] * Vt[:new]]])
    U, s, _ = np.linalg.svd(K, full_matrices=False)
    kept = _count(s, tolerance)
    return Basis(
        modes=both @ U[:, :kept], singular_values=s[:kept], spectrum=s,
        energy=basis.energy + float(np.sum(C**2) + r @ r), discarded=basis.discarded + float(s[kept:] @ s[kept:]),
    )  # fmt: skip


def _count(s: np.ndarray, tolerance: float) -> int:
    if s.size == 0 or s[0] == 0.0:
        return 0
    tail = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0.0)
    enough = int(np.argmax(tail <= tolerance**2 * tail[0]))
    return max(enough, int(np.sum(s > max(tolerance, 1e-14) * s[0])))


def _orthonormal(modes: np.ndarray, product: InnerProduct, ranks: Communicator) -> np.ndarray:
    if not modes.shape[1]:
        return modes
    R = triangle(product, modes, ranks)
    return modes @ np.linalg.inv(R * np.sign(np.diagonal(R))[:, None])


def _check_finite(snapshots: np.ndarray, ranks: Communicator) -> None:
    bad = np.argwhere(~np.isfinite(snapshots))
    error = None
    if len(bad):
        error = ValueError(f"Snapshot {bad[0][1]} is not finite in local row {bad[0][0]}; leave it out or mend it.")
    ranks.raise_together(error, ValueError)
