"""Two-level balancing domain decomposition: the preconditioner of stiffness matrices on subdomains.

J. Mandel, Comm. Numer. Meth. Engng 9 (1993) 233. Each rank factors its own stiffness twice: with the interface held
(interior dofs), and with the interface free. A residual is condensed to the interface, shared out by weights D among
the ranks, solved with free interfaces, averaged with the same weights, and extended harmonically. The coarse space is
the weighted rigid motions of every subdomain, extended harmonically; it makes the local problems of floating subdomains
solvable and the number of iterations independent of the number of subdomains.

Letters: s subdomain, Γ interface, I interior, W coarse vectors, E = Wᵀ K W.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from scipy.sparse.csgraph import connected_components

from .element_operator import ElementOperator
from .multifrontal import EliminationTree
from .partition import face_graph
from .subdomain import Subdomain

MODES = 6


class Balancing:
    """The preconditioner for one set of element matrices; `apply` takes and gives consistent fields."""

    def __init__(self, subdomain: Subdomain, free: np.ndarray) -> None:
        """Find elimination orders and coarse structure; free : (num_local_nodes, 3). Collective."""
        self.subdomain, self.free = subdomain, free
        self.interface = free & (subdomain.copies > 1)[:, None]
        self.interior_tree = EliminationTree(subdomain.mesh, (free & ~self.interface).ravel())
        self.local_tree = EliminationTree(subdomain.mesh, free.ravel())
        self.rigid = rigid_motions(subdomain.mesh.points)
        self.pins = self._pins()
        self.owners = [subdomain.comm.rank, *subdomain.neighbours]
        columns = [np.arange(MODES * rank, MODES * (rank + 1)) for rank in self.owners]
        self.columns = np.concatenate(columns)

    def refresh(self, matrices: Sequence[np.ndarray], stiffness: ElementOperator) -> None:
        """Take new element matrices and factor them.

        Raises
        ------
        ConvergenceError : a local stiffness is not positive definite (on this rank alone: the caller tells the others).
        """
        self.stiffness = stiffness
        diagonal = stiffness.diagonal()
        self.interior = self.interior_tree.factor(matrices)
        shift = np.zeros(diagonal.size)
        shift[self.pins] = diagonal.max()
        self.local = self.local_tree.factor(matrices, shift)

    def prepare_coarse(self) -> None:
        """Build weights and coarse space from the factors. Collective."""
        diagonal = self.stiffness.diagonal()
        total = self.subdomain.assemble(diagonal)
        self.weights = np.where(self.interface, diagonal / np.where(total > 0, total, 1), 0.0)
        own = self.weights[..., None] * self.rigid  # (nodes, 3, modes)
        shared = self.subdomain.neighbours
        others = self.subdomain.comm.exchange({rank: own[nodes] for rank, nodes in shared.items()})
        W = np.zeros((*own.shape[:2], MODES * len(self.owners)))
        W[..., :MODES] = own
        for k, (rank, nodes) in enumerate(shared.items(), start=1):
            W[nodes, :, MODES * k : MODES * (k + 1)] = others[rank] * self.interface[nodes][..., None]
        self.W = self._extend(W)
        # Away from the interface K W vanishes, because W is harmonic there.
        self.KW = np.where(self.interface[..., None], self._times(self.W), 0.0)
        size = MODES * self.subdomain.comm.size
        E = np.zeros((size, size))
        E[np.ix_(self.columns, self.columns)] = np.einsum("ndi,ndj->ij", self.W, self.KW)
        E = self.subdomain.comm.sum(E)
        # Rigid motions of two subdomains that share one interface may be dependent there.
        scale = np.sqrt(np.maximum(np.diagonal(E), 1e-300))
        values, vectors = np.linalg.eigh((E + E.T) / 2 / np.outer(scale, scale))
        kept = values > 1e-10 * values.max()
        half = vectors[:, kept] / np.sqrt(values[kept]) / scale[:, None]
        self.coarse_inverse = half @ half.T

    def apply(self, residual: np.ndarray) -> np.ndarray:
        """Return the preconditioned residual, (num_local_nodes, 3). Collective."""
        assemble = self.subdomain.assemble
        owned = self.subdomain.owned[:, None]
        first = self._coarse(np.tensordot(self.W, residual * owned, axes=((0, 1), (0, 1))))
        coarse = self.W @ first
        balanced = residual - assemble(self.KW @ first)
        inner = self.interior.solve(balanced.ravel()).reshape(-1, 3)
        condensed = np.where(self.interface, balanced - assemble(np.where(self.interface, self.stiffness(inner), 0)), 0)
        local = self.local.solve((self.weights * condensed).ravel()).reshape(-1, 3)
        edge = assemble(self.weights * local)
        z = inner + self._extend(edge[..., None])[..., 0]
        second = self._coarse(np.tensordot(self.KW, z, axes=((0, 1), (0, 1))))
        return coarse + z - self.W @ second

    def _coarse(self, local: np.ndarray) -> np.ndarray:
        """Solve the coarse problem for contributions of all ranks; return the coefficients of the columns here."""
        right = np.zeros(len(self.coarse_inverse))
        right[self.columns] = local
        return (self.coarse_inverse @ self.subdomain.comm.sum(right))[self.columns]

    def _times(self, columns: np.ndarray) -> np.ndarray:
        return np.stack([self.stiffness(columns[..., k]) for k in range(columns.shape[-1])], axis=-1)

    def _extend(self, edge: np.ndarray) -> np.ndarray:
        """Extend fields given on the interface to the interior so that interior forces vanish, (nodes, 3, columns)."""
        force = self._times(edge).reshape(-1, edge.shape[-1])
        return edge - self.interior.solve(force).reshape(edge.shape)

    def _pins(self) -> np.ndarray:
        """Return free dofs such that holding them stops every rigid motion that the supports leave.

        Pieces of a subdomain that no face connects are held one by one, because they move one by one.
        """
        _, piece = connected_components(face_graph(self.subdomain.mesh), directed=False)
        pins = []
        for k in range(piece.max() + 1):
            inside = np.zeros(self.free.shape, dtype=bool)
            for _, first, block in self.subdomain.mesh.blocks():
                inside[block[piece[first : first + len(block)] == k]] = True
            flat = self.rigid.reshape(-1, MODES)
            fixed = flat[(inside & ~self.free).ravel()]
            motions = scipy.linalg.null_space(fixed, rcond=1e-9) if len(fixed) else np.eye(MODES)
            candidates = np.flatnonzero(inside & self.free)
            if motions.shape[1]:
                _, _, order = scipy.linalg.qr((flat[candidates] @ motions).T, mode="economic", pivoting=True)
                pins.append(candidates[order[: motions.shape[1]]])
        return np.unique(np.concatenate(pins)) if pins else np.zeros(0, dtype=int)


def rigid_motions(points: np.ndarray) -> np.ndarray:
    """Return three translations and three rotations about the centre, scaled to size 1, (num_nodes, 3, 6)."""
    centre = points.mean(axis=0)
    arm = (points - centre) / np.abs(points - centre).max()
    R = np.zeros((len(points), 3, MODES))
    for d in range(3):
        R[:, d, d] = 1.0
        R[:, :, 3 + d] = np.cross(np.eye(3)[d], arm)
    return R
