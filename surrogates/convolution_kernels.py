"""Triton kernel of convolutions in a plane for many networks at once; `fused_unet` says what they make together.

Fields are (parts, b, *grid, channels), weights (parts, outputs, taps, inputs), contiguous: what a product sums over are
neighbours in memory, which TF32 on tensor cores wants. A program makes a tile (pixels, outputs) of one part: whatever
has as many pixels has as many tiles, be they of one network or of several. Periodic axes go on around the box by their
indices, so that no field is continued in memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_products import near

KEPT = tl.constexpr(1 + 2 / 3 / 2**11)
"""One over what is left on average of a number whose last bits tensor cores cut off, all but ten after the point."""


@triton.jit
def _place(i, N, first, stride, AROUND: tl.constexpr):
    """Return first + stride i, around the axis where it is periodic; beyond a wall what makes any sum negative."""
    if AROUND:
        return first + stride * tl.where(i < 0, i + N, tl.where(i >= N, i - N, i))
    return tl.where((i < 0) | (i >= N), -1073741824, first + stride * i)


@triton.jit
def _room(channels):
    """Return how many numbers a point of a field has in memory: four are read at once, those after channels are 0."""
    return (channels + 3) // 4 * 4


@triton.jit
def _chosen(step, low, here, high):
    """Return what lies a step of -1, 0 or 1 away."""
    return tl.where(step < 0, low, tl.where(step > 0, high, here))


@triton.jit
def _gathered(
    total, field, weights, channels, row, first, top, middle, bottom, left, centre, right, py, px, o, outputs,
    TAPS: tl.constexpr, UP: tl.constexpr, WALLS: tl.constexpr, FULL: tl.constexpr, RAW: tl.constexpr,
    BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return total + the sum over taps and channels; a tap of the weights has `row` inputs, these from `first` on.

    RAW : whether the field is not rounded for products yet.
    """
    c, stride = tl.arange(0, BK), _room(channels)
    KERNEL: tl.constexpr = 4 if UP else TAPS
    own = o * (KERNEL * KERNEL * row)
    tap, start = 0, 0
    for _ in range(TAPS * TAPS * tl.cdiv(channels, BK)):
        ty, tx = tap // TAPS, tap % TAPS
        if UP:  # of 4 x 4 taps each phase of the finer grid meets 2 x 2
            dy, dx = ty * (2 * py - 1), tx * (2 * px - 1)
            ty, tx = tl.where(ty == 0, 1 + py, 3 - 3 * py), tl.where(tx == 0, 1 + px, 3 - 3 * px)
        else:
            dy, dx = ty - TAPS // 2, tx - TAPS // 2
        pixel = middle + centre
        if TAPS > 1:
            pixel = _chosen(dy, top, middle, bottom) + _chosen(dx, left, centre, right)
        place = field + start + (pixel * stride)[:, None] + c[None, :]
        matrix = weights + ((ty * KERNEL + tx) * row + first + start) + own[:, None] + c[None, :]
        known, beside = (c < stride - start)[None, :], (pixel >= 0)[:, None]
        if FULL and (TAPS == 1 or not WALLS):
            a = tl.load(place)
        elif FULL:
            a = tl.load(place, mask=beside, other=0.0)
        elif TAPS > 1 and WALLS:
            a = tl.load(place, mask=beside & known, other=0.0)
        else:
            a = tl.load(place, mask=known, other=0.0)
        if FULL:
            w = tl.load(matrix)
        else:
            w = tl.load(matrix, mask=(o < outputs)[:, None] & (c < channels - start)[None, :], other=0.0)
        if RAW:
            a = near(a, PRECISION)
        # Weights are not rounded: they would no longer come from memory straight to where tensor cores read them.
        total = tl.dot(a, tl.trans(w), total, input_precision=PRECISION)
        start += BK
        tap, start = tl.where(start < channels, tap, tap + 1), tl.where(start < channels, start, 0)
    return total


@triton.jit(do_not_specialize=["batch", "H", "W", "height", "width"])
def convolve(
    one: tl.tensor, two: tl.tensor, weights: tl.tensor, bias: tl.tensor, skip_one: tl.tensor, skip_two: tl.tensor,
    skip_weights: tl.tensor, skip_bias: tl.tensor, plain: tl.tensor, active: tl.tensor, batch: tl.tensor,
    H: tl.tensor, W: tl.tensor, height: tl.tensor, width: tl.tensor, outputs: tl.tensor, C1: tl.tensor, C2: tl.tensor,
    S1: tl.tensor, S2: tl.tensor, TAPS: tl.constexpr, STRIDE: tl.constexpr, UP: tl.constexpr, TWO: tl.constexpr,
    SKIP: tl.constexpr, PLAIN: tl.constexpr, ACTIVE: tl.constexpr, AROUND_Y: tl.constexpr, AROUND_X: tl.constexpr,
    FULL: tl.constexpr, RAW: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Write the convolution of one or two fields, their channels one after another, plus what skips it, and its silu.

    H, W, C1, C2 : grid and channels of the fields; height, width, outputs : of the result.
    UP : the transposed one of 4 x 4 taps, stride 2; a program has one of the four phases of the finer grid.
    SKIP : 0 nothing, 1 `skip_one` itself, 2 and 3 one or two fields of S1 and S2 channels, mapped pointwise.
    FULL : whether channels and outputs fill all tiles.
    RAW : whether the fields are not rounded for products yet, as those that skip are not.
    PLAIN, ACTIVE : whether the result is written, and its silu, which products take next: rounded for these.
    """
    tiles = tl.cdiv(outputs, BN)
    rows = tl.program_id(0) // tiles
    o = (tl.program_id(0) % tiles) * BN + tl.arange(0, BN)
    part, py, px = tl.program_id(1), 0, 0
    across, down = width, height
    if UP:
        py, px = tl.program_id(2) // 2, tl.program_id(2) % 2
        across, down = (width + 1) // 2, (height + 1) // 2
    m = rows * BM + tl.arange(0, BM)
    x, y, sample = m % across, (m // across) % down, m // (across * down)
    valid = sample < batch
    sample = tl.where(valid, sample, 0)
    size = H * W * batch
    inputs = C1 + C2 if TWO else C1
    kernel = 16 if UP else TAPS * TAPS
    WALLS: tl.constexpr = not (AROUND_Y and AROUND_X)
    fy, fx, plane = y * STRIDE, x * STRIDE, sample * H * W
    top, bottom = _place(fy - 1, H, plane, W, AROUND_Y), _place(fy + 1, H, plane, W, AROUND_Y)
    middle = plane + fy * W
    left, right = _place(fx - 1, W, 0, 1, AROUND_X), _place(fx + 1, W, 0, 1, AROUND_X)
    w = weights + part.to(tl.int64) * (outputs * kernel * inputs)
    total = tl.zeros((BM, BN), tl.float32)
    one, two = one + part * size * _room(C1), two + part * size * _room(C2)
    total = _gathered(total, one, w, C1, inputs, 0, top, middle, bottom, left, fx, right, py, px, o, outputs, TAPS, UP,
                      WALLS, FULL, RAW, BK, PRECISION)  # fmt: skip
    if TWO:
        total = _gathered(total, two, w, C2, inputs, C1, top, middle, bottom, left, fx, right, py, px, o, outputs,
                          TAPS, UP, WALLS, FULL, RAW, BK, PRECISION)  # fmt: skip
    if SKIP >= 2:
        inputs = S1 + S2 if SKIP == 3 else S1
        w = skip_weights + part.to(tl.int64) * (outputs * inputs)
        one, two = skip_one + part * size * _room(S1), skip_two + part * size * _room(S2)
        total = _gathered(total, one, w, S1, inputs, 0, top, middle, bottom, left, fx, right, 0, 0, o, outputs, 1,
                          False, WALLS, FULL, True, BK, PRECISION)  # fmt: skip
        if SKIP == 3:
            total = _gathered(total, two, w, S2, inputs, S1, top, middle, bottom, left, fx, right, 0, 0, o, outputs, 1,
                              False, WALLS, FULL, True, BK, PRECISION)  # fmt: skip
    if PRECISION == "tf32":
        total *= KEPT
    shift = tl.load(bias + part * outputs + o, mask=o < outputs, other=0.0)
    if SKIP >= 2:
        shift += tl.load(skip_bias + part * outputs + o, mask=o < outputs, other=0.0)
    total += shift[None, :]
    if UP:
        y, x = 2 * y + py, 2 * x + px
        valid = valid & (y < height) & (x < width)
    pixel = ((part * batch + sample) * height + y) * width + x
    place = pixel[:, None] * _room(outputs) + o[None, :]
    wanted = valid[:, None] & (o < _room(outputs))[None, :]
    if SKIP == 1:
        total += tl.load(skip_one + place, mask=wanted, other=0.0)
    if PLAIN:
        tl.store(plain + place, total, mask=wanted)
    if ACTIVE:
        tl.store(active + place, near(total * tl.sigmoid(total), PRECISION), mask=wanted)
