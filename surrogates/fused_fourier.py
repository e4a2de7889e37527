"""A Fourier layer and the last pointwise network fused for an NVIDIA GPU: states cross memory as seldom as can be.

The mathematics is that of `SpectralConv`, `Pointwise` and gelu, which stay the reference, and the form on every other
device. One layer reads its states twice forward and twice backward and writes them once each way: the transform of the
last axis, skip, sum, bias and gelu are one pass, and what entered the gelu is computed again instead of stored. The
hidden channels of the projection never leave the processor. Planar grids, float32 and 16-bit states; everything else
takes the other form.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .spectral import analysis_matrix, forward_matrix, inverse_matrix, synthesis_matrix

MOST_CHANNELS, MOST_POINTS, MOST_MODES = 128, 256, 64
"""Larger tiles would not fit the registers of one processor: channels, points of the first axis, modes of an axis."""
MOST_OUTPUTS = 16


def usable(x: torch.Tensor, modes: tuple[int, ...]) -> bool:
    """Whether `fourier_layer` takes these states, (channels, b, *grid)."""
    return (
        x.is_cuda and x.ndim == 4 and x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        and x.shape[0] <= MOST_CHANNELS and x.shape[2] <= MOST_POINTS and max(modes, default=1) <= MOST_MODES
        and has_triton()
    )  # fmt: skip


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether the compiler of the kernels is installed; it comes with PyTorch for CUDA."""
    return importlib.util.find_spec("triton") is not None


def precision() -> str:
    """How products of float32 are made: "tf32" where torch allows it, otherwise with the accuracy of float32."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def fourier_layer(
    x: torch.Tensor, weight: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor, *, modes: tuple[int, ...],
    periods: tuple[float, ...], active: bool,
) -> torch.Tensor:  # fmt: skip
    """Return gelu(spectral(x) + skip · x + bias), without gelu where not active: (c, b, h, w) -> (o, b, h, w).

    weight (modes, c, 2, o) as in `DenseWeight`, skip (o, c), bias (o).
    """
    return _Layer.apply(autocast(x).contiguous(), weight, skip, bias, modes, periods, active)


def projection(
    x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return second · gelu(first · x + shift) + bias at every point: (c, ...) -> (o, ...)."""
    return _Projection.apply(autocast(x).contiguous(), first, shift, second, bias)


def autocast(x: torch.Tensor) -> torch.Tensor:
    """Return x in the type that torch.autocast asks for here."""
    return x.to(torch.get_autocast_dtype("cuda")) if torch.is_autocast_enabled("cuda") else x


def padded(n: int) -> int:
    """Return the side of a tile that holds n: a power of two that a tensor core takes."""
    return max(16, 1 << (n - 1).bit_length())


@dataclass(frozen=True)
class Plan:
    """The matrices of one grid, float32, the pair (real, imaginary) before the wave numbers."""

    grid: tuple[int, int]
    kept: tuple[int, int]
    forward: torch.Tensor
    """(w, r l)"""
    forward_transposed: torch.Tensor
    inverse: torch.Tensor
    """(r l, w)"""
    analysis: tuple[torch.Tensor, torch.Tensor]
    """Real and imaginary part, (k, h)."""
    synthesis: tuple[torch.Tensor, torch.Tensor]
    """Real and imaginary part, (h, k)."""

    @classmethod
    @lru_cache(maxsize=64)
    def of(
        cls, grid: tuple[int, int], modes: tuple[int, ...], periods: tuple[float, ...], device: torch.device
    ) -> Plan:
        """Return the plan of a grid."""
        (h, w), (first, last) = grid, modes
        with torch.inference_mode(False):
            rows = forward_matrix(w, last, periods[1], torch.float32, device)
            rows = rows.unflatten(1, (last, 2)).transpose(1, 2).flatten(1).contiguous()
            back = inverse_matrix(w, last, periods[1], torch.float32, device)
            back = back.unflatten(0, (last, 2)).transpose(0, 1).flatten(0, 1).contiguous()
            analysis = analysis_matrix(h, first, periods[0], torch.float32, device)[:, :h].unflatten(0, (2, -1))
            synthesis = synthesis_matrix(h, first, periods[0], torch.float32, device)[:, : 2 * first]
            return cls(
                grid=grid, kept=(2 * first, last), forward=rows, forward_transposed=rows.T.contiguous(), inverse=back,
                analysis=(analysis[0].contiguous(), analysis[1].contiguous()),
                synthesis=(synthesis[:h].contiguous(), synthesis[h:].contiguous()),
            )  # fmt: skip


class _Layer(torch.autograd.Function):
    """`fourier_layer` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, skip: torch.Tensor, bias: torch.Tensor,
        modes: tuple[int, ...], periods: tuple[float, ...], active: bool,
    ) -> torch.Tensor:  # fmt: skip
        plan = Plan.of((x.shape[2], x.shape[3]), modes, periods, x.device)
        spectrum = _to_spectrum(x, plan)
        z = _to_rows(_mix(spectrum, weight), plan, plan.synthesis, x.dtype)
        out = _blend(x, skip, z, plan.inverse, bias, active)
        ctx.save_for_backward(x, weight, skip, bias, spectrum, z)
        ctx.plan, ctx.active = plan, active
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, skip, bias, spectrum, z = ctx.saved_tensors
        plan = ctx.plan
        before, z_slope, skip_slope, bias_slope = _blend_backward(
            x, skip, z, plan.inverse, bias, slope.to(x.dtype).contiguous(), ctx.active
        )
        real, imaginary = plan.synthesis
        # The adjoint of a complex matrix is its conjugate transpose.
        spectrum_slope = _columns(
            z_slope, (real.T.contiguous(), -imaginary.T.contiguous()), _row_strides(z_slope),
            shape=(*plan.kept, 2, x.shape[1], skip.shape[0]),
        )  # fmt: skip
        mixed_slope, weight_slope = _mix_backward(spectrum, weight, spectrum_slope)
        if not ctx.needs_input_grad[0]:
            return None, weight_slope, skip_slope, bias_slope, None, None, None
        real, imaginary = plan.analysis
        rows_slope = _to_rows(mixed_slope, plan, (real.T.contiguous(), -imaginary.T.contiguous()), x.dtype)
        x_slope = _blend(before, skip.T.contiguous(), rows_slope, plan.forward_transposed, None, False)
        return x_slope, weight_slope, skip_slope, bias_slope, None, None, None


class _Projection(torch.autograd.Function):
    """`projection` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        from .fourier_kernels import project

        points = x[0].numel()
        hidden, outputs = first.shape[0], second.shape[0]
        out = x.new_empty(outputs, *x.shape[1:])
        block = 64
        project[(-(-points // block),)](
            x, first, shift, second, bias, out, points, x.shape[0], hidden, outputs, padded(x.shape[0]),
            padded(hidden), padded(outputs), block, precision(), num_warps=8,
        )  # fmt: skip
        ctx.save_for_backward(x, first, shift, second)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from .fourier_kernels import project_backward

        x, first, shift, second = ctx.saved_tensors
        points, block = x[0].numel(), 32
        programs = _programs(x.device, -(-points // block), 1)
        x_slope = torch.empty_like(x)
        parts = [x.new_empty(programs, *p.shape, dtype=torch.float32) for p in (first, shift, second)]
        project_backward[(programs,)](
            x, first, shift, second, slope.to(x.dtype).contiguous(), x_slope, *parts, points, x.shape[0],
            first.shape[0], second.shape[0], padded(x.shape[0]), padded(first.shape[0]), padded(second.shape[0]),
            block, precision(), num_warps=8,
        )  # fmt: skip
        return x_slope, *(part.sum(0) for part in parts), slope.flatten(1).sum(1, dtype=torch.float32)


def _row_strides(rows: torch.Tensor) -> tuple[int, int, int, int]:
    """Strides of (b, h, r, l, c) over h, l, r, b."""
    return rows.stride(1), rows.stride(3), rows.stride(2), rows.stride(0)


def _spectrum_strides(spectrum: torch.Tensor) -> tuple[int, int, int, int]:
    """Strides of (k, l, r, b, c) over k, l, r, b."""
    return spectrum.stride(0), spectrum.stride(1), spectrum.stride(2), spectrum.stride(3)


def _to_spectrum(x: torch.Tensor, plan: Plan) -> torch.Tensor:
    """(c, b, h, w) -> (k, l, r, b, c), float32."""
    from .fourier_kernels import analyse_rows

    channels, batch, (h, w), last = x.shape[0], x.shape[1], plan.grid, plan.kept[1]
    rows = x.new_empty(batch, h, 2, last, channels)
    analyse_rows[(batch * h,)](
        x, plan.forward, rows, batch * h, channels, w, 2 * last, padded(channels), padded(2 * last),
        min(64, padded(w)), precision(), num_warps=4,
    )  # fmt: skip
    return _columns(rows, plan.analysis, _row_strides(rows), shape=(*plan.kept, 2, batch, channels))


def _columns(
    rows: torch.Tensor, matrix: tuple[torch.Tensor, torch.Tensor], strides: tuple[int, ...], *, shape: tuple[int, ...]
) -> torch.Tensor:
    """Apply a complex matrix (k, h) to (b, h, r, l, c): the spectrum, of this shape."""
    out = rows.new_empty(shape, dtype=torch.float32)
    _contract(matrix, rows, strides, out, _spectrum_strides(out), batch=shape[3], waves=shape[1])
    return out


def _to_rows(
    spectrum: torch.Tensor, plan: Plan, matrix: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """Apply a complex matrix (h, k) to (k, l, r, b, c): the row spectra (b, h, r, l, c)."""
    _, last, _, batch, channels = spectrum.shape
    out = spectrum.new_empty(batch, plan.grid[0], 2, last, channels, dtype=dtype)
    _contract(matrix, spectrum, _spectrum_strides(spectrum), out, _row_strides(out), batch=batch, waves=last)
    return out


def _contract(
    matrix: tuple[torch.Tensor, torch.Tensor], source: torch.Tensor, source_strides: tuple[int, ...],
    out: torch.Tensor, out_strides: tuple[int, ...], *, batch: int, waves: int,
) -> None:  # fmt: skip
    """Run `contract_columns` for all (b, l)."""
    from .fourier_kernels import contract_columns

    m, n = matrix[0].shape
    channels = source.shape[-1]
    block = min(padded(channels), 16 if max(m, n) > 128 else 32)
    contract_columns[(batch * waves, -(-channels // block))](
        *matrix, source, out, channels, waves, n, m, *source_strides, *out_strides, padded(n), padded(m), block,
        precision(), num_warps=8 if max(m, n) > 128 else 4,
    )  # fmt: skip


def _mix(spectrum: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(k, l, r, b, c), (modes, c, r, o) -> (k, l, r, b, o)."""
    from .fourier_kernels import mix_modes

    k, last, _, batch, channels = spectrum.shape
    outputs = weight.shape[-1]
    out = spectrum.new_empty(k, last, 2, batch, outputs)
    block = min(64, padded(batch))
    mix_modes[(k * last, -(-batch // block))](
        spectrum, weight, out, batch, channels, outputs, block, padded(channels), padded(outputs), precision(),
        num_warps=4,
    )  # fmt: skip
    return out


def _mix_backward(
    spectrum: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `_mix` by the spectrum and the weight."""
    from .fourier_kernels import mix_modes_backward

    k, last, _, batch, channels = spectrum.shape
    outputs = weight.shape[-1]
    spectrum_slope, weight_slope = torch.empty_like(spectrum), torch.empty_like(weight)
    mix_modes_backward[(k * last,)](
        spectrum, weight, slope, spectrum_slope, weight_slope, batch, channels, outputs, min(32, padded(batch)),
        padded(channels), padded(outputs), precision(), num_warps=8,
    )  # fmt: skip
    return spectrum_slope, weight_slope


def _blend(
    x: torch.Tensor, matrix: torch.Tensor, z: torch.Tensor, transform: torch.Tensor, bias: torch.Tensor | None,
    active: bool,
) -> torch.Tensor:  # fmt: skip
    """Run `blend`: the next states."""
    from .fourier_kernels import blend

    channels, batch, h, w = x.shape
    outputs, waves, block = matrix.shape[0], transform.shape[0], min(64, padded(w))
    out = x.new_empty(outputs, batch, h, w)
    blend[(batch * h, -(-w // block))](
        x, matrix, z, transform, matrix if bias is None else bias, out, batch * h, channels, outputs, w, waves,
        padded(channels), padded(outputs), padded(waves), block, bias is not None, active, precision(), num_warps=4,
    )  # fmt: skip
    return out


def _blend_backward(
    x: torch.Tensor, matrix: torch.Tensor, z: torch.Tensor, transform: torch.Tensor, bias: torch.Tensor,
    slope: torch.Tensor, active: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Run `blend_backward`: gradients before the nonlinearity, of z, of matrix and bias."""
    from .fourier_kernels import blend_backward

    channels, batch, h, w = x.shape
    outputs, waves, rows = matrix.shape[0], transform.shape[0], batch * h
    programs = _programs(x.device, rows, 2)
    before = torch.empty_like(slope) if active else slope
    z_slope = torch.empty_like(z)
    matrix_parts = x.new_empty(programs, outputs, channels, dtype=torch.float32)
    bias_parts = x.new_empty(programs, outputs, dtype=torch.float32)
    blend_backward[(programs,)](
        x, matrix, z, transform, bias, slope, before, z_slope, matrix_parts, bias_parts, rows, channels, outputs, w,
        waves, padded(channels), padded(outputs), padded(waves), min(64, padded(w)), active, precision(), num_warps=8,
    )  # fmt: skip
    return before, z_slope, matrix_parts.sum(0), bias_parts.sum(0)


def _programs(device: torch.device, most: int, each: int) -> int:
    """How many programs share a sum: so many for each processor, at most one for each piece of work."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
    return min(most, each * processors)
