"""Convolutional networks that keep the grid: residual ones, and dilated ones that see far."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .autoregressive import Autoregressive, Channels
from .convolution import ACTIVATIONS, BoxConv
from .film import Film
from .problem import Problem
from .stepping import ONE_STEP, Stepping, whole

DILATED = (1, 2, 4, 8, 4, 2, 1)
"""Dilations of one block of the dilated network of Stachenfeld et al. (2022)."""


class ConvNet(Autoregressive):
    """The last states -> the next ones by residual blocks of convolutions.

    With two undilated convolutions per block it is a residual network (He et al. 2016), good for smooth and strongly
    diffusive problems; with `DILATED` it is the network of Stachenfeld et al. (2022), for waves and chaos. These are
    the families Res and Dil of APEBench (Koehler et al. 2024): width 26, 8 blocks and ReLU; width 32, 2 blocks,
    dilations 1, 2, 4, 2, 1 and ReLU. What it knows of a place comes from at most `reach` points away in one step.

    Parameters
    ----------
    width : channels.
    blocks : residual blocks.
    dilations : of the convolutions of one block.
    kernel : points of a convolution along each axis, odd.
    activation : one of `convolution.ACTIVATIONS`.
    norm : whether each convolution is followed by a normalisation over channels and grid.
    stepping : what the network sees and gives, and how it is trained.
    """

    def __init__(
        self, *, width: int = 32, blocks: int = 8, dilations: Sequence[int] = (1, 1), kernel: int = 3,
        activation: str = "gelu", norm: bool = False, stepping: Stepping = ONE_STEP,
    ) -> None:  # fmt: skip
        super().__init__(
            stepping, width=whole(width, "ConvNet width", least=1), blocks=whole(blocks, "ConvNet blocks", least=1),
            dilations=tuple(whole(d, "ConvNet dilations", least=1) for d in dilations),
            kernel=whole(kernel, "ConvNet kernel", least=1), activation=activation, norm=bool(norm),
        )  # fmt: skip
        if not self.dilations:
            raise ValueError(f"ConvNet dilations {self.dilations} must be one or more whole numbers from 1.")
        if kernel % 2 == 0:
            raise ValueError(f"ConvNet kernel {kernel} must be odd, e.g. 3.")
        if activation not in ACTIVATIONS:
            raise ValueError(f"ConvNet activation {activation!r} is not one of {', '.join(ACTIVATIONS)}.")

    @property
    def reach(self) -> int:
        """Points to each side along an axis that the next state at a point can depend on."""
        return self.kernel // 2 * (self.blocks * sum(self.dilations))

    def build(self, channels: Channels, problem: Problem) -> torch.nn.Module:
        """Return the network.

        Raises
        ------
        ValueError : a dilated kernel is wider than a periodic axis.
        """
        needed = max(self.dilations) * (self.kernel // 2)
        short = [n for n, closed in zip(problem.shape, problem.periodic, strict=True) if closed and n < needed]
        if short:
            raise ValueError(
                f"ConvNet dilations {self.dilations} with kernel {self.kernel} need periodic axes of {needed} points; "
                f"case {problem.case} has one of {short[0]}."
            )
        network = ConvNetwork(channels, self, problem.periodic)
        if self.stepping.target != "direct":
            # Training starts from persistence, the natural guess for a small step.
            torch.nn.init.zeros_(network.output.conv.weight)
            torch.nn.init.zeros_(network.output.conv.bias)
        return network


class ConvNetwork(torch.nn.Module):
    """Pointwise lifting, residual blocks, pointwise projection: (b, inputs, *grid) -> (b, outputs, *grid)."""

    def __init__(self, channels: Channels, form: ConvNet, periodic: Sequence[bool]) -> None:
        super().__init__()
        self.lifting = BoxConv(channels.inputs, form.width, periodic=periodic, kernel=1)
        self.blocks = torch.nn.ModuleList(
            ConvBlock(form, periodic=periodic, conditions=channels.conditions) for _ in range(form.blocks)
        )
        self.output = BoxConv(form.width, channels.outputs, periodic=periodic, kernel=1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return the output channels; condition (b, conditions)."""
        x = self.lifting(x)
        for block in self.blocks:
            x = block(x, condition)
        return self.output(x)


class ConvBlock(torch.nn.Module):
    """x + convolutions of x, with the nonlinearity between them and after the sum."""

    def __init__(self, form: ConvNet, *, periodic: Sequence[bool], conditions: int) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[form.activation]
        self.convolutions = torch.nn.ModuleList(
            BoxConv(form.width, form.width, periodic=periodic, kernel=form.kernel, dilation=dilation)
            for dilation in form.dilations
        )
        self.norms = torch.nn.ModuleList(
            torch.nn.GroupNorm(1, form.width) if form.norm else torch.nn.Identity() for _ in form.dilations
        )
        self.film = Film(conditions, form.width)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Return the next channels."""
        y = x
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(self.activation(y) if number else y))
        return self.activation(x + self.film(y, condition))
