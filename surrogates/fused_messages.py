"""Rounds of messages on a grid fused for an NVIDIA GPU: forward, what belongs to an edge never enters the memory.

The mathematics is that of `MessageRound`, which stays the reference and the form on every other device. A round is two
kernels forward and three backward, of which one computes the messages again instead of having stored them. Of arrays
with a row for every edge, of which the plain form writes six on the way there, the backward pass writes one.
Grids, float32; everything else takes the other form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from .fused_fourier import has_triton, padded, precision

MOST_FEATURES, MOST_POINTS = 128, 1024
"""Larger tiles would not fit the fast memory of one processor; for a norm, a program reads all points of a sample."""

PER_ROUND = 11
"""Parameters of a round, in the order of `message_rounds`."""

ROWS, MANY, PARTS, WARPS = 32, 128, 8, 8
"""Points that a program works on, and that it reads at once for a norm; programs that share a sum; their warps."""


def usable(h: torch.Tensor, offsets: int, rounds: int) -> bool:
    """Whether `message_rounds` takes these features, (b, *grid, hidden), with so many offsets, in so many rounds.

    Not within transforms of `torch.func`, whose tensors the kernels do not know, nor in what PyTorch's compiler traces.
    The kernels have no second derivative, and count the numbers of an array by 32 bits.
    """
    most = math.prod(h.shape[:-1]) * MOST_FEATURES * max(offsets, 4 * rounds)
    return (
        h.is_cuda and not torch.compiler.is_compiling() and h.dtype == torch.float32
        and not torch.is_autocast_enabled("cuda") and h.shape[-1] <= MOST_FEATURES
        and math.prod(h.shape[1:-1]) <= MOST_POINTS and most < 2**31 and has_triton()
        and not torch._C._are_functorch_transforms_active()
    )  # fmt: skip


def message_rounds(
    h: torch.Tensor, u: torch.Tensor, theta: torch.Tensor, band: Any, rounds: Sequence[torch.nn.Module]
) -> torch.Tensor:
    """Return the features (b, *grid, hidden) after `MessageRound`s between the neighbours of a `Band`.

    u : known states (b, *grid, states).
    theta : conditions (b, conditions).
    """
    grid = tuple(h.shape[1:-1])
    table = neighbours(tuple(band.offsets), grid, band.periodic, h.device)
    parameters = [
        part for one in rounds for part in (
            one.receiver.weight, one.receiver.bias, one.sender.weight, one.difference.weight, one.distance.weight,
            one.second.weight, one.second.bias, one.update[0].weight, one.update[0].bias, one.update[2].weight,
            one.update[2].bias,
        )
    ]  # fmt: skip
    b, n = h.shape[0], math.prod(grid)
    with torch.cuda.device_of(h):  # Triton starts its kernels on the current device
        out = _Rounds.apply(h.reshape(b, n, -1), u.reshape(b, n, -1), theta, band.separations(grid), table, *parameters)
    return out.reshape(h.shape)


@lru_cache(maxsize=64)
def neighbours(
    offsets: tuple[tuple[int, ...], ...], grid: tuple[int, ...], periodic: tuple[bool, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return senders and receivers (offsets, points), -1 for none, and one over the number of neighbours (points,)."""

    def at(offset: torch.Tensor) -> torch.Tensor:
        place = torch.stack(torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij"), dim=-1)  # (*grid, axes)
        there, size = place + offset, torch.tensor(grid)
        beyond = (there != there % size) & ~torch.tensor(periodic)
        index = torch.zeros(grid, dtype=torch.int64)
        for coordinate, n in zip((there % size).unbind(-1), grid, strict=True):
            index = index * n + coordinate
        return torch.where(beyond.any(-1), -1, index).flatten()

    with torch.inference_mode(False):
        senders = torch.stack([at(torch.tensor(offset)) for offset in offsets]).int()
        receivers = torch.stack([at(-torch.tensor(offset)) for offset in offsets]).int()
        share = 1 / (senders >= 0).sum(0)
        return senders.to(device), receivers.to(device), share.to(device)


class _Rounds(torch.autograd.Function):
    """`message_rounds` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, h: torch.Tensor, u: torch.Tensor, theta: torch.Tensor, separations: torch.Tensor,
        table: tuple[torch.Tensor, torch.Tensor, torch.Tensor], *parameters: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        from .message_kernels import exchange, receive

        (batch, n, hidden), (senders, _, share) = h.shape, table
        rows, kind, width = batch * n, precision(h.dtype), padded(hidden)
        by_name = [list(parameters[number::PER_ROUND]) for number in range(PER_ROUND)]
        (receiver, receiver_bias, sender, difference, distance, second, second_bias, first, first_bias, last,
         last_bias) = by_name  # fmt: skip
        layers = len(receiver)
        matrices = torch.stack([
            matrix for w, s, m, f, e in zip(receiver, sender, second, first, last, strict=True)
            for matrix in (w[:, :hidden], s, m, f[:, :hidden], f[:, hidden : 2 * hidden], e)
        ]).unflatten(0, (layers, 6))  # fmt: skip
        told = torch.stack([w[:, hidden:] for w in receiver] + [w[:, 2 * hidden :] for w in first])
        biases = torch.stack(receiver_bias + first_bias)
        shifts = (theta @ told.mT + biases[:, None]).unflatten(0, (2, layers))  # (2, layers, batch, hidden)
        second_bias, last_bias = torch.stack(second_bias), torch.stack(last_bias)
        away = separations @ torch.stack(distance).mT  # (layers, offsets, hidden)
        states = u.reshape(rows, -1)
        apart = states @ torch.cat(difference).T  # (rows, layers hidden)
        # h, mean and z1 are also what matrices are multiplied with: one array for their gradients.
        right = h.new_empty(3, layers, rows, hidden)
        z2, a, b = h.new_empty(3, layers, rows, hidden)
        scale, x, end = h.new_empty(layers, batch, hidden), h.new_empty(rows, hidden), torch.empty_like(h)
        right[0, 0] = h.reshape(rows, hidden)
        tiles, place, many = (batch, -(-n // ROWS)), (-(-rows // ROWS),), min(MANY, padded(n))
        for k in range(layers):
            exchange[tiles](
                x if k else right[0, 0], apart[:, k * hidden :], apart.stride(0), shifts[0, k], matrices[k, 0],
                matrices[k, 1], right[0, k], scale[k - 1], a[k], b[k], n, hidden, width, ROWS, many, k > 0, True, kind,
                num_warps=WARPS,
            )  # fmt: skip
            receive[place](
                right[0, k], a[k], b[k], senders, share, away[k], matrices[k, 2], second_bias[k], matrices[k, 3],
                matrices[k, 4], shifts[1, k], matrices[k, 5], last_bias[k], right[1, k], right[2, k], z2[k], x, rows,
                len(senders), n, hidden, width, ROWS, kind, num_warps=WARPS,
            )  # fmt: skip
        exchange[tiles](x, x, 0, x, x, x, end, scale[-1], x, x, n, hidden, width, ROWS, many, True, False, kind,
                        num_warps=WARPS)
        ctx.save_for_backward(states, theta, separations, matrices, told, second_bias, away, right, z2, a, b, scale,
                              end, torch.cat(difference), *table)  # fmt: skip
        ctx.shape = u.shape
        return end

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        from .message_kernels import exchange_backward, matrix_slopes, receive_backward, update_backward

        (states, theta, separations, matrices, told, second_bias, away, right, z2, a, b, scale, end, difference,
         senders, receivers, share) = ctx.saved_tensors  # fmt: skip
        (batch, n, hidden), layers, rows = slope.shape, len(z2), len(states)
        kind, width, offsets = precision(slope.dtype), padded(hidden), len(senders)
        back = matrices.mT.contiguous()
        left = slope.new_empty(4, layers, rows, hidden)  # gradients of a, b, z1 and z2
        tiles, place, many = (batch, -(-n // ROWS)), (-(-rows // ROWS),), min(MANY, padded(n))
        edges, mean_slope = slope.new_empty(offsets, rows, hidden), slope.new_empty(rows, hidden)
        sums = slope.new_empty(layers, place[0], hidden * hidden + hidden + offsets * hidden)
        apart = slope.new_empty(rows, layers, hidden)
        slope, h_slope = slope.contiguous(), slope.new_empty(2, rows, hidden)
        for k in reversed(range(layers)):
            now = h_slope[k % 2]
            update_backward[tiles](
                slope, end if k + 1 == layers else right[0, k + 1], scale[k], right[2, k], z2[k], share, back[k, 5],
                back[k, 4], back[k, 3], left[2, k], left[3, k], mean_slope, now, n, hidden, width, ROWS, many, kind,
                num_warps=WARPS,
            )  # fmt: skip
            receive_backward[place](
                a[k], b[k], senders, away[k], matrices[k, 2], second_bias[k], back[k, 2], mean_slope, left[0, k],
                edges, sums[k], rows, 0, offsets, n, hidden, width, ROWS, kind, num_warps=WARPS,
            )  # fmt: skip
            exchange_backward[place](
                edges, receivers, left[0, k], left[1, k], apart[:, k], layers * hidden, back[k, 0], back[k, 1], now,
                rows, offsets, n, hidden, width, ROWS, kind, num_warps=WARPS,
            )  # fmt: skip
            slope = now
        parts = slope.new_empty(5, layers, PARTS, hidden, hidden)
        matrix_slopes[(5, layers, PARTS)](left, right, parts, rows, layers, PARTS, hidden, width, ROWS, kind,
                                          num_warps=WARPS)  # fmt: skip
        receiver, sender, own, heard, last = parts.sum(2)
        totals = left.unflatten(2, (batch, n)).sum(3)  # (4, layers, batch, hidden)
        shifts = torch.stack((totals[0], totals[2])).flatten(0, 1)  # as `told`
        told_slope = (shifts.mT @ theta).unflatten(0, (2, layers))
        bias, last_bias = shifts.sum(1).unflatten(0, (2, layers)), totals[3].sum(1)
        second, second_bias, away = sums.sum(1).split((hidden * hidden, hidden, offsets * hidden), dim=1)
        distance = away.unflatten(1, (offsets, hidden)).mT @ separations
        by_name = [
            torch.cat((receiver, told_slope[0]), 2), bias[0], sender,
            (apart.flatten(1).T @ states).unflatten(0, (layers, hidden)), distance,
            second.unflatten(1, (hidden, hidden)), second_bias, torch.cat((own, heard, told_slope[1]), 2), bias[1],
            last, last_bias,
        ]  # fmt: skip
        needs_u, needs_theta = ctx.needs_input_grad[1:3]
        u_slope = (apart.flatten(1) @ difference).reshape(ctx.shape) if needs_u else None
        theta_slope = (shifts @ told).sum(0) if needs_theta else None
        slopes = [part[k] for k in range(layers) for part in by_name]
        return slope.reshape(batch, n, hidden), u_slope, theta_slope, None, None, *slopes
