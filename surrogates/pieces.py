"""What a Fourier neural operator does at the points of its grid, in pieces that stay in the cache of a CPU.

There the time goes into moving states to the memory and back. Here a piece of the rows has everything done to it that
lies between two spectra before the next one: the inverse transform along the rows, skip, bias, gelu, and the forward
transform of what comes out; backward the same. The last pointwise network has four times the channels of what lies
before it; backward they are made again instead of stored: a product more, and none of them crosses the memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import gelu

POINTS = 2048
"""Of a piece: with 128 hidden channels in float32 it is 1 MiB."""

NUMBERS = 1 << 18
"""Of a piece of the states: in float32 it is 1 MiB."""


def usable(x: torch.Tensor) -> bool:
    """Whether pieces are worth it and can be: in training on a CPU, nothing traced or transformed, many points.

    Not in half precision: gradients of weights are summed over the pieces in the precision of the states.
    """
    return (
        x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu") and not torch._C._are_functorch_transforms_active()
        and x.dtype in (torch.float32, torch.float64) and x[0].numel() > POINTS
    )  # fmt: skip


def large(channels: int, grid: Sequence[int]) -> bool:
    """Whether `blend` is worth it: a plane of the last two axes fills half of a piece. Smaller ones gain nothing."""
    return len(grid) > 1 and 2 * channels * grid[-2] * grid[-1] >= NUMBERS


def projection(
    x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return second · gelu(first · x + shift) + bias at every point, (planes, c, n) -> (planes, o, n); one derivative.

    Channels lie between the planes and the n points of each: a network whose channels come first has one plane.
    """
    return _Projection.apply(x, first, shift, second, bias)


class _Projection(torch.autograd.Function):
    """`projection` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        out = x.new_empty(len(x), len(second), x.shape[2])
        for plane, piece in _points(x):
            hidden = torch.addmm(shift[:, None], first, x[plane, :, piece])
            out[plane, :, piece] = torch.addmm(bias[:, None], second, gelu(hidden))
        ctx.save_for_backward(x, first, shift, second)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, first, shift, second = ctx.saved_tensors
        x_slope = x.new_empty(x.shape)
        first_slope, shift_slope, second_slope = (torch.zeros_like(part) for part in (first, shift, second))
        for plane, piece in _points(x):
            part, gradient = x[plane, :, piece], slope[plane, :, piece]
            hidden = torch.addmm(shift[:, None], first, part)
            second_slope.addmm_(gradient, gelu(hidden).T)
            before = torch.ops.aten.gelu_backward(second.T @ gradient, hidden)
            first_slope.addmm_(before, part.T)
            shift_slope += before.sum(1)
            torch.mm(first.T, before, out=x_slope[plane, :, piece])
        return x_slope, first_slope, shift_slope, second_slope, slope.sum((0, 2))


def blend(
    x: torch.Tensor, rows: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor, forward: torch.Tensor | None,
    inverse: torch.Tensor, *, active: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Return y = inverse transform of the rows + skip · x + bias, with gelu if active, and y's row spectra.

    One derivative; in two dimensions or more. Channels lie before the plane of the last two axes, so that a small plane
    of all channels is one block of memory, which products write themselves.

    x : (b, .., i, h, w).
    rows : (b, .., o, k r, h), spectra along the last axis.
    skip, bias : (o, i), (o,).
    forward, inverse : (w, k r), (k r, w); without `forward` there are no row spectra.
    """
    y, spectra = _Blend.apply(x.flatten(0, -4), rows.flatten(0, -4), skip, bias, forward, inverse, active)
    y = y.reshape(*x.shape[:-3], *y.shape[1:])
    return y, None if spectra is None else spectra.reshape(*x.shape[:-3], *spectra.shape[1:])


class _Blend(torch.autograd.Function):
    """`blend` and its gradient: x (planes, i, h, w), rows (planes, o, k r, h)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, rows: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor,
        forward: torch.Tensor | None, inverse: torch.Tensor, active: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
        outputs, shape = len(skip), (len(x), len(skip), *x.shape[2:])
        before, y = x.new_empty(shape), x.new_empty(shape) if active else None
        spectra = None if forward is None else x.new_empty(*shape[:2], forward.shape[1], shape[2])
        for plane, piece in _rows(x, outputs):
            with _block(before[plane, :, piece]) as part:
                from_rows = inverse.expand(outputs, -1, -1)
                torch.baddbmm(bias[:, None, None], rows[plane, :, :, piece].mT, from_rows, out=part)
                part.flatten(1).addmm_(skip, x[plane, :, piece].flatten(1))
            if active:
                with _block(y[plane, :, piece]) as after:
                    part = torch.ops.aten.gelu.out(part, out=after)
            if spectra is not None:
                with _block(spectra[plane, :, :, piece]) as spectrum:
                    torch.bmm(forward.T.expand(outputs, -1, -1), part.mT, out=spectrum)
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
        x_slope = x.new_empty(x.shape) if needed else None
        rows_slope = x.new_empty(len(x), outputs, len(inverse), x.shape[2])
        skip_slope, bias_slope = torch.zeros_like(skip), skip.new_zeros(outputs)
        for plane, piece in _rows(x, outputs):
            gradient = None if slope is None else slope[plane, :, piece]
            if spectra_slope is not None:
                factors = spectra_slope[plane, :, :, piece].mT, forward.T.expand(outputs, -1, -1)
                gradient = torch.bmm(*factors) if gradient is None else torch.baddbmm(gradient, *factors)
            if before is not None:
                gradient = torch.ops.aten.gelu_backward(gradient, before[plane, :, piece])
            with _block(rows_slope[plane, :, :, piece]) as spectrum:
                torch.bmm(inverse.expand(outputs, -1, -1), gradient.mT, out=spectrum)
            gradient, part = gradient.flatten(1), x[plane, :, piece].flatten(1)
            skip_slope.addmm_(gradient, part.T)
            bias_slope += gradient.sum(1)
            if needed:
                torch.mm(skip.T, gradient, out=x_slope[plane, :, piece].flatten(1))
        return x_slope, rows_slope, skip_slope, bias_slope, None, None, None


@contextmanager
def _block(place: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give memory in one block for what belongs to a place: the place itself; if it is scattered, what is copied there.

    A batched product into scattered memory would be one call for each of its matrices.
    """
    if place.is_contiguous():
        yield place
    else:
        block = place.new_empty(place.shape)
        yield block
        place.copy_(block)


def _rows(x: torch.Tensor, channels: int) -> Iterator[tuple[int, slice]]:
    """Yield pieces of the rows of (planes, c, h, w), by plane."""
    yield from _parts(x, max(1, NUMBERS // (channels * x.shape[-1])))


def _points(x: torch.Tensor) -> Iterator[tuple[int, slice]]:
    """Yield pieces of the points of (planes, c, n), by plane."""
    yield from _parts(x, POINTS)


def _parts(x: torch.Tensor, step: int) -> Iterator[tuple[int, slice]]:
    """Yield pieces of so many places of the axis after the channels, by plane."""
    for plane in range(len(x)):
        yield from ((plane, slice(start, start + step)) for start in range(0, x.shape[2], step))
