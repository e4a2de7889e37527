"""Fourier layers and the last pointwise network fused for an NVIDIA GPU: states cross memory as seldom as can be.

The mathematics is that of `SpectralConv`, `Pointwise` and gelu, which stay the reference and the form on every other
device. A layer reads and writes its states once forward; backward it reads the states and the gradient once and writes
the gradient once: both transforms of the last axis, skip, sum, bias and gelu are one pass over the rows, and what
entered the gelu is computed again instead of stored. The hidden channels of the projection never leave the processor.
Planar grids and float32 states; everything else takes the other form.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from .spectral import analysis_matrix, forward_matrix, inverse_matrix, synthesis_matrix

MOST_CHANNELS, MOST_MODES = 64, 32
"""Larger tiles would not fit the fast memory of one processor: channels, modes of an axis."""
MOST_OUTPUTS = 16


def usable(x: torch.Tensor, modes: tuple[int, ...]) -> bool:
    """Whether `fourier_layers` takes these states, (channels, b, *grid).

    Not 16-bit states: Triton 3.6 makes code of `blend` for them that reads beyond its shared memory (H100, H200).
    Nor those of `vmap`, whose hidden axis the kernels do not know.
    """
    return (
        x.is_cuda and x.ndim == 4 and x.dtype == torch.float32 and not torch.is_autocast_enabled("cuda")
        and x.shape[0] <= MOST_CHANNELS and max(modes, default=1) <= MOST_MODES and has_triton()
        and not torch._C._functorch.is_batchedtensor(x)
    )  # fmt: skip


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether the compiler of the kernels is installed; it comes with PyTorch for CUDA."""
    return importlib.util.find_spec("triton") is not None


def precision() -> str:
    """How products of float32 are made: "tf32" where torch allows it, otherwise with the accuracy of float32."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def fourier_layers(
    x: torch.Tensor, layers: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], *, modes: tuple[int, ...],
    periods: tuple[float, ...], active: bool,
) -> torch.Tensor:  # fmt: skip
    """Return x after layers x <- gelu(spectral(x) + skip · x + bias), (c, b, h, w) -> (o, b, h, w).

    Each layer is its weight (modes, c, 2, o), as in `DenseWeight`, skip (o, c) and bias (o). The last one is without
    gelu where not active.
    """
    parameters = [part for layer in layers for part in layer]
    return _Layers.apply(x.contiguous(), modes, periods, active, *parameters)


def projection(
    x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return second · gelu(first · x + shift) + bias at every point: (c, ...) -> (o, ...)."""
    return _Projection.apply(x.contiguous(), first, shift, second, bias)


def padded(n: int) -> int:
    """Return the side of a tile that holds n: a power of two that a tensor core takes."""
    return max(16, 1 << (n - 1).bit_length())


Complex = tuple[torch.Tensor, torch.Tensor]
"""Real and imaginary part of a matrix."""


@dataclass(frozen=True)
class Plan:
    """The matrices of one grid, float32, with the pair (real, imaginary) before the wave numbers."""

    grid: tuple[int, int]
    kept: tuple[int, int]
    forward: torch.Tensor
    """(w, r l)"""
    forward_transposed: torch.Tensor
    inverse: torch.Tensor
    """(r l, w)"""
    analysis: Complex
    """(k, h)"""
    analysis_adjoint: Complex
    synthesis: Complex
    """(h, k)"""
    synthesis_adjoint: Complex

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
            real, imaginary = analysis_matrix(h, first, periods[0], torch.float32, device)[:, :h].chunk(2)
            analysis = (real.contiguous(), imaginary.contiguous())
            real, imaginary = synthesis_matrix(h, first, periods[0], torch.float32, device)[:, : 2 * first].chunk(2)
            synthesis = (real.contiguous(), imaginary.contiguous())
            return cls(
                grid=grid, kept=(2 * first, last), forward=rows, forward_transposed=rows.T.contiguous(), inverse=back,
                analysis=analysis, analysis_adjoint=_adjoint(analysis), synthesis=synthesis,
                synthesis_adjoint=_adjoint(synthesis),
            )  # fmt: skip


def _adjoint(matrix: Complex) -> Complex:
    """Return the conjugate transpose."""
    return matrix[0].T.contiguous(), -matrix[1].T.contiguous()


class _Layers(torch.autograd.Function):
    """`fourier_layers` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, modes: tuple[int, ...], periods: tuple[float, ...], active: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        plan = Plan.of((x.shape[2], x.shape[3]), modes, periods, x.device)
        layers = [parameters[i : i + 3] for i in range(0, len(parameters), 3)]
        kept = []
        rows = _analyse(x, plan)
        for number, (weight, skip, bias) in enumerate(layers, start=1):
            spectrum = _columns(rows, plan.analysis, (*plan.kept, 2, x.shape[1], x.shape[0]))
            z = _to_rows(_mix(spectrum, weight), plan, plan.synthesis, x.dtype)
            last = number == len(layers)
            kept += [x, spectrum, z]
            following = None if last else plan
            x, rows = _blend(x, skip, z, plan.inverse, bias, active=active or not last, following=following)
        ctx.save_for_backward(*parameters, *kept)
        ctx.plan, ctx.active = plan, active
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, plan = ctx.saved_tensors, ctx.plan
        parameters, kept = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        slopes: list[torch.Tensor] = []
        active, following = ctx.active, None
        slope = slope.to(kept[0].dtype).contiguous()
        for i in reversed(range(0, len(parameters), 3)):
            (weight, skip, bias), (x, spectrum, z) = parameters[i : i + 3], kept[i : i + 3]
            slope, z_slope, skip_slope = _blend_backward(
                x, skip, z, plan.inverse, bias, slope, active=active, following=following
            )
            # The wave number 0 of the inverse transform is one at every point, so this is a sum over the row.
            bias_slope = z_slope[:, :, 0, 0].sum((0, 1), dtype=torch.float32)
            spectrum_slope = _columns(z_slope, plan.synthesis_adjoint, (*plan.kept, 2, x.shape[1], skip.shape[0]))
            mixed_slope, weight_slope = _mix_backward(spectrum, weight, spectrum_slope)
            slopes[:0] = weight_slope, skip_slope, bias_slope
            active, following = True, (skip, _to_rows(mixed_slope, plan, plan.analysis_adjoint, x.dtype), plan)
        skip, rows, _ = following
        x_slope = None
        if ctx.needs_input_grad[0]:
            x_slope, _ = _blend(slope, skip.T, rows, plan.forward_transposed, None, active=False, following=None)
        return x_slope, None, None, None, *slopes


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
        programs = _programs(x.device, -(-points // block), 2)
        x_slope = torch.empty_like(x)
        parts = [x.new_empty(programs, *p.shape, dtype=torch.float32) for p in (first, shift, second)]
        project_backward[(programs,)](
            x, first, shift, second, slope.to(x.dtype).contiguous(), x_slope, *parts, points, x.shape[0],
            first.shape[0], second.shape[0], padded(x.shape[0]), padded(first.shape[0]), padded(second.shape[0]),
            block, precision(), num_warps=4,
        )  # fmt: skip
        return x_slope, *(part.sum(0) for part in parts), slope.flatten(1).sum(1, dtype=torch.float32)


def _row_strides(rows: torch.Tensor) -> tuple[int, int, int, int]:
    """Strides of (b, h, r, l, c) over h, l, r, b."""
    return rows.stride(1), rows.stride(3), rows.stride(2), rows.stride(0)


def _spectrum_strides(spectrum: torch.Tensor) -> tuple[int, int, int, int]:
    """Strides of (k, l, r, b, c) over k, l, r, b."""
    return spectrum.stride(0), spectrum.stride(1), spectrum.stride(2), spectrum.stride(3)


def _analyse(x: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Run `analyse_rows`: (c, b, h, w) -> (b, h, r, l, c)."""
    from .fourier_kernels import analyse_rows

    channels, batch, (h, w), last = x.shape[0], x.shape[1], plan.grid, plan.kept[1]
    rows = x.new_empty(batch, h, 2, last, channels)
    analyse_rows[(batch * h,)](
        x, plan.forward, rows, batch * h, channels, w, 2 * last, padded(channels), padded(2 * last),
        min(64, padded(w)), precision(), num_warps=4,
    )  # fmt: skip
    return rows


def _columns(rows: torch.Tensor, matrix: Complex, shape: tuple[int, ...]) -> torch.Tensor:
    """Apply a complex matrix (k, h) to (b, h, r, l, c): the spectrum, of this shape, float32."""
    out = rows.new_empty(shape, dtype=torch.float32)
    _contract(matrix, rows, _row_strides(rows), out, _spectrum_strides(out), batch=shape[3], waves=shape[1])
    return out


def _to_rows(spectrum: torch.Tensor, plan: Plan, matrix: Complex, dtype: torch.dtype) -> torch.Tensor:
    """Apply a complex matrix (h, k) to (k, l, r, b, c): the row spectra (b, h, r, l, c)."""
    _, last, _, batch, channels = spectrum.shape
    out = spectrum.new_empty(batch, plan.grid[0], 2, last, channels, dtype=dtype)
    _contract(matrix, spectrum, _spectrum_strides(spectrum), out, _row_strides(out), batch=batch, waves=last)
    return out


def _contract(
    matrix: Complex, source: torch.Tensor, source_strides: tuple[int, ...], out: torch.Tensor,
    out_strides: tuple[int, ...], *, batch: int, waves: int,
) -> None:  # fmt: skip
    """Run `contract_columns` for all (b, l)."""
    from .fourier_kernels import contract_columns

    m, n = matrix[0].shape
    channels, block = source.shape[-1], min(64, padded(m))
    exact = precision() == "tf32x3"
    columns = min(padded(channels), 32 if exact else 64)
    contract_columns[(batch * waves, -(-m // block), -(-channels // columns))](
        *matrix, source, out, channels, waves, n, m, *source_strides, *out_strides, min(64, padded(n)), block, columns,
        precision(), num_warps=4 if exact else 2,
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
        spectrum, weight, slope, spectrum_slope, weight_slope, batch, channels, outputs, 16, padded(channels),
        padded(outputs), precision(), num_warps=4,
    )  # fmt: skip
    return spectrum_slope, weight_slope


def _blend(
    x: torch.Tensor, matrix: torch.Tensor, z: torch.Tensor, transform: torch.Tensor, bias: torch.Tensor | None, *,
    active: bool, following: Plan | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Run `blend`: the next states, and their row spectra where a layer of that plan follows."""
    from .fourier_kernels import blend

    channels, batch, h, w = x.shape
    outputs, waves = matrix.shape[0], transform.shape[0]
    out = x.new_empty(outputs, batch, h, w)
    # One stage: loads that run ahead gained nothing on an H100.
    spectra = None if following is None else torch.empty_like(z)
    blend[(batch * h,)](
        x, matrix, matrix.stride(0), matrix.stride(1), z, transform, matrix if bias is None else bias, out,
        transform if following is None else following.forward, z if spectra is None else spectra, batch * h, channels,
        outputs, w, waves, padded(channels), padded(outputs), padded(waves), min(64, padded(w)), bias is not None,
        active, spectra is not None, precision(), num_warps=4, num_stages=1,
    )  # fmt: skip
    return out, spectra


def _blend_backward(
    x: torch.Tensor, matrix: torch.Tensor, z: torch.Tensor, transform: torch.Tensor, bias: torch.Tensor,
    slope: torch.Tensor, *, active: bool, following: tuple[torch.Tensor, torch.Tensor, Plan] | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Run `blend_backward`: gradients before the nonlinearity, of z and of the matrix.

    Where a layer follows, `slope` is that before its nonlinearity, and `following` its matrix, gradient of the row
    spectra of its states, and plan.
    """
    from .fourier_kernels import blend_backward

    channels, batch, h, w = x.shape
    outputs, waves, rows = matrix.shape[0], transform.shape[0], batch * h
    programs = _programs(x.device, rows, 2)
    before = torch.empty_like(slope) if following is None else x.new_empty(outputs, batch, h, w)
    before = before if active or following is not None else slope
    z_slope = torch.empty_like(z)
    parts = x.new_empty(programs, outputs, channels, dtype=torch.float32)
    next_matrix, next_z, back = (matrix, z, transform) if following is None else (
        following[0], following[1], following[2].forward_transposed)  # fmt: skip
    following_outputs = next_matrix.shape[0]
    blend_backward[(programs,)](
        x, matrix, z, transform, bias, slope, next_matrix, next_z, back, before, z_slope, parts, rows, channels,
        outputs, following_outputs, w, waves, padded(channels), padded(outputs), padded(following_outputs),
        padded(waves), min(32, padded(w)), active, following is not None, precision(), num_warps=4, num_stages=1,
    )  # fmt: skip
    return before, z_slope, parts.sum(0)


def _programs(device: torch.device, most: int, each: int) -> int:
    """How many programs share a sum: so many for each processor, at most one for each piece of work."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
    return min(most, each * processors)
