"""The modern U-Net as an autoregressive surrogate: coarse and fine grids, joined by skips, in 1 to 3 dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import gcd
from operator import mul

import torch
from torch.nn.functional import silu

from . import fused_unet
from .autoregressive import Autoregressive, Channels
from .convolution import BoxConv, Upsample
from .film import Film
from .problem import Problem
from .stepping import ONE_STEP, Stepping, whole


class UNet(Autoregressive):
    """The last states -> the next ones, with the network that Gupta and Brandstetter (2022) call U-Net mod.

    Wide residual blocks with pre-activation on every level, strided convolutions down, transposed ones up, and a skip
    from every block on the way down to one on the way up. Theirs, of 144 million weights, is the default with width
    64. Any grid will do that has two points or more per axis on the coarsest level.

    Parameters
    ----------
    width : channels of the finest level.
    multipliers : channels of each level over those of the one before; a level has half the points per axis.
    blocks : residual blocks of each level on the way down; on the way up there is one more.
    norm : whether blocks normalise groups of channels over the grid. It forgets the size of the states, so leave it
        out where the size says how fast they change, and the roll-outs drift.
    stepping : what the network sees and gives, and how it is trained.
    """

    def __init__(
        self, *, width: int = 32, multipliers: Sequence[int] = (1, 2, 2, 4), blocks: int = 2, norm: bool = True,
        stepping: Stepping = ONE_STEP,
    ) -> None:  # fmt: skip
        super().__init__(
            stepping, width=whole(width, "UNet width", least=1), blocks=whole(blocks, "UNet blocks", least=1),
            multipliers=tuple(whole(m, "UNet multipliers", least=1) for m in multipliers), norm=bool(norm),
        )  # fmt: skip
        if not self.multipliers:
            raise ValueError(f"UNet multipliers {self.multipliers} must be one or more whole numbers from 1.")

    def build(self, channels: Channels, problem: Problem) -> torch.nn.Module:
        """Return the network.

        Raises
        ------
        ValueError : more levels than the grid can be halved, or nothing to normalise over.
        """
        self._require_levels(problem)
        network = UNetwork(channels, self, problem.periodic)
        if self.stepping.target != "direct":
            # Training starts from persistence, the natural guess for a small step.
            torch.nn.init.zeros_(network.output.conv.weight)
            torch.nn.init.zeros_(network.output.conv.bias)
        return network

    def _require_levels(self, problem: Problem) -> None:
        levels = len(self.multipliers)
        needed = 2 ** (levels - 1) + 1 if levels > 1 else 1
        if min(problem.shape) < needed:
            raise ValueError(
                f"UNet with {levels} levels needs {needed} points per axis; case {problem.case} has the grid "
                f"{problem.shape}. Give fewer multipliers than {self.multipliers}."
            )
        # Then a group is one channel of one point.
        if self.norm and max(problem.shape) == 1 and 8 % self.width == 0:
            raise ValueError(
                f"UNet of width {self.width} normalises single numbers on the grid {problem.shape} of case "
                f"{problem.case}. Give norm=false, or a width that does not divide 8."
            )


class UNetwork(torch.nn.Module):
    """(b, inputs, *grid) -> (b, outputs, *grid) by way of coarser and coarser grids and back."""

    def __init__(self, channels: Channels, form: UNet, periodic: Sequence[bool]) -> None:
        super().__init__()
        block = {"periodic": periodic, "conditions": channels.conditions, "norm": form.norm}
        self.first = BoxConv(channels.inputs, form.width, periodic=periodic)
        self.conditions = channels.conditions
        width, skips = form.width, [form.width]
        self.down, self.coarsen = torch.nn.ModuleList(), torch.nn.ModuleList()
        for level, multiplier in enumerate(form.multipliers):
            blocks = torch.nn.ModuleList()
            for _ in range(form.blocks):
                blocks.append(ResidualBlock(width, width * multiplier, **block))
                width, multiplier = width * multiplier, 1
                skips.append(width)
            self.down.append(blocks)
            if level < len(form.multipliers) - 1:
                self.coarsen.append(BoxConv(width, width, periodic=periodic, stride=2))
                skips.append(width)
        self.middle = torch.nn.ModuleList(ResidualBlock(width, width, **block) for _ in range(2))
        self.up, self.refine = torch.nn.ModuleList(), torch.nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(form.multipliers))):
            blocks = torch.nn.ModuleList(
                ResidualBlock(width + skips.pop(), width, **block) for _ in range(form.blocks)
            )
            blocks.append(ResidualBlock(width + skips.pop(), width // multiplier, **block))
            width //= multiplier
            self.up.append(blocks)
            if level:
                self.refine.append(Upsample(width, width, periodic=periodic))
        self.norm = Groups(width, form.norm)
        self.output = BoxConv(width, channels.outputs, periodic=periodic)
        # For `fused_unet`: numbers of the largest field for each point of the grid, of which a coarser level has a
        # quarter; names of the weights.
        widths = (channels.inputs, channels.outputs, *accumulate(form.multipliers, mul, initial=form.width))
        self.widest = max(fused_unet.room(width) / 4 ** max(0, number - 3) for number, width in enumerate(widths))
        self.named = {name for name, _ in self.named_parameters()}

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return the output channels; condition (b, conditions)."""
        if fused_unet.usable(self, x[None]):
            return fused_unet.unets(self, {name: p[None] for name, p in self.named_parameters()}, x[None])[0]
        x = self.first(x)
        skips = [x]
        for level, blocks in enumerate(self.down):
            for block in blocks:
                x = block(x, condition)
                skips.append(x)
            if level < len(self.coarsen):
                x = self.coarsen[level](x)
                skips.append(x)
        for block in self.middle:
            x = block(x, condition)
        for level, blocks in enumerate(self.up):
            for block in blocks:
                x = block(torch.cat((x, skips.pop()), dim=1), condition)
            if level < len(self.refine):
                x = self.refine[level](x, skips[-1].shape[2:])
        return self.output(silu(self.norm(x)))


class ResidualBlock(torch.nn.Module):
    """Twice norm, nonlinearity and convolution, plus the input, mapped pointwise where its channels differ."""

    def __init__(self, inputs: int, outputs: int, *, periodic: Sequence[bool], conditions: int, norm: bool) -> None:
        super().__init__()
        self.norms = torch.nn.ModuleList((Groups(inputs, norm), Groups(outputs, norm)))
        self.first = BoxConv(inputs, outputs, periodic=periodic)
        self.film = Film(conditions, outputs)
        self.second = BoxConv(outputs, outputs, periodic=periodic)
        same = inputs == outputs
        self.skip = torch.nn.Identity() if same else BoxConv(inputs, outputs, periodic=periodic, kernel=1)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Return the next channels."""
        y = self.first(silu(self.norms[0](x)))
        y = self.second(silu(self.film(self.norms[1](y), condition)))
        return self.skip(x) + y


class Groups(torch.nn.Module):
    """Mean 0 and deviation 1 of up to eight groups of channels over the grid, then scale and shift; or nothing."""

    def __init__(self, width: int, wanted: bool) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(gcd(8, width), width) if wanted else torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised channels."""
        return self.norm(x)
