"""A dense tanh network on jets: values and derivatives of first and second order in one pass of matrix products.

A jet is one tensor (components, points, width): component 0 is the value, then the first derivative along each
direction, then the second one of each wanted pair of directions. A linear layer is one product for all components; tanh
follows the chain rule,

    y = tanh z,   y_i = s z_i,   y_ij = s z_ij - 2 y s z_i z_j,   s = 1 - y²,

with its own backward pass, so that training needs a single reverse sweep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

Pairs = tuple[tuple[int, int], ...]


class TanhJet(torch.autograd.Function):
    """tanh of a jet (components, points, width); pairs name the second derivatives, directions from 0."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, directions: int, second: Pairs) -> torch.Tensor:
        """Return the jet of tanh z."""
        y = torch.tanh(z[0])
        s = 1 - y * y
        out = torch.empty_like(z)
        out[0] = y
        torch.mul(z[1:], s, out=out[1:])
        bend = -2 * y * s
        for number, (i, j) in enumerate(second):
            out[1 + directions + number] += bend * z[1 + i] * z[1 + j]
        ctx.save_for_backward(z, y)
        ctx.directions, ctx.second = directions, second
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient with respect to z."""
        z, y = ctx.saved_tensors
        s = 1 - y * y
        bend = -2 * y * s
        out = g * s
        if len(z) > 1:
            out[0] += bend * (g[1:] * z[1:]).sum(0)
        third = -2 * s * (1 - 3 * y * y)
        for number, (i, j) in enumerate(ctx.second):
            gij = g[1 + ctx.directions + number]
            a, b = z[1 + i], z[1 + j]
            out[0] += third * gij * a * b
            weighted = bend * gij
            out[1 + i] += weighted * b
            out[1 + j] += weighted * a
        return out, None, None


class JetNetwork(torch.nn.Module):
    """A fully connected tanh network; the last layer starts at zero, so that the network starts as 0.

    widths : inputs, hidden layers, outputs.
    """

    def __init__(self, widths: Sequence[int], generator: torch.Generator, *, last: float = 0.0) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for layer, (before, after) in enumerate(pairwise(self.widths)):
            scale = last if layer == len(self.widths) - 2 else 1.0
            limit = scale * math.sqrt(6 / (before + after))
            self.weights.append((torch.rand(after, before, generator=generator) * 2 - 1) * limit)
            self.biases.append((torch.rand(after, generator=generator) * 2 - 1) * (scale and 0.5 * scale))

    def forward(
        self, jet: torch.Tensor, directions: int, second: Pairs, trace: list[tuple[torch.Tensor, ...]] | None = None
    ) -> torch.Tensor:
        """Return the jet of the outputs, (components, points, outputs).

        trace : receives per layer its input and output; from one backward pass of a sum over points they give the
            derivative of each point's own residual (`headrace.surrogates.least_squares`).
        """
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = jet @ weight.T
            out = torch.cat((out[:1] + bias, out[1:])) if len(out) > 1 else out + bias
            if trace is not None:
                trace.append((jet, out))
            jet = out if layer == last else TanhJet.apply(out, directions, second)
        return jet
