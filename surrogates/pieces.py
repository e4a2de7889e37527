"""What a Fourier neural operator does at the points of its grid, in pieces that stay in the cache of a CPU.

There the time goes into moving states to the memory and back. Here a piece of the rows has everything done to it that
lies between two spectra before the next one: the inverse transform along the rows, skip, bias, gelu, and the forward
transform of what comes out; backward the same. The last pointwise network has four times the channels of what lies
before it; backward they are made again instead of stored: a product more, and none of them crosses the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import gelu

POINTS = 2048
"""Of a piece: with 128 hidden channels in float32 it is 1 MiB."""

NUMBERS = 1 << 18
"""Of a piece of the states: in float32 it is 1 MiB."""


def usable(x: torch.Tensor) -> bool:
    """Whether pieces are worth it and can be: in training on a CPU, nothing traced or transformed, many points."""
    return (
        x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active()
        and x.is_floating_point() and x[0].numel() > POINTS
    )  # fmt: skip


def large(channels: int, grid: Sequence[int]) -> bool:
    """Whether `blend` is worth it: a plane of the last two axes fills half of a piece. Smaller ones gain nothing."""
    return len(grid) > 1 and 2 * channels * grid[-2] * grid[-1] >= NUMBERS


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


def blend(
    x: torch.Tensor, rows: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor, forward: torch.Tensor | None,
    inverse: torch.Tensor, *, active: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Return y = inverse transform of the rows + skip · x + bias, with gelu if active, and y's row spectra.

    One derivative; in two dimensions or more.

    x : (i, b, .., h, w).
    rows : (o, b, .., k r, h), spectra along the last axis.
    skip, bias : (o, i), (o,).
    forward, inverse : (w, k r), (k r, w); without `forward` there are no row spectra.
    """
    y, spectra = _Blend.apply(x.flatten(1, -3), rows.flatten(1, -3), skip, bias, forward, inverse, active)
    y = y.reshape(len(skip), *x.shape[1:])
    return y, None if spectra is None else spectra.reshape(*y.shape[:-2], *spectra.shape[-2:])


class _Blend(torch.autograd.Function):
    """`blend` and its gradient: x (i, planes, h, w), rows (o, planes, k r, h)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, rows: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor,
        forward: torch.Tensor | None, inverse: torch.Tensor, active: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        shape = (len(skip), *x.shape[1:])
        before, y = x.new_empty(shape), x.new_empty(shape) if active else None
        spectra = None if forward is None else x.new_empty(*shape[:2], forward.shape[1], shape[2])
        from_rows = inverse.expand(len(skip), -1, -1)
        for plane, piece in _rows(x, len(skip)):
            part = torch.bmm(rows[:, plane, :, piece].mT, from_rows)
            part.flatten(1).addmm_(skip, x[:, plane, piece].flatten(1)).add_(bias[:, None])
            before[:, plane, piece] = part
            if active:
                part = y[:, plane, piece] = gelu(part)
            if spectra is not None:
                spectra[:, plane, :, piece] = torch.bmm(forward.T.expand(len(skip), -1, -1), part.mT)
        ctx.save_for_backward(x, skip, forward, inverse, before if active else None)
        ctx.set_materialize_grads(False)
        return y if active else before, spectra

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, slope: torch.Tensor | None, spectra_slope: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        if slope is None and spectra_slope is None:
            return (None,) * 7
        x, skip, forward, inverse, before = ctx.saved_tensors
        outputs, needed = len(skip), ctx.needs_input_grad[0]
        x_slope = torch.empty_like(x) if needed else None
        rows_slope = x.new_empty(outputs, x.shape[1], len(inverse), x.shape[2])
        skip_slope, bias_slope = torch.zeros_like(skip), skip.new_zeros(outputs)
        for plane, piece in _rows(x, outputs):
            gradient = None if slope is None else slope[:, plane, piece]
            if spectra_slope is not None:
                factors = spectra_slope[:, plane, :, piece].mT, forward.T.expand(outputs, -1, -1)
                gradient = torch.bmm(*factors) if gradient is None else torch.baddbmm(gradient, *factors)
            if before is not None:
                gradient = torch.ops.aten.gelu_backward(gradient, before[:, plane, piece])
            rows_slope[:, plane, :, piece] = torch.bmm(inverse.expand(outputs, -1, -1), gradient.mT)
            gradient, part = gradient.flatten(1), x[:, plane, piece].flatten(1)
            skip_slope.addmm_(gradient, part.T)
            bias_slope += gradient.sum(1)
            if needed:
                x_slope[:, plane, piece] = (skip.T @ gradient).unflatten(1, (-1, x.shape[-1]))
        return x_slope, rows_slope, skip_slope, bias_slope, None, None, None


def _rows(x: torch.Tensor, channels: int) -> Iterator[tuple[int, slice]]:
    """Yield pieces of the rows of (c, planes, h, w), by plane."""
    step = max(1, NUMBERS // (channels * x.shape[-1]))
    for plane in range(x.shape[1]):
        yield from ((plane, slice(start, start + step)) for start in range(0, x.shape[2], step))


def _pieces(points: int) -> Iterator[slice]:
    """Yield the pieces of so many points."""
    return (slice(start, start + POINTS) for start in range(0, points, POINTS))
