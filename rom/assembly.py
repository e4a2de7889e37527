"""Sparse matrices of a mesh: the pattern is found once, later assemblies only fill it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from .mesh import Mesh


class Pattern:
    """The sparsity of matrices on the nodes of a mesh, with square blocks of `width` dofs per node.

    Dof `width * node + direction`. Only contributions of the own elements: on a subdomain the matrix is split.
    """

    def __init__(self, mesh: Mesh, width: int = 3) -> None:
        self.width = width
        self.num_nodes = mesh.num_nodes
        pairs = [(block[:, :, None] * mesh.num_nodes + block[:, None, :]).ravel() for _, _, block in mesh.blocks()]
        keys, where = np.unique(np.concatenate(pairs), return_inverse=True)
        rows, self.indices = np.divmod(keys, mesh.num_nodes)
        self.indptr = np.searchsorted(rows, np.arange(mesh.num_nodes + 1))
        ones = np.ones(len(where))
        entries = sp.csr_array((ones, (where, np.arange(len(where)))), shape=(len(keys), len(where)))
        self._sum = entries

    def assemble(self, elements: Sequence[np.ndarray]) -> sp.bsr_array:
        """Return the sum of element matrices, one array (elements, width·n, width·n) per block of the mesh."""
        w = self.width
        flat = []
        for matrices in elements:
            n = matrices.shape[1] // w
            split = matrices.reshape(len(matrices), n, w, n, w).swapaxes(2, 3)  # (e, n, n, w, w)
            flat.append(split.reshape(-1, w * w))
        data = self._sum @ (flat[0] if len(flat) == 1 else np.concatenate(flat))
        size = self.num_nodes * w
        return sp.bsr_array((data.reshape(-1, w, w), self.indices, self.indptr), shape=(size, size))

    def selection(self, rows: np.ndarray, columns: np.ndarray | None = None) -> Selection:
        """Return the map from assembled matrices to their part at some dofs; columns default to rows."""
        count = len(self.indices) * self.width**2
        data = np.arange(count, dtype=float).reshape(-1, self.width, self.width)
        size = self.num_nodes * self.width
        numbered = sp.bsr_array((data, self.indices, self.indptr), shape=(size, size)).tocsr()
        columns = rows if columns is None else columns
        return Selection(numbered[rows][:, columns])


class Selection:
    """Rows and columns of matrices of one pattern; cheap to take again when the values change."""

    def __init__(self, numbered: sp.csr_array) -> None:
        self.shape = numbered.shape
        csc = numbered.tocsc()
        csc.sort_indices()
        self._columns = (csc.data.astype(np.int64), csc.indices, csc.indptr)

    def take(self, matrix: sp.bsr_array, *, dtype: type = float) -> sp.csc_array:
        """Return the part of the matrix in compressed columns."""
        order, indices, indptr = self._columns
        return sp.csc_array((matrix.data.ravel()[order].astype(dtype, copy=False), indices, indptr), shape=self.shape)
