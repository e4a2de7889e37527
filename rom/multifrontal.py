"""Sparse Cholesky factors of finite-element matrices, by fronts of dense blocks.

Elements are bisected recursively by their centroids; each branch eliminates the dofs that no element outside it
touches and passes its Schur complement up (B. Irons 1970; I. Duff and J. Reid 1983). All arithmetic is dense matrix
products, so that numpy's BLAS carries it, and no global sparse matrix is ever formed. The tree is found once for a
mesh; later factorisations only repeat the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .law import ConvergenceError
from .mesh import Mesh

LEAF_NODES = 90
PANEL = 96  # columns eliminated at once
SMALLEST_PIVOT = 1e-13
SEARCHED = 64  # branches of fewer elements are halved without looking for the best cut
CUTS = (0.5, 0.47, 0.53, 0.44, 0.56, 0.41, 0.59)  # parts of the elements on the lower side


@dataclass(eq=False)
class _Front:
    """One branch of the tree: dofs (eliminated first), how many are eliminated, and where its parts come from."""

    dofs: np.ndarray
    num_eliminated: int
    children: list[_Front] = field(default_factory=list)
    places: list[np.ndarray] = field(default_factory=list)  # of each child's remaining dofs among the dofs here
    elements: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)  # block, elements, flat index


@dataclass(eq=False)
class _Columns:
    """The columns of the factor that one front makes.

    `panels` hold the inverse of each triangle on the diagonal and what lies below it among the eliminated dofs;
    `rest` holds the rows of the dofs that remain.
    """

    panels: list[tuple[np.ndarray, np.ndarray]]
    rest: np.ndarray


class EliminationTree:
    """The order in which the dofs of a mesh are eliminated; `factor` makes factors of matrices on it.

    Parameters
    ----------
    mesh : the mesh; dofs are 3 per node.
    free : which dofs belong to the matrix, (3 num_nodes,); the others are left out (held at zero).
    """

    def __init__(self, mesh: Mesh, free: np.ndarray) -> None:
        self.free = free
        self.num_dofs = len(free)
        self._blocks = [(first, block) for _, first, block in mesh.blocks()]
        self._place = np.full(self.num_dofs, -1)
        self._mark = mesh.num_nodes
        self.fronts: list[_Front] = []
        centroids = np.concatenate([mesh.points[block].mean(axis=1) for _, block in self._blocks])
        self._valence = np.bincount(
            np.concatenate([block.ravel() for _, block in self._blocks]), minlength=mesh.num_nodes
        )
        self._grow(centroids, np.arange(mesh.num_elements))

    @property
    def num_entries(self) -> int:
        """Numbers in a factor."""
        return sum(f.num_eliminated * (2 * len(f.dofs) - f.num_eliminated + 1) // 2 for f in self.fronts)

    def factor(self, elements: Sequence[np.ndarray], diagonal: np.ndarray | None = None) -> Factor:
        """Factor the sum of element matrices, one array (elements, 3n, 3n) per block of the mesh.

        Unsymmetric matrices are replaced by their symmetric parts: then the factor is a preconditioner.
        diagonal : numbers added on the diagonal, (3 num_nodes,).

        Raises
        ------
        ConvergenceError : the matrix is not positive definite.
        """
        columns: list[_Columns] = []
        waiting: dict[int, np.ndarray] = {}
        for front in self.fronts:
            F = np.zeros((len(front.dofs), len(front.dofs)))
            if front.elements:
                size = len(front.dofs) + 1
                total = np.zeros(size * size)
                for block, chosen, flat in front.elements:
                    total += np.bincount(flat, weights=elements[block][chosen].ravel(), minlength=size * size)
                F = total.reshape(size, size)[:-1, :-1]
                F = (F + F.T) / 2
            for child, place in zip(front.children, front.places, strict=True):
                F.ravel()[(place[:, None] * len(F) + place).ravel()] += waiting.pop(id(child)).ravel()
            k = front.num_eliminated
            if diagonal is not None:
                F[np.arange(k), np.arange(k)] += diagonal[front.dofs[:k]]
            columns.append(self._eliminate(F, front))
            waiting[id(front)] = F[k:, k:]
        return Factor(self, columns)

    def _eliminate(self, F: np.ndarray, front: _Front) -> _Columns:
        """Eliminate the first dofs of a front, panel by panel, leaving the Schur complement of the others in place."""
        panels = []
        k = front.num_eliminated
        scale = np.diagonal(F)[:k].copy()
        for first in range(0, k, PANEL):
            last = min(first + PANEL, k)
            try:
                triangle = np.linalg.cholesky(F[first:last, first:last])
                pivots = np.diagonal(triangle) ** 2
                if np.any(pivots < SMALLEST_PIVOT * scale[first:last]):
                    raise np.linalg.LinAlgError
            except np.linalg.LinAlgError:
                node = front.dofs[first] // 3
                raise ConvergenceError(
                    f"The stiffness is not positive definite near local node {node}: the material softens, the "
                    "supports leave a rigid motion free, or reduced integration leaves an hourglass mode of a mesh "
                    "one element wide. Add supports or elements, or shorten the step."
                ) from None
            inverse = np.linalg.inv(triangle)
            F[last:, first:last] = F[last:, first:last] @ inverse.T
            below = F[last:k, first:last].copy()
            F[last:, last:k] -= F[last:, first:last] @ below.T
            panels.append((inverse, below))
        rest = F[k:, :k].copy()
        F[k:, k:] -= rest @ rest.T
        return _Columns(panels, rest)

    def _grow(self, centroids: np.ndarray, elements: np.ndarray) -> tuple[_Front, np.ndarray, np.ndarray]:
        """Append the fronts of a branch; return its front, the nodes that others touch too, and its count of each."""
        nodes, counts, groups = self._touched(elements)
        if len(nodes) <= LEAF_NODES or len(elements) == 1:
            front = self._front(nodes, counts)
            self._place[front.dofs] = np.arange(len(front.dofs))
            size = len(front.dofs) + 1
            for block, chosen, cells in groups:
                dofs = (3 * cells[..., None] + np.arange(3)).reshape(len(cells), -1)
                place = np.where(self.free[dofs], self._place[dofs], size - 1)
                front.elements.append((block, chosen, (place[:, :, None] * size + place[:, None, :]).ravel()))
        else:
            halves = self._cut(centroids[elements], elements, groups)
            children = [self._grow(centroids, half) for half in halves]
            both = np.concatenate([child[1] for child in children])
            nodes, inverse = np.unique(both, return_inverse=True)
            counts = np.bincount(inverse, weights=np.concatenate([child[2] for child in children])).astype(int)
            front = self._front(nodes, counts)
            self._place[front.dofs] = np.arange(len(front.dofs))
            for child, _, _ in children:
                front.children.append(child)
                front.places.append(self._place[child.dofs[child.num_eliminated :]])
        self.fronts.append(front)
        outer = counts < self._valence[nodes]
        return front, nodes[outer], counts[outer]

    def _cut(
        self, X: np.ndarray, elements: np.ndarray, groups: list[tuple[int, np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return two halves of a branch that share few nodes: of the cuts across its longer extents, the cheapest."""
        extent = np.ptp(X, axis=0)
        best: tuple[float, np.ndarray] | None = None
        for axis in np.argsort(-extent, kind="stable"):
            order = np.argsort(X[:, axis], kind="stable")
            if extent[axis] < 0.5 * extent.max() or (best and len(elements) < SEARCHED):
                break
            for part in (0.5,) if len(elements) < SEARCHED else CUTS:
                low = np.zeros(len(elements), dtype=bool)
                low[order[: max(1, int(part * len(order)))]] = True
                cost = self._shared(low, elements, groups) * (1 + 2 * abs(part - 0.5))
                # A margin keeps round-off in coordinates from choosing between equal cuts.
                if best is None or cost < 0.999 * best[0]:
                    best = cost, low
        return elements[best[1]], elements[~best[1]]

    def _shared(self, low: np.ndarray, elements: np.ndarray, groups: list[tuple[int, np.ndarray, np.ndarray]]) -> int:
        """Return how many nodes elements chosen by low share with the others."""
        sides = np.zeros((2, self._mark), dtype=bool)
        for block, chosen, cells in groups:
            here = low[np.searchsorted(elements, chosen + self._blocks[block][0])]
            sides[0, cells[here]] = True
            sides[1, cells[~here]] = True
        return int(np.count_nonzero(sides[0] & sides[1]))

    def _touched(self, elements: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, np.ndarray, np.ndarray]]]:
        """Return nodes of elements, how often they occur, and (block, elements in it, their nodes)."""
        groups = []
        for index, (first, block) in enumerate(self._blocks):
            chosen = elements[(elements >= first) & (elements < first + len(block))] - first
            if chosen.size:
                groups.append((index, chosen, block[chosen]))
        nodes, counts = np.unique(np.concatenate([cells.ravel() for *_, cells in groups]), return_counts=True)
        return nodes, counts, groups

    def _front(self, nodes: np.ndarray, counts: np.ndarray) -> _Front:
        done = counts == self._valence[nodes]
        dofs = [(3 * part[:, None] + np.arange(3)).ravel() for part in (nodes[done], nodes[~done])]
        inner, outer = (part[self.free[part]] for part in dofs)
        return _Front(np.concatenate([inner, outer]), len(inner))


class Factor:
    """A Cholesky factor; `solve` applies the inverse."""

    def __init__(self, tree: EliminationTree, columns: list[_Columns]) -> None:
        self.tree, self.columns = tree, columns

    def solve(self, right: np.ndarray) -> np.ndarray:
        """Return the solution, (3 num_nodes,) or (3 num_nodes, columns); zero at dofs that are not free."""
        x = np.where(self.tree.free.reshape(-1, *[1] * (right.ndim - 1)), right, 0.0)
        fronts = list(zip(self.tree.fronts, self.columns, strict=True))
        for front, columns in fronts:
            k = front.num_eliminated
            part = x[front.dofs[:k]]
            first = 0
            for inverse, below in columns.panels:
                last = first + len(inverse)
                part[first:last] = inverse @ part[first:last]
                part[last:] -= below @ part[first:last]
                first = last
            x[front.dofs[:k]] = part
            x[front.dofs[k:]] -= columns.rest @ part
        for front, columns in reversed(fronts):
            k = front.num_eliminated
            part = x[front.dofs[:k]] - columns.rest.T @ x[front.dofs[k:]]
            last = k
            for inverse, below in reversed(columns.panels):
                first = last - len(inverse)
                part[first:last] = inverse.T @ (part[first:last] - below.T @ part[last:])
                last = first
            x[front.dofs[:k]] = part
        return x
