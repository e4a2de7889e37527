"""APEBench's own networks in PyTorch, so that they train on a GPU beside ours: the same maps, weight for weight.

Conv, Res, UNet, Dil and FNO of APEBench 0.1.1 (Koehler et al. 2024, PDEquinox 0.1.2) from their configuration strings.
Weights lie in the order of the originals' tree; `load` takes theirs, and outputs must then agree (`emulators.py --only
networks`). Initial weights have the same distributions. (batch, fields, *grid), periodic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional

from headrace.surrogates.convolution import BoxConv, wrapped

Activation = Callable[[torch.Tensor], torch.Tensor]
CONV = {1: functional.conv1d, 2: functional.conv2d}


def network(config: str, fields: int, ndim: int) -> torch.nn.Module:
    """Return the network of a configuration such as "Res;26;8;relu".

    Raises
    ------
    ValueError : a kind that is not rewritten here.
    """
    kind, *sizes, activation = config.split(";")
    # JAX's gelu is the approximation by tanh.
    act = {"relu": torch.relu, "gelu": lambda x: functional.gelu(x, approximate="tanh")}[activation]
    if kind not in KINDS:
        raise ValueError(f"Network {kind!r} is not one of {', '.join(KINDS)}.")
    return KINDS[kind](fields, ndim, act, *map(int, sizes))


def load(module: torch.nn.Module, weights: Sequence[np.ndarray]) -> None:
    """Give a network the original's weights, in the order of its tree.

    Raises
    ------
    ValueError : another number of weights or another size.
    """
    own = list(module.parameters())
    if len(own) != len(weights) or any(p.numel() != w.size for p, w in zip(own, weights, strict=False)):
        raise ValueError(f"The original has {len(weights)} arrays of other sizes than the {len(own)} here.")
    with torch.no_grad():
        for parameter, weight in zip(own, weights, strict=True):
            parameter.copy_(torch.from_numpy(weight.reshape(parameter.shape)))


def convolution(
    inputs: int, outputs: int, ndim: int, *, kernel: int = 3, stride: int = 1, dilation: int = 1
) -> BoxConv:
    """Return a periodic convolution."""
    return BoxConv(inputs, outputs, periodic=(True,) * ndim, kernel=kernel, stride=stride, dilation=dilation)


class Conv(torch.nn.Module):
    """Convolutions with a nonlinearity after all but the last."""

    def __init__(self, fields: int, ndim: int, act: Activation, width: int, depth: int) -> None:
        super().__init__()
        self.act, widths = act, [fields, *(width,) * depth, fields]
        self.layers = torch.nn.ModuleList(convolution(i, o, ndim) for i, o in pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next state."""
        for layer in self.layers[:-1]:
            x = self.act(layer(x))
        return self.layers[-1](x)


class Stack(torch.nn.Module):
    """Pointwise lifting, blocks, pointwise projection."""

    def __init__(self, fields: int, ndim: int, width: int, blocks: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.lifting = convolution(fields, width, ndim, kernel=1)
        self.blocks = torch.nn.ModuleList(blocks)
        self.projection = convolution(width, fields, ndim, kernel=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next state."""
        x = self.lifting(x)
        for block in self.blocks:
            x = block(x)
        return self.projection(x)


class ResBlock(torch.nn.Module):
    """Two convolutions around a nonlinearity, the input, a nonlinearity."""

    def __init__(self, ndim: int, act: Activation, width: int) -> None:
        super().__init__()
        self.act = act
        self.first, self.second = convolution(width, width, ndim), convolution(width, width, ndim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next features."""
        return self.act(x + self.second(self.act(self.first(x))))


class DilBlock(torch.nn.Module):
    """Normalisation, convolution and nonlinearity for each dilation, and the input."""

    def __init__(self, ndim: int, act: Activation, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.act = act
        self.norms = torch.nn.ModuleList(torch.nn.GroupNorm(1, width) for _ in dilations)
        self.layers = torch.nn.ModuleList(convolution(width, width, ndim, dilation=d) for d in dilations)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next features."""
        y = x
        for norm, layer in zip(self.norms, self.layers, strict=True):
            y = self.act(layer(norm(y)))
        return x + y


class DoubleConv(torch.nn.Module):
    """Twice convolution, normalisation, nonlinearity."""

    def __init__(self, ndim: int, act: Activation, inputs: int, outputs: int) -> None:
        super().__init__()
        self.act = act
        self.first, self.first_norm = convolution(inputs, outputs, ndim), torch.nn.GroupNorm(1, outputs)
        self.second, self.second_norm = convolution(outputs, outputs, ndim), torch.nn.GroupNorm(1, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next features."""
        return self.act(self.second_norm(self.second(self.act(self.first_norm(self.first(x))))))


class Doubled(torch.nn.Module):
    """Transposed convolution onto twice the points: zeros between the points, then a convolution with kernel 3."""

    def __init__(self, ndim: int, inputs: int, outputs: int) -> None:
        super().__init__()
        limit = 1 / math.sqrt(inputs * 3**ndim)
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs, *(3,) * ndim).uniform_(-limit, limit))
        self.bias = torch.nn.Parameter(torch.empty(outputs).uniform_(-limit, limit))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features on the finer grid."""
        ndim = x.ndim - 2
        x = wrapped(x, (1,) * ndim)
        z = x.new_zeros(*x.shape[:2], *(2 * n - 1 for n in x.shape[2:]))
        z[(..., *(slice(None, None, 2),) * ndim)] = x
        return CONV[ndim](z[(..., *(slice(1, None),) * ndim)], self.weight, self.bias)


class UNet(torch.nn.Module):
    """Levels of half the points and twice the channels, with skips."""

    def __init__(self, fields: int, ndim: int, act: Activation, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        pairs = list(pairwise(widths))
        self.lifting = DoubleConv(ndim, act, fields, width)
        self.down = torch.nn.ModuleList(convolution(i, i, ndim, stride=2) for i, _ in pairs)
        self.left = torch.nn.ModuleList(DoubleConv(ndim, act, i, o) for i, o in pairs)
        self.up = torch.nn.ModuleList(Doubled(ndim, o, o // 2) for _, o in pairs)
        self.right = torch.nn.ModuleList(DoubleConv(ndim, act, o // 2 + i, i) for i, o in pairs)
        self.projection = convolution(width, fields, ndim, kernel=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next state."""
        skips = [self.lifting(x)]
        for down, left in zip(self.down, self.left, strict=True):
            skips.append(left(down(skips[-1])))
        x = skips.pop()
        for up, right in zip(reversed(self.up), reversed(self.right), strict=True):
            x = right(torch.cat((skips.pop(), up(x)), 1))
        return self.projection(x)


class SpectralBlock(torch.nn.Module):
    """Products of the low modes with matrices and a pointwise map, then a nonlinearity."""

    def __init__(self, ndim: int, act: Activation, width: int, modes: int) -> None:
        super().__init__()
        self.act, self.modes = act, modes
        shape = (2 ** (ndim - 1), width, width, *(modes,) * ndim)
        self.real = torch.nn.Parameter(torch.randn(shape) / width**2)
        self.imaginary = torch.nn.Parameter(torch.randn(shape) / width**2)
        self.bypass = convolution(width, width, ndim, kernel=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next features."""
        grid, axes = x.shape[2:], tuple(range(2, x.ndim))
        spectrum, weights = torch.fft.rfftn(x, dim=axes), torch.complex(self.real, self.imaginary)
        out, low = torch.zeros_like(spectrum), slice(None, self.modes)
        corners = [(low,)] if len(grid) == 1 else [(low, low), (slice(-self.modes, None), low)]
        for corner, weight in zip(corners, weights, strict=True):
            out[(..., *corner)] = torch.einsum("bi...,oi...->bo...", spectrum[(..., *corner)], weight)
        return self.act(torch.fft.irfftn(out, s=grid, dim=axes) + self.bypass(x))


def residual(fields: int, ndim: int, act: Activation, width: int, blocks: int) -> Stack:
    """Return Res;WIDTH;BLOCKS."""
    return Stack(fields, ndim, width, [ResBlock(ndim, act, width) for _ in range(blocks)])


def dilated(fields: int, ndim: int, act: Activation, depth: int, width: int, blocks: int) -> Stack:
    """Return Dil;DEPTH;WIDTH;BLOCKS."""
    rising = [2**power for power in range(depth + 1)]
    dilations = rising + rising[-2::-1]
    return Stack(fields, ndim, width, [DilBlock(ndim, act, width, dilations) for _ in range(blocks)])


def fourier(fields: int, ndim: int, act: Activation, modes: int, width: int, blocks: int) -> Stack:
    """Return FNO;MODES;WIDTH;BLOCKS."""
    return Stack(fields, ndim, width, [SpectralBlock(ndim, act, width, modes) for _ in range(blocks)])


KINDS = {"Conv": Conv, "Res": residual, "UNet": UNet, "Dil": dilated, "FNO": fourier}
