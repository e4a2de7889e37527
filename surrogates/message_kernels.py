"""Triton kernels of rounds of messages on a grid; `fused_messages` says what they compute together.

Letters, as in `message_passing`: h features of a point, a and b what a receiver and a sender give to a message, u and
θ known states and conditions. H features, N points of a sample, S neighbours of a point. A row is one point of one
sample; all arrays of rows are (rows, H) and contiguous. A matrix is (outputs, inputs) and contiguous: then what a
product sums over are neighbours in memory, which TF32 on tensor cores wants.

`senders[s, i]` is the s-th neighbour of point i, `receivers[s, j]` the point whose s-th neighbour is j; -1 for none.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_products import dot, outer


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _silu_slope(x):
    s = tl.sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def _matrix(start, H: tl.constexpr, HP: tl.constexpr):
    """Return a matrix (H, H), filled up with zeros."""
    o, c = tl.arange(0, HP), tl.arange(0, HP)
    return tl.load(start + o[:, None] * H + c[None, :], mask=(o[:, None] < H) & (c[None, :] < H), other=0.0)


@triton.jit
def _vector(start, H: tl.constexpr, HP: tl.constexpr):
    c = tl.arange(0, HP)
    return tl.load(start + c, mask=c < H, other=0.0)[None, :]


@triton.jit
def exchange(
    x: tl.tensor, difference: tl.tensor, difference_row: tl.tensor, shift: tl.tensor, receiver: tl.tensor,
    sender: tl.tensor, h: tl.tensor, scale: tl.tensor, a: tl.tensor, b: tl.tensor, N: tl.constexpr, H: tl.constexpr,
    HP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, NORM: tl.constexpr, MIX: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Write h, which is x with mean 0 and deviation 1 over the points, and what it gives to messages.

    a = receiver h + difference + shift, b = sender h - difference; without MIX they are not made. `scale` (samples, H)
    is one over the deviation. Without NORM h is x and not written.
    """
    sample, c = tl.program_id(0), tl.arange(0, HP)
    i = tl.program_id(1) * BM + tl.arange(0, BM)
    rows, inside = sample * N + i, (i[:, None] < N) & (c[None, :] < H)
    place = rows[:, None] * H + c[None, :]
    tile = tl.load(x + place, mask=inside, other=0.0)
    if NORM:
        total = tl.zeros((HP,), tl.float32)
        for first in tl.static_range(0, N, BN):
            j = first + tl.arange(0, BN)
            known = (j[:, None] < N) & (c[None, :] < H)
            total += tl.sum(tl.load(x + (sample * N + j)[:, None] * H + c[None, :], mask=known, other=0.0), axis=0)
        centre = total / N
        total = tl.zeros((HP,), tl.float32)
        for first in tl.static_range(0, N, BN):
            j = first + tl.arange(0, BN)
            known = (j[:, None] < N) & (c[None, :] < H)
            away = tl.load(x + (sample * N + j)[:, None] * H + c[None, :], mask=known, other=0.0) - centre[None, :]
            total += tl.sum(tl.where(known, away * away, 0.0), axis=0)
        over = 1.0 / tl.sqrt(total / N + 1e-5)
        tile = tl.where(inside, (tile - centre[None, :]) * over[None, :], 0.0)
        tl.store(h + place, tile, mask=inside)
        if tl.program_id(1) == 0:
            tl.store(scale + sample * H + c, over, mask=c < H)
    if MIX:
        apart = tl.load(difference + rows[:, None] * difference_row + c[None, :], mask=inside, other=0.0)
        told = _vector(shift + sample * H, H, HP)
        given = dot(tile, tl.trans(_matrix(receiver, H, HP)), None, PRECISION) + apart + told
        tl.store(a + place, given, mask=inside)
        given = dot(tile, tl.trans(_matrix(sender, H, HP)), None, PRECISION) - apart
        tl.store(b + place, given, mask=inside)


@triton.jit
def receive(
    h: tl.tensor, a: tl.tensor, b: tl.tensor, senders: tl.tensor, share: tl.tensor, distance: tl.tensor,
    second: tl.tensor, second_shift: tl.tensor, own: tl.tensor, heard: tl.tensor, shift: tl.tensor, last: tl.tensor,
    last_shift: tl.tensor, mean: tl.tensor, z1: tl.tensor, z2: tl.tensor, out: tl.tensor, rows: tl.tensor,
    S: tl.constexpr, N: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Mean = share Σ_s silu(second silu(a_i + b_j + distance_s) + its shift), j the s-th neighbour of i; then

    z1 = own h + heard mean + shift, z2 = last silu(z1) + its shift, out = h + silu(z2).
    """
    r, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, HP)
    inside = (r[:, None] < rows) & (c[None, :] < H)
    place, i = r[:, None] * H + c[None, :], r % N
    to = tl.load(a + place, mask=inside, other=0.0)
    matrix, offset = tl.trans(_matrix(second, H, HP)), _vector(second_shift, H, HP)
    total = tl.zeros((BM, HP), tl.float32)
    for s in range(S):
        j = tl.load(senders + s * N + i)
        exists = inside & (j[:, None] >= 0)
        first = to + tl.load(b + (r - i + j)[:, None] * H + c[None, :], mask=exists, other=0.0)
        first = _silu(first + _vector(distance + s * H, H, HP))
        message = _silu(dot(first, matrix, None, PRECISION) + offset)
        total += tl.where(exists, message, 0.0)
    total = total * tl.load(share + i)[:, None]
    tl.store(mean + place, total, mask=inside)
    tile = tl.load(h + place, mask=inside, other=0.0)
    before = dot(tile, tl.trans(_matrix(own, H, HP)), None, PRECISION)
    before = dot(total, tl.trans(_matrix(heard, H, HP)), before, PRECISION)
    before += tl.load(shift + (r // N)[:, None] * H + c[None, :], mask=inside, other=0.0)
    tl.store(z1 + place, before, mask=inside)
    before = dot(_silu(before), tl.trans(_matrix(last, H, HP)), None, PRECISION) + _vector(last_shift, H, HP)
    tl.store(z2 + place, before, mask=inside)
    tl.store(out + place, tile + _silu(before), mask=inside)


@triton.jit
def update_backward(
    slope: tl.tensor, h: tl.tensor, scale: tl.tensor, z1: tl.tensor, z2: tl.tensor, share: tl.tensor, last: tl.tensor,
    heard: tl.tensor, own: tl.tensor, z1_slope: tl.tensor, z2_slope: tl.tensor, mean_slope: tl.tensor,
    h_slope: tl.tensor, N: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of what follows the mean in `receive` and of the norm after it, whose result is h; matrices transposed.

    mean_slope is that of the sum of the messages; h_slope lacks what messages give.
    """
    sample, c = tl.program_id(0), tl.arange(0, HP)
    i = tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (i[:, None] < N) & (c[None, :] < H)
    place = (sample * N + i)[:, None] * H + c[None, :]
    level, along = tl.zeros((HP,), tl.float32), tl.zeros((HP,), tl.float32)
    for first in tl.static_range(0, N, BN):
        j = first + tl.arange(0, BN)
        known = (j[:, None] < N) & (c[None, :] < H)
        there = (sample * N + j)[:, None] * H + c[None, :]
        gradient = tl.load(slope + there, mask=known, other=0.0)
        level += tl.sum(gradient, axis=0)
        along += tl.sum(gradient * tl.load(h + there, mask=known, other=0.0), axis=0)
    gradient = tl.load(slope + place, mask=inside, other=0.0) - (level / N)[None, :]
    gradient -= tl.load(h + place, mask=inside, other=0.0) * (along / N)[None, :]
    gradient = tl.where(inside, gradient * _vector(scale + sample * H, H, HP), 0.0)
    before = gradient * _silu_slope(tl.load(z2 + place, mask=inside, other=0.0))
    tl.store(z2_slope + place, before, mask=inside)
    before = dot(before, tl.trans(_matrix(last, H, HP)), None, PRECISION)
    before = before * _silu_slope(tl.load(z1 + place, mask=inside, other=0.0))
    tl.store(z1_slope + place, before, mask=inside)
    back = dot(before, tl.trans(_matrix(heard, H, HP)), None, PRECISION)
    part = tl.load(share + i, mask=i < N, other=0.0)[:, None]
    tl.store(mean_slope + place, back * part, mask=inside)
    back = dot(before, tl.trans(_matrix(own, H, HP)), gradient, PRECISION)
    tl.store(h_slope + place, back, mask=inside)


@triton.jit
def receive_backward(
    a: tl.tensor, b: tl.tensor, senders: tl.tensor, distance: tl.tensor, second: tl.tensor, second_shift: tl.tensor,
    second_back: tl.tensor, mean_slope: tl.tensor, a_slope: tl.tensor, edges: tl.tensor, sums: tl.tensor,
    rows: tl.tensor, nothing: tl.tensor, S: tl.constexpr, N: tl.constexpr, H: tl.constexpr, HP: tl.constexpr,
    BM: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of the messages in `receive`: of a, of what enters each message in `edges` (S, rows, H).

    What a message is made of is computed again. Each program writes its sums: second (H, H), its shift, distance
    (S, H). second_back is second transposed. `nothing` is 0: where a product is three, matrices whose place seems to
    depend on s are loaded for each product, as both would not fit the fast memory.
    """
    r, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, HP)
    inside = (r[:, None] < rows) & (c[None, :] < H)
    place, i = r[:, None] * H + c[None, :], r % N
    to = tl.load(a + place, mask=inside, other=0.0)
    coming = tl.load(mean_slope + place, mask=inside, other=0.0)
    matrix, offset = tl.trans(_matrix(second, H, HP)), _vector(second_shift, H, HP)
    matrix_back = tl.trans(_matrix(second_back, H, HP))
    matrix_total, shift_total = tl.zeros((HP, HP), tl.float32), tl.zeros((HP,), tl.float32)
    a_total = tl.zeros((BM, HP), tl.float32)
    end = sums + tl.program_id(0) * (H * H + H + S * H)
    for s in range(S):
        j = tl.load(senders + s * N + i)
        exists = inside & (j[:, None] >= 0)
        first = to + tl.load(b + (r - i + j)[:, None] * H + c[None, :], mask=exists, other=0.0)
        first += _vector(distance + s * H, H, HP)
        sent = _silu(first)
        if PRECISION == "tf32x3":
            there, back = second + s * nothing, second_back + s * nothing
            matrix_now, back_now = tl.trans(_matrix(there, H, HP)), tl.trans(_matrix(back, H, HP))
        else:
            matrix_now, back_now = matrix, matrix_back
        gradient = _silu_slope(dot(sent, matrix_now, None, PRECISION) + offset)
        gradient = tl.where(exists, coming * gradient, 0.0)
        shift_total += tl.sum(gradient, axis=0)
        matrix_total = outer(gradient, sent, matrix_total, PRECISION)
        gradient = dot(gradient, back_now, None, PRECISION) * _silu_slope(first)
        a_total += gradient
        tl.store(edges + s * (rows * H) + place, gradient, mask=inside)
        tl.store(end + H * H + H + s * H + c, tl.sum(gradient, axis=0), mask=c < H)
    tl.store(a_slope + place, a_total, mask=inside)
    o = tl.arange(0, HP)
    tl.store(end + o[:, None] * H + c[None, :], matrix_total, mask=(o[:, None] < H) & (c[None, :] < H))
    tl.store(end + H * H + c, shift_total, mask=c < H)


@triton.jit
def exchange_backward(
    edges: tl.tensor, receivers: tl.tensor, a_slope: tl.tensor, b_slope: tl.tensor, difference_slope: tl.tensor,
    difference_row: tl.tensor, receiver: tl.tensor, sender: tl.tensor, h_slope: tl.tensor, rows: tl.tensor,
    S: tl.constexpr, N: tl.constexpr, H: tl.constexpr, HP: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of `exchange` but its norm: of b from `edges`, of the difference; h_slope grows by what a and b give.

    Matrices transposed.
    """
    r, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, HP)
    inside = (r[:, None] < rows) & (c[None, :] < H)
    place, j = r[:, None] * H + c[None, :], r % N
    total = tl.zeros((BM, HP), tl.float32)
    for s in range(S):
        i = tl.load(receivers + s * N + j)
        heard = edges + s * (rows * H) + (r - j + i)[:, None] * H + c[None, :]
        total += tl.load(heard, mask=inside & (i[:, None] >= 0), other=0.0)
    tl.store(b_slope + place, total, mask=inside)
    to = tl.load(a_slope + place, mask=inside, other=0.0)
    tl.store(difference_slope + r[:, None] * difference_row + c[None, :], to - total, mask=inside)
    back = tl.load(h_slope + place, mask=inside, other=0.0)
    back = dot(to, tl.trans(_matrix(receiver, H, HP)), back, PRECISION)
    back = dot(total, tl.trans(_matrix(sender, H, HP)), back, PRECISION)
    tl.store(h_slope + place, back, mask=inside)


@triton.jit
def matrix_slopes(
    left: tl.tensor, right: tl.tensor, out: tl.tensor, rows: tl.tensor, LAYERS: tl.constexpr, PARTS: tl.constexpr,
    H: tl.constexpr, HP: tl.constexpr, BM: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Out[matrix, layer, part] = Σ left^T right over a part of the rows, for the five matrices of points.

    left (4, LAYERS, rows, H): gradients of a, b, z1, z2; right (3, LAYERS, rows, H): h, mean, z1 before silu. The
    matrices: receiver, sender, own, heard, last.
    """
    which, layer, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.where(which < 3, which, which - 1)
    other = tl.where(which < 3, 0, which - 2)
    each, c = tl.cdiv(tl.cdiv(rows, BM), PARTS) * BM, tl.arange(0, HP)
    total = tl.zeros((HP, HP), tl.float32)
    for start in range(part * each, min((part + 1) * each, rows), BM):
        r = start + tl.arange(0, BM)
        inside = (r[:, None] < rows) & (c[None, :] < H)
        place = r[:, None] * H + c[None, :]
        gradient = tl.load(left + (first * LAYERS + layer) * (rows * H) + place, mask=inside, other=0.0)
        tile = tl.load(right + (other * LAYERS + layer) * (rows * H) + place, mask=inside, other=0.0)
        if which == 4:
            tile = _silu(tile)
        total = outer(gradient, tile, total, PRECISION)
    o = tl.arange(0, HP)
    end = out + ((which * LAYERS + layer) * PARTS + part) * (H * H)
    tl.store(end + o[:, None] * H + c[None, :], total, mask=(o[:, None] < H) & (c[None, :] < H))
