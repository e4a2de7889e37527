"""Triton kernels of a fused Fourier layer on planar grids; `fused_fourier` says what they compute together.

Letters, as in `spectral`: c (and o, of outputs) channels, b batch, h and w points, k and l kept wave numbers of the
first and the last axis, r the pair (real, imaginary). A row is one (b, h).

    states      (c, b, h, w)            with any strides over c and b, and each plane (h, w) contiguous
    row spectra (rows, r, l, c)         of the last axis alone, contiguous
    spectra     (k, l, r, b, c)         of both axes, contiguous

so that channels are what neighbouring threads read, and every kernel reads and writes its large operand once.
Every product accumulates in float32; PRECISION says how a float32 product is made on tensor cores: "tf32", or
"tf32x3", three of these, which has the accuracy of float32.

With 16 bits, the second operand of a product must have at least 64 contiguous numbers or be written transposed: for
narrower ones Triton 3.6 makes code that reads beyond its shared memory on an H100.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernel_products import dot


@triton.jit
def _tail(x, density):
    """Return 1 - Φ(|x|), Φ the normal distribution and density its slope at x, to 7.5e-8.

    Abramowitz and Stegun (1964), 26.2.17: a third of the instructions of an error function, and it shares the
    exponential with the slope of gelu.
    """
    t = 1.0 / (1.0 + 0.2316419 * tl.abs(x))
    series = t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    return density * t * (0.319381530 + series)


@triton.jit
def _density(x):
    return 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)


@triton.jit
def _gelu(x):
    return tl.maximum(x, 0.0) - tl.abs(x) * _tail(x, _density(x))


@triton.jit
def _gelu_slope(x):
    density = _density(x)
    tail = _tail(x, density)
    return tl.where(x > 0.0, 1.0 - tail, tail) + x * density


@triton.jit
def analyse_rows(
    x: tl.tensor, x_c: tl.tensor, x_b: tl.tensor, transform: tl.tensor, out: tl.tensor, height: tl.tensor,
    C: tl.constexpr, W: tl.constexpr, K: tl.constexpr, CP: tl.constexpr, KP: tl.constexpr, BW: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Out[row, q, c] = Σ_w x[c, row, w] transform[q, w] with q = (r, l), K of them; x_c and x_b are strides of x."""
    row = tl.program_id(0)
    c, q, j = tl.arange(0, CP), tl.arange(0, KP), tl.arange(0, BW)
    place = (row // height) * x_b + (row % height) * W + c[:, None] * x_c
    total = tl.zeros((CP, KP), tl.float32)
    for start in tl.static_range(0, W, BW):
        w = start + j
        tile = tl.load(x + place + w[None, :], mask=(c[:, None] < C) & (w[None, :] < W), other=0.0)
        waves = tl.load(transform + q[:, None] * W + w[None, :], mask=(q[:, None] < K) & (w[None, :] < W), other=0.0)
        total = dot(tile, tl.trans(waves.to(tile.dtype)), total, PRECISION)
    tl.store(out + row * (K * C) + q[None, :] * C + c[:, None], total.to(out.dtype.element_ty),
             mask=(c[:, None] < C) & (q[None, :] < K))  # fmt: skip


@triton.jit
def contract_columns(
    p: tl.tensor, q: tl.tensor, source: tl.tensor, out: tl.tensor, C: tl.tensor, L: tl.tensor, N: tl.constexpr,
    M: tl.constexpr, source_n: tl.tensor, source_l: tl.tensor, source_r: tl.tensor, source_b: tl.tensor,
    out_m: tl.tensor, out_l: tl.tensor, out_r: tl.tensor, out_b: tl.tensor, BN: tl.constexpr, BM: tl.constexpr,
    BC: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Out[m, c] = Σ_n (p + i q)[m, n] source[n, c], complex, for each (b, l); strides name where the axes lie."""
    b, wave = tl.program_id(0) // L, tl.program_id(0) % L
    m, c = tl.program_id(1) * BM + tl.arange(0, BM), tl.program_id(2) * BC + tl.arange(0, BC)
    out_real, out_imaginary = tl.zeros((BM, BC), tl.float32), tl.zeros((BM, BC), tl.float32)
    for first in range(0, N, BN):
        n = first + tl.arange(0, BN)
        inside = (n[:, None] < N) & (c[None, :] < C)
        start = source + b * source_b + wave * source_l + n[:, None] * source_n + c[None, :]
        real = tl.load(start, mask=inside, other=0.0).to(tl.float32)
        imaginary = tl.load(start + source_r, mask=inside, other=0.0).to(tl.float32)
        known = (m[:, None] < M) & (n[None, :] < N)
        cosine = tl.load(p + m[:, None] * N + n[None, :], mask=known, other=0.0)
        sine = tl.load(q + m[:, None] * N + n[None, :], mask=known, other=0.0)
        out_real = dot(cosine, real, out_real, PRECISION)
        out_real = dot(-sine, imaginary, out_real, PRECISION)
        out_imaginary = dot(sine, real, out_imaginary, PRECISION)
        out_imaginary = dot(cosine, imaginary, out_imaginary, PRECISION)
    outside = (m[:, None] < M) & (c[None, :] < C)
    end = out + b * out_b + wave * out_l + m[:, None] * out_m + c[None, :]
    tl.store(end, out_real.to(out.dtype.element_ty), mask=outside)
    tl.store(end + out_r, out_imaginary.to(out.dtype.element_ty), mask=outside)


@triton.jit
def mix_modes(
    x: tl.tensor, weight: tl.tensor, out: tl.tensor, B: tl.tensor, C: tl.constexpr, O: tl.constexpr,
    BB: tl.constexpr, CP: tl.constexpr, OP: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Out[mode, b, o] = Σ_c x[mode, b, c] weight[mode, c, o], complex."""
    mode, b = tl.program_id(0), tl.program_id(1) * BB + tl.arange(0, BB)
    c, o = tl.arange(0, CP), tl.arange(0, OP)
    inside = (b[:, None] < B) & (c[None, :] < C)
    start = x + mode * (2 * B * C) + b[:, None] * C + c[None, :]
    real = tl.load(start, mask=inside, other=0.0)
    imaginary = tl.load(start + B * C, mask=inside, other=0.0)
    known = (c[:, None] < C) & (o[None, :] < O)
    matrix = weight + mode * (2 * C * O) + c[:, None] * (2 * O) + o[None, :]
    weight_real = tl.load(matrix, mask=known, other=0.0).to(real.dtype)
    weight_imaginary = tl.load(matrix + O, mask=known, other=0.0).to(real.dtype)
    out_real = dot(real, weight_real, None, PRECISION)
    out_real = dot(-imaginary, weight_imaginary, out_real, PRECISION)
    out_imaginary = dot(real, weight_imaginary, None, PRECISION)
    out_imaginary = dot(imaginary, weight_real, out_imaginary, PRECISION)
    outside = (b[:, None] < B) & (o[None, :] < O)
    end = out + mode * (2 * B * O) + b[:, None] * O + o[None, :]
    tl.store(end, out_real.to(out.dtype.element_ty), mask=outside)
    tl.store(end + B * O, out_imaginary.to(out.dtype.element_ty), mask=outside)


@triton.jit
def mix_modes_backward(
    x: tl.tensor, weight: tl.tensor, slope: tl.tensor, x_slope: tl.tensor, weight_slope: tl.tensor,
    B: tl.tensor, C: tl.constexpr, O: tl.constexpr, BB: tl.constexpr, CP: tl.constexpr, OP: tl.constexpr,
    GOES_BACK: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of `mix_modes`: slope · weight^H into x_slope where it GOES_BACK, x^H · slope into weight_slope."""
    mode = tl.program_id(0)
    c, o = tl.arange(0, CP), tl.arange(0, OP)
    known = (c[:, None] < C) & (o[None, :] < O)
    place = mode * (2 * C * O) + c[:, None] * (2 * O) + o[None, :]
    kind = x.dtype.element_ty
    if GOES_BACK:
        weight_real = tl.trans(tl.load(weight + place, mask=known, other=0.0).to(kind))
        weight_imaginary = tl.trans(tl.load(weight + place + O, mask=known, other=0.0).to(kind))
    total_real, total_imaginary = tl.zeros((CP, OP), tl.float32), tl.zeros((CP, OP), tl.float32)
    for first in range(0, B, BB):
        b = first + tl.arange(0, BB)
        source = mode * (2 * B * C) + b[:, None] * C + c[None, :]
        inside = (b[:, None] < B) & (c[None, :] < C)
        real = tl.load(x + source, mask=inside, other=0.0)
        imaginary = tl.load(x + source + B * C, mask=inside, other=0.0)
        target = mode * (2 * B * O) + b[:, None] * O + o[None, :]
        outside = (b[:, None] < B) & (o[None, :] < O)
        slope_real = tl.load(slope + target, mask=outside, other=0.0)
        slope_imaginary = tl.load(slope + target + B * O, mask=outside, other=0.0)
        if GOES_BACK:
            x_real = dot(slope_real, weight_real, None, PRECISION)
            x_real = dot(slope_imaginary, weight_imaginary, x_real, PRECISION)
            x_imaginary = dot(slope_imaginary, weight_real, None, PRECISION)
            x_imaginary = dot(-slope_real, weight_imaginary, x_imaginary, PRECISION)
            tl.store(x_slope + source, x_real.to(kind), mask=inside)
            tl.store(x_slope + source + B * C, x_imaginary.to(kind), mask=inside)
        real, imaginary = tl.trans(real), tl.trans(imaginary)
        total_real = dot(real, slope_real, total_real, PRECISION)
        total_real = dot(imaginary, slope_imaginary, total_real, PRECISION)
        total_imaginary = dot(real, slope_imaginary, total_imaginary, PRECISION)
        total_imaginary = dot(-imaginary, slope_real, total_imaginary, PRECISION)
    tl.store(weight_slope + place, total_real, mask=known)
    tl.store(weight_slope + place + O, total_imaginary, mask=known)


@triton.jit
def blend(
    x: tl.tensor, x_c: tl.tensor, x_b: tl.tensor, matrix: tl.tensor, matrix_o: tl.tensor, matrix_c: tl.tensor,
    z: tl.tensor, transform: tl.tensor, bias: tl.tensor, out: tl.tensor, out_o: tl.tensor, out_b: tl.tensor,
    analysis: tl.tensor, spectra: tl.tensor, height: tl.tensor, C: tl.constexpr, O: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, CP: tl.constexpr, OP: tl.constexpr, KP: tl.constexpr, BW: tl.constexpr, BIAS: tl.constexpr,
    ACTIVE: tl.constexpr, GOES_ON: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Out[o, row, w] = gelu(Σ_c matrix[o, c] x[c, row, w] + Σ_q z[row, q, o] transform[q, w] + bias[o]).

    x_c, x_b, matrix_o and the like are strides. Where it goes on, the row spectra of `out` are made as by
    `analyse_rows`, in `spectra`, before the row leaves the processor.
    """
    row = tl.program_id(0)
    c, o, q, j = tl.arange(0, CP), tl.arange(0, OP), tl.arange(0, KP), tl.arange(0, BW)
    source = (row // height) * x_b + (row % height) * W + c[:, None] * x_c
    place = (row // height) * out_b + (row % height) * W + o[:, None] * out_o
    pointwise = tl.load(matrix + o[:, None] * matrix_o + c[None, :] * matrix_c,
                        mask=(o[:, None] < O) & (c[None, :] < C), other=0.0).to(x.dtype.element_ty)  # fmt: skip
    spectral = row * (K * O) + q[None, :] * O + o[:, None]
    kept = (q[None, :] < K) & (o[:, None] < O)
    spectrum = tl.load(z + spectral, mask=kept, other=0.0)
    next_spectrum = tl.zeros((OP, KP), tl.float32)
    for start in range(0, W, BW):
        w = start + j
        tile = tl.load(x + source + w[None, :], mask=(c[:, None] < C) & (w[None, :] < W), other=0.0)
        total = dot(pointwise, tile, None, PRECISION)
        known = (q[:, None] < K) & (w[None, :] < W)
        waves = tl.load(transform + q[:, None] * W + w[None, :], mask=known, other=0.0)
        total = dot(spectrum, waves.to(spectrum.dtype), total, PRECISION)
        if BIAS:
            total += tl.load(bias + o, mask=o < O, other=0.0)[:, None]
        if ACTIVE:
            total = _gelu(total)
        total = total.to(out.dtype.element_ty)
        tl.store(out + place + w[None, :], total, mask=(o[:, None] < O) & (w[None, :] < W))
        if GOES_ON:
            waves = tl.load(analysis + q[:, None] * W + w[None, :], mask=known, other=0.0)
            next_spectrum = dot(total, tl.trans(waves.to(total.dtype)), next_spectrum, PRECISION)
    if GOES_ON:
        tl.store(spectra + spectral, next_spectrum.to(spectra.dtype.element_ty), mask=kept)


@triton.jit
def blend_backward(
    x: tl.tensor, x_c: tl.tensor, x_b: tl.tensor, matrix: tl.tensor, z: tl.tensor, transform: tl.tensor,
    bias: tl.tensor, slope: tl.tensor, slope_n: tl.tensor, slope_b: tl.tensor, next_matrix: tl.tensor,
    next_z: tl.tensor, next_transform: tl.tensor, before: tl.tensor, before_o: tl.tensor, before_b: tl.tensor,
    z_slope: tl.tensor, sums: tl.tensor, sums_stride: tl.tensor, rows: tl.tensor, height: tl.tensor,
    C: tl.constexpr, O: tl.constexpr, N: tl.constexpr, W: tl.constexpr, K: tl.constexpr, CP: tl.constexpr,
    OP: tl.constexpr, NP: tl.constexpr, KP: tl.constexpr, BW: tl.constexpr, ACTIVE: tl.constexpr,
    COMES_ON: tl.constexpr, KEEPS: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of `blend` but that of x: of z, of matrix and bias a sum per program; KEEPS that `before` the gelu.

    What entered the nonlinearity is computed again, which costs less than to have stored it. Where it comes on from the
    next layer, with N outputs, `slope` is the gradient before that layer's nonlinearity, and its blend by the
    transposed next_matrix, next_z and next_transform is made here, before it would enter the memory.
    """
    c, o, q, j, n = tl.arange(0, CP), tl.arange(0, OP), tl.arange(0, KP), tl.arange(0, BW), tl.arange(0, NP)
    kind = x.dtype.element_ty
    program, programs = tl.program_id(0), tl.num_programs(0)
    pointwise = tl.load(matrix + o[:, None] * C + c[None, :],
                        mask=(o[:, None] < O) & (c[None, :] < C), other=0.0).to(kind)  # fmt: skip
    shift = tl.load(bias + o, mask=o < O, other=0.0)[:, None]
    if COMES_ON:
        next_pointwise = tl.load(next_matrix + n[None, :] * O + o[:, None],
                                 mask=(n[None, :] < N) & (o[:, None] < O), other=0.0).to(kind)  # fmt: skip
    matrix_total, bias_total = tl.zeros((OP, CP), tl.float32), tl.zeros((OP,), tl.float32)
    for row in range(program, rows, programs):
        b, first = row // height, (row % height) * W
        spectral = row * (K * O) + q[None, :] * O + o[:, None]
        kept = (q[None, :] < K) & (o[:, None] < O)
        if ACTIVE:
            spectrum = tl.load(z + spectral, mask=kept, other=0.0)
        if COMES_ON:
            next_spectrum = tl.load(next_z + spectral, mask=kept, other=0.0)
        z_total = tl.zeros((OP, KP), tl.float32)
        for start in range(0, W, BW):
            w = start + j
            some = w[None, :] < W
            tile = tl.load(x + b * x_b + first + c[:, None] * x_c + w[None, :],
                           mask=(c[:, None] < C) & some, other=0.0)  # fmt: skip
            waves = tl.load(transform + q[:, None] * W + w[None, :], mask=(q[:, None] < K) & some, other=0.0).to(kind)
            inside = (o[:, None] < O) & some
            coming = slope + b * slope_b + first + w[None, :]
            if COMES_ON:
                gradient = tl.load(coming + n[:, None] * slope_n, mask=(n[:, None] < N) & some, other=0.0)
                gradient = dot(next_pointwise, gradient, None, PRECISION)
                back = tl.load(next_transform + q[:, None] * W + w[None, :], mask=(q[:, None] < K) & some, other=0.0)
                gradient = dot(next_spectrum, back.to(kind), gradient, PRECISION)
            else:
                gradient = tl.load(coming + o[:, None] * slope_n, mask=inside, other=0.0).to(tl.float32)
            if ACTIVE:
                total = dot(pointwise, tile, None, PRECISION)
                total = dot(spectrum, waves, total, PRECISION) + shift
                gradient = gradient * _gelu_slope(total)
            gradient = gradient.to(kind)
            if KEEPS:
                tl.store(before + b * before_b + first + o[:, None] * before_o + w[None, :], gradient, mask=inside)
            z_total = dot(gradient, tl.trans(waves), z_total, PRECISION)
            matrix_total = dot(gradient, tl.trans(tile), matrix_total, PRECISION)
        # The wave number 0 of the inverse transform is one at every point, so its gradient is the sum over the row.
        bias_total += tl.sum(tl.where(q[None, :] == 0, z_total, 0.0), axis=1)
        tl.store(z_slope + spectral, z_total.to(z_slope.dtype.element_ty), mask=kept)
    end = sums + program * sums_stride
    tl.store(end + o[:, None] * C + c[None, :], matrix_total, mask=(o[:, None] < O) & (c[None, :] < C))
    tl.store(end + O * C + o, bias_total, mask=o < O)


@triton.jit
def project(
    x: tl.tensor, x_c: tl.tensor, x_b: tl.tensor, first: tl.tensor, shift: tl.tensor, second: tl.tensor,
    bias: tl.tensor, out: tl.tensor, points: tl.tensor, PLANE: tl.constexpr, C: tl.constexpr, H: tl.constexpr,
    O: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr, OP: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Out[b, o, n] = Σ_h second[o, h] gelu(Σ_c first[h, c] x[c, b, n] + shift[h]) + bias[o], n in the plane (h, w)."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    c, h, o = tl.arange(0, CP), tl.arange(0, HP), tl.arange(0, OP)
    b, place = n // PLANE, n % PLANE
    tile = tl.load(x + (b * x_b + place)[None, :] + c[:, None] * x_c,
                   mask=(c[:, None] < C) & (n[None, :] < points), other=0.0)  # fmt: skip
    matrix = tl.load(first + h[:, None] * C + c[None, :], mask=(h[:, None] < H) & (c[None, :] < C), other=0.0)
    hidden = dot(matrix.to(tile.dtype), tile, None, PRECISION)
    hidden = _gelu(hidden + tl.load(shift + h, mask=h < H, other=0.0)[:, None]).to(tile.dtype)
    matrix = tl.load(second + o[:, None] * H + h[None, :], mask=(o[:, None] < O) & (h[None, :] < H), other=0.0)
    total = dot(matrix.to(tile.dtype), hidden, None, PRECISION)
    total += tl.load(bias + o, mask=o < O, other=0.0)[:, None]
    tl.store(out + (b * (O * PLANE) + place)[None, :] + o[:, None] * PLANE, total.to(out.dtype.element_ty),
             mask=(o[:, None] < O) & (n[None, :] < points))  # fmt: skip


@triton.jit
def project_backward(
    x: tl.tensor, x_c: tl.tensor, x_b: tl.tensor, first: tl.tensor, shift: tl.tensor, second: tl.tensor,
    slope: tl.tensor, slope_o: tl.tensor, slope_b: tl.tensor, x_slope: tl.tensor, sums: tl.tensor, points: tl.tensor,
    PLANE: tl.constexpr, C: tl.constexpr, H: tl.constexpr, O: tl.constexpr, CP: tl.constexpr, HP: tl.constexpr,
    OP: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of `project`: x_slope, with the strides of x, and in `sums` those of the weights, a sum per program.

    Each row of `sums` holds first (H, C), shift (H,), second (O, H), bias (O,).
    """
    c, h, o = tl.arange(0, CP), tl.arange(0, HP), tl.arange(0, OP)
    program, programs = tl.program_id(0), tl.num_programs(0)
    matrix = tl.load(first + h[:, None] * C + c[None, :], mask=(h[:, None] < H) & (c[None, :] < C), other=0.0)
    outer = tl.load(second + o[:, None] * H + h[None, :], mask=(o[:, None] < O) & (h[None, :] < H), other=0.0)
    offset = tl.load(shift + h, mask=h < H, other=0.0)[:, None]
    first_total, shift_total = tl.zeros((HP, CP), tl.float32), tl.zeros((HP,), tl.float32)
    second_total, bias_total = tl.zeros((OP, HP), tl.float32), tl.zeros((OP,), tl.float32)
    for start in range(program * BN, points, programs * BN):
        n = start + tl.arange(0, BN)
        b, place = n // PLANE, n % PLANE
        inside = (c[:, None] < C) & (n[None, :] < points)
        source = (b * x_b + place)[None, :] + c[:, None] * x_c
        tile = tl.load(x + source, mask=inside, other=0.0)
        gradient = tl.load(slope + (b * slope_b + place)[None, :] + o[:, None] * slope_o,
                           mask=(o[:, None] < O) & (n[None, :] < points), other=0.0)  # fmt: skip
        bias_total += tl.sum(gradient.to(tl.float32), axis=1)
        gradient = gradient.to(tile.dtype)
        hidden = dot(matrix.to(tile.dtype), tile, None, PRECISION) + offset
        second_total = dot(gradient, tl.trans(_gelu(hidden).to(tile.dtype)), second_total, PRECISION)
        before = dot(tl.trans(outer).to(tile.dtype), gradient, None, PRECISION) * _gelu_slope(hidden)
        shift_total += tl.sum(before, axis=1)
        before = before.to(tile.dtype)
        first_total = dot(before, tl.trans(tile), first_total, PRECISION)
        back = dot(tl.trans(matrix).to(tile.dtype), before, None, PRECISION)
        tl.store(x_slope + source, back.to(x_slope.dtype.element_ty), mask=inside)
    end = sums + program * (H * C + H + O * H + O)
    tl.store(end + h[:, None] * C + c[None, :], first_total, mask=(h[:, None] < H) & (c[None, :] < C))
    end += H * C
    tl.store(end + h, shift_total, mask=h < H)
    end += H
    tl.store(end + o[:, None] * H + h[None, :], second_total, mask=(o[:, None] < O) & (h[None, :] < H))
    tl.store(end + O * H + o, bias_total, mask=o < O)
