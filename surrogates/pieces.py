"""The last pointwise network of a Fourier neural operator in pieces that stay in the cache of a CPU.

It has four times the channels of what lies before it, and on a CPU the time goes into moving them to the memory and
back. Here a piece of the points runs through both layers before the next one, and backward its hidden channels are
made again instead of stored: a product more, and none of the large ones crosses the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import gelu

POINTS = 2048
"""Of a piece: with 128 hidden channels in float32 it is 1 MiB."""


def usable(x: torch.Tensor) -> bool:
    """Whether `projection` is worth it and can be: in training on a CPU, nothing traced or transformed, several pieces."""
    return (
        x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active()
        and x.is_floating_point() and x[0].numel() > POINTS
    )  # fmt: skip


def projection(
    x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return second · gelu(first · x + shift) + bias at every point, (c, ...) -> (o, ...); one derivative."""
    return _Projection.apply(x.flatten(1), first, shift, second, bias).unflatten(1, x.shape[1:])


class _Projection(torch.autograd.Function):
    """`projection` and its gradient, (c, points)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        out = x.new_empty(len(second), x.shape[1])
        for piece in _pieces(x.shape[1]):
            hidden = (first @ x[:, piece]).add_(shift[:, None])
            out[:, piece] = torch.addmm(bias[:, None], second, gelu(hidden))
        ctx.save_for_backward(x, first, shift, second)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, first, shift, second = ctx.saved_tensors
        x_slope = torch.empty_like(x)
        first_slope, shift_slope, second_slope = (torch.zeros_like(part) for part in (first, shift, second))
        for piece in _pieces(x.shape[1]):
            part, gradient = x[:, piece], slope[:, piece]
            hidden = (first @ part).add_(shift[:, None])
            second_slope.addmm_(gradient, gelu(hidden).T)
            before = torch.ops.aten.gelu_backward(second.T @ gradient, hidden)
            first_slope.addmm_(before, part.T)
            shift_slope += before.sum(1)
            x_slope[:, piece] = first.T @ before
        return x_slope, first_slope, shift_slope, second_slope, slope.sum(1)


def _pieces(points: int) -> Iterator[slice]:
    """Yield the pieces of so many points."""
    return (slice(start, start + POINTS) for start in range(0, points, POINTS))
