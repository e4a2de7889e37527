"""Sparse matrices of a mesh: the pattern is found once, later assemblies only fill it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from .kinematics import Kinematics
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


def mass_matrix(kinematics: Kinematics) -> sp.csr_array:
    """Return ∫ φ_i φ_j of the own elements, (num_nodes, num_nodes): the inner product of displacements, per direction.

    Split: summed over subdomains it is that of the whole mesh, so u·M v adds up over ranks without shared nodes
    counting twice.
    """
    return Pattern(kinematics.mesh, width=1).assemble(kinematics.mass()).tocsr()
