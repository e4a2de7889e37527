"""A stiffness matrix applied element by element, without being assembled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .kinematics import Kinematics


class ElementOperator:
    """The product of a stiffness with a displacement field; the result is split (own elements only)."""

    def __init__(self, kinematics: Kinematics, matrices: Sequence[np.ndarray], free: np.ndarray) -> None:
        """Take element matrices, one array (elements, 3n, 3n) per block; rows that are not free are dropped."""
        self.kinematics, self.matrices, self.free = kinematics, matrices, free

    def __call__(self, displacement: np.ndarray) -> np.ndarray:
        """Return K u at the free dofs, (num_nodes, 3)."""
        force = np.zeros_like(displacement)
        for block, K in zip(self.kinematics.blocks, self.matrices, strict=True):
            local = displacement[block.nodes].reshape(len(K), -1, 1)
            self.kinematics.scatter(force, block.nodes, (K @ local).reshape(len(K), -1, 3))
        return np.where(self.free, force, 0.0)

    def diagonal(self) -> np.ndarray:
        """Return the diagonal, split, zero where not free, (num_nodes, 3)."""
        total = np.zeros(self.free.shape)
        for block, K in zip(self.kinematics.blocks, self.matrices, strict=True):
            entries = np.einsum("eii->ei", K).reshape(len(K), -1, 3)
            self.kinematics.scatter(total, block.nodes, entries)
        return np.where(self.free, total, 0.0)
