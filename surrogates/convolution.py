"""Convolutions on boxes whose axes are periodic or have walls, in 1 to 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

CONV = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}
TRANSPOSED = {1: torch.nn.ConvTranspose1d, 2: torch.nn.ConvTranspose2d, 3: torch.nn.ConvTranspose3d}
ACTIVATIONS = {"gelu": functional.gelu, "relu": functional.relu, "silu": functional.silu, "tanh": torch.tanh}
"""The nonlinearities that an architecture may name."""


def wrapped(x: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """Return (b, c, *grid) continued on both ends of each axis by so many of its own points, around the box."""
    for axis, width in enumerate(widths, start=2):
        n = x.shape[axis]
        if width > n:
            raise ValueError(f"A periodic axis of {n} points cannot be continued by {width}: use a finer grid.")
        if width:
            x = torch.cat((x.narrow(axis, n - width, width), x, x.narrow(axis, 0, width)), dim=axis)
    return x


class BoxConv(torch.nn.Module):
    """A convolution that keeps the grid, or with stride 2 gives ⌈n/2⌉ points per axis.

    Around periodic axes the state goes on, beyond walls it is zero, so that a network can tell where they are.

    Parameters
    ----------
    inputs, outputs : channels.
    periodic : per axis.
    kernel : points, odd.
    dilation : distance between the points of the kernel.
    bias : whether the outputs have one.
    """

    def __init__(
        self, inputs: int, outputs: int, *, periodic: Sequence[bool], kernel: int = 3, stride: int = 1,
        dilation: int = 1, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        reach = dilation * (kernel // 2)
        self.around = tuple(reach if closed else 0 for closed in periodic)
        self.conv = CONV[len(self.around)](
            inputs, outputs, kernel, stride=stride, dilation=dilation, bias=bias,
            padding=tuple(reach - width for width in self.around),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the convolved channels, (b, inputs, *grid) -> (b, outputs, *grid)."""
        return self.conv(wrapped(x, self.around))


class Upsample(torch.nn.Module):
    """A transposed convolution, kernel 4 and stride 2, onto a grid of twice the points or one less."""

    def __init__(self, inputs: int, outputs: int, *, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.around = tuple(1 if closed else 0 for closed in periodic)
        # Padding 1 makes 2 n points of n; each point of the wrapping makes two more, which are cut off again.
        self.conv = TRANSPOSED[len(self.around)](
            inputs, outputs, 4, stride=2, padding=tuple(1 + 2 * width for width in self.around)
        )

    def forward(self, x: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """Return the channels on a finer grid, (b, inputs, *coarse) -> (b, outputs, *grid)."""
        y = self.conv(wrapped(x, self.around))
        for axis, n in enumerate(grid, start=2):
            y = y.narrow(axis, 0, n)
        return y
