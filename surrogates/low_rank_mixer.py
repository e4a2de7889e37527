"""A network that couples the whole grid by one small matrix product per axis, in the spirit of LordNet.

LordNet (Shi et al. 2022) models the long-range entanglement of a discretised PDE by products of low-rank matrices; its
block was not public, so this one is ours: channels at each point, then a dense matrix along each axis, both with skips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import gelu


class AxisMixing(torch.nn.Module):
    """Along each axis in turn a dense matrix per group of channels: low rank as a map of the whole grid.

    Channels come last, and groups are taken apart: with the axes before and after as they lie in memory, an axis is one
    product of a matrix and a batch of others, before which nothing is turned round or copied (without gradients).
    """

    def __init__(self, width: int, shape: Sequence[int], groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.matrices = torch.nn.ParameterList(torch.randn(groups, n, n) / n**0.5 for n in shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mixed channels, (batch, *grid, width)."""
        mixed = []
        for group, y in enumerate(x.chunk(self.groups, dim=-1)):
            shape = y.shape
            for axis, matrix in enumerate(self.matrices, start=1):
                before, n = math.prod(shape[:axis]), shape[axis]
                turned, along = matrix[group].mT, y.reshape(before, n, -1)
                # With gradients torch copies to make one product: the slope of a matrix would be `before` matrices.
                y = turned @ along if torch.is_grad_enabled() else torch.bmm(turned.expand(before, n, n), along)
            mixed.append(y.reshape(shape))
        return torch.cat(mixed, dim=-1)


class LowRankMixer(torch.nn.Module):
    """(batch, inputs, *grid) -> (batch, outputs, *grid), for grids of one shape only; the output starts at zero.

    Parameters
    ----------
    inputs, outputs, width : channels at the ends and inside.
    shape : of the grid.
    blocks : pairs of a mixing along the axes and a pointwise network.
    groups : groups of channels with a matrix of their own, a divisor of width.
    """

    def __init__(
        self, inputs: int, outputs: int, *, shape: Sequence[int], width: int = 64, blocks: int = 4, groups: int = 8
    ) -> None:
        super().__init__()
        if width % groups:
            raise ValueError(f"LowRankMixer width {width} must be a multiple of its {groups} groups.")
        self.shape = tuple(shape)
        self.lifting = torch.nn.Linear(inputs, width)
        self.mixings = torch.nn.ModuleList(AxisMixing(width, shape, groups) for _ in range(blocks))
        self.wide = torch.nn.ModuleList(torch.nn.Linear(width, 2 * width) for _ in range(blocks))
        self.narrow = torch.nn.ModuleList(torch.nn.Linear(2 * width, width) for _ in range(blocks))
        self.output = torch.nn.Linear(width, outputs)
        torch.nn.init.zeros_(self.output.weight)
        torch.nn.init.zeros_(self.output.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output channels.

        Raises
        ------
        ValueError : a grid of another shape.
        """
        if tuple(x.shape[2:]) != self.shape:
            raise ValueError(f"LowRankMixer was made for grids of {self.shape} points, not {tuple(x.shape[2:])}.")
        x = self.lifting(x.movedim(1, -1))
        for mixing, wide, narrow in zip(self.mixings, self.wide, self.narrow, strict=True):
            x = x + narrow(gelu(wide(x + gelu(mixing(x)))))
        return self.output(x).movedim(-1, 1)
