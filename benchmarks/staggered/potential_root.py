"""A field as large as the velocity in place of its potential a in a plane: b = (-∇²)^(1/2) a, so that ‖b‖ = ‖u‖.

Networks of interleaved parts give neighbouring points apart from each other, and the velocity is the difference of
neighbouring potentials over h: an error of a part would count 1/h times. Errors of b count as those of the velocity.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from headrace.solvers.mac_grid import Edge, MacGrid


class PotentialRoot:
    """Both directions for tensors (*lead, nx, ny), by eigenvectors of the differences along each axis.

    The potential is 0 on walls, and its normal slope at an outflow.
    """

    def __init__(self, grid: MacGrid) -> None:
        self._lines, values = [], []
        for n, h, (_, high) in zip(grid.shape, grid.spacing, grid.edges, strict=True):
            inner = n - 1 if high is Edge.WALL else n  # the last point of an axis lies on its wall
            matrix = 2 * np.eye(inner) - np.diag(np.ones(inner - 1), 1) - np.diag(np.ones(inner - 1), -1)
            if high is not Edge.WALL:
                matrix[-1, -1] = 1.0
            value, vectors = np.linalg.eigh(matrix / h**2)
            values.append(value)
            self._lines.append(np.concatenate([vectors, np.zeros((n - inner, inner))]))
        self._root = np.sqrt(np.add.outer(*values))
        self._tensors: dict[tuple[Any, ...], list[torch.Tensor]] = {}

    def potential(self, b: torch.Tensor) -> torch.Tensor:
        """Return a."""
        x, y, root = self._constants(b)
        return x @ ((x.T @ b @ y) / root) @ y.T

    def root(self, a: torch.Tensor) -> torch.Tensor:
        """Return b."""
        x, y, root = self._constants(a)
        return x @ ((x.T @ a @ y) * root) @ y.T

    def _constants(self, like: torch.Tensor) -> list[torch.Tensor]:
        key = (like.dtype, like.device)
        if key not in self._tensors:
            # Kept, because uploads cannot be part of a CUDA graph.
            self._tensors[key] = [like.new_tensor(a) for a in (*self._lines, self._root)]
        return self._tensors[key]
