"""Fourier layers and the last pointwise network fused for an NVIDIA GPU: states cross memory as seldom as can be.

The mathematics is that of `SpectralConv`, `Pointwise` and gelu, which stay the reference and the form on every other
device. A layer reads and writes its states once forward; backward it reads the states and the gradient once and writes
the gradient once: both transforms of the last axis, skip, sum, bias and gelu are one pass over the rows, and what
entered the gelu is computed again instead of stored. The hidden channels of the projection never leave the processor.
Planar grids, states of float32 or bfloat16; everything else takes the other form.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from .fourier_plan import Complex, Plan
from .spectral import after_map

MOST_CHANNELS, MOST_MODES = 64, 32
"""Larger tiles would not fit the fast memory of one processor: channels, modes of an axis."""
MOST_OUTPUTS, FEW_CHANNELS = 16, 32


def usable(x: torch.Tensor, modes: tuple[int, ...]) -> bool:
    """Whether `fourier_layers` takes these states, (channels, b, *grid), or what autocast makes of them.

    Not within transforms of `torch.func`, whose tensors the kernels do not know, nor in what PyTorch's compiler traces.
    """
    return (
        x.is_cuda and not torch.compiler.is_compiling() and x.ndim == 4
        and _kind(x) in (torch.float32, torch.bfloat16) and x.shape[0] <= MOST_CHANNELS
        and max(modes, default=1) <= MOST_MODES and x[0].numel() * MOST_CHANNELS < 2**31 and has_triton()
        and not torch._C._are_functorch_transforms_active()
    )  # fmt: skip


def _kind(x: torch.Tensor) -> torch.dtype:
    """Return what the states are kept in: autocast, where it is on, decides."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype


def _planes(x: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """Return (c, b, h, w) of that type with contiguous planes (h, w), which is all that the kernels ask."""
    x = x.to(kind)
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


@lru_cache(maxsize=1)
def has_triton() -> bool:
    """Whether the compiler of the kernels is installed; it comes with PyTorch for CUDA."""
    return importlib.util.find_spec("triton") is not None


def precision(kind: torch.dtype) -> str:
    """How products of float32 are made: "tf32" where torch allows it, otherwise with the accuracy of float32."""
    return "tf32" if kind == torch.bfloat16 or rounds_to_tf32(torch.backends.cuda.matmul) else "tf32x3"


def rounds_to_tf32(switches: object) -> bool:
    """Whether PyTorch rounds float32 to TF32; switches : `torch.backends.cuda.matmul`, or `cudnn` for convolutions.

    The older switch cannot be read once a newer one says something else: then that one counts.
    """
    try:
        return switches.allow_tf32
    except RuntimeError:
        return getattr(switches, "conv", switches).fp32_precision == "tf32"


def fourier_layers(
    x: torch.Tensor, layers: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], *, modes: tuple[int, ...],
    periods: tuple[float, ...], active: bool,
) -> torch.Tensor:  # fmt: skip
    """Return x after layers x <- gelu(spectral(x) + skip · x + bias), (c, b, h, w) -> (o, b, h, w).

    Each layer is its float32 weight (modes, c, 2, o), as in `DenseWeight`, skip (o, c) and bias (o). The last one is
    without gelu where not active. All states lie in memory as those of x do, batch or channels first.
    """
    parameters = [part.contiguous() for layer in layers for part in layer]
    with torch.cuda.device_of(x):  # Triton starts its kernels on the current device
        return _Layers.apply(_planes(x, _kind(x)), modes, periods, active, torch.is_grad_enabled(), *parameters)


def lifted_layers(
    x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor,
    layers: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], *, modes: tuple[int, ...],
    periods: tuple[float, ...], active: bool,
) -> torch.Tensor:  # fmt: skip
    """Return `fourier_layers` of matrix · x + shift, (i, b, h, w) -> (o, b, h, w), without making these states."""
    (weight, skip, bias), *others = layers
    with torch.autocast("cuda", enabled=False):
        x, weight, skip = after_map(x, matrix, shift, weight, skip)
    return fourier_layers(x, [(weight, skip, bias), *others], modes=modes, periods=periods, active=active)


def projection(
    x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return second · gelu(first · x + shift) + bias at every point: (c, b, h, w) -> (o, b, h, w)."""
    with torch.cuda.device_of(x):
        return _Projection.apply(_planes(x, _kind(x)), first, shift, second, bias)


def padded(n: int) -> int:
    """Return the side of a tile that holds n: a power of two that a tensor core takes."""
    return max(16, 1 << (n - 1).bit_length())


class _Layers(torch.autograd.Function):
    """`fourier_layers` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, modes: tuple[int, ...], periods: tuple[float, ...], active: bool, graded: bool,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        plan = Plan.of((x.shape[2], x.shape[3]), modes, periods, x.device)
        layers = [parameters[i : i + 3] for i in range(0, len(parameters), 3)]
        kept = []
        rows = _analyse(x, plan)
        for number, (weight, skip, bias) in enumerate(layers, start=1):
            spectrum = _columns(rows, plan.analysis, (*plan.kept, 2, x.shape[1], x.shape[0]))
            mixed = _mix(spectrum, weight)
            z = _to_rows(mixed, plan, plan.synthesis)
            last = number == len(layers)
            gelu = active or not last
            # Without a gelu nothing of what entered it is read: then the shape of z is all that is needed.
            if graded:
                kept += [x, spectrum, z if gelu else mixed]
            x, rows = _blend(x, skip, z, plan.inverse, bias, active=gelu, following=None if last else plan)
        ctx.save_for_backward(*parameters, *kept)
        ctx.plan, ctx.active = plan, active
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved, plan = ctx.saved_tensors, ctx.plan
        parameters, kept = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        spectral: list[torch.Tensor] = []
        active, following = ctx.active, None
        slope = _planes(slope, kept[0].dtype)
        programs = _programs(slope.device, slope.shape[1] * slope.shape[2], 4 if _narrow(parameters) else 2)
        sums = slope.new_empty(len(parameters) // 3, programs, _most_sums(parameters), dtype=torch.float32)
        for i in reversed(range(0, len(parameters), 3)):
            (weight, skip, bias), (x, spectrum, z) = parameters[i : i + 3], kept[i : i + 3]
            if not active:
                z = _row_spectra(z, plan)
            goes_back = bool(i or ctx.needs_input_grad[0])
            slope, z_slope = _blend_backward(
                x, skip, z, plan.inverse, bias, slope, sums[i // 3], active=active, following=following,
                goes_back=goes_back,
            )  # fmt: skip
            spectrum_slope = _columns(z_slope, plan.synthesis_adjoint, (*plan.kept, 2, x.shape[1], skip.shape[0]))
            mixed_slope, weight_slope = _mix_backward(spectrum, weight, spectrum_slope, goes_back=goes_back)
            spectral.insert(0, weight_slope)
            if goes_back:
                active, following = True, (skip, _to_rows(mixed_slope, plan, plan.analysis_adjoint), plan)
        slopes: list[torch.Tensor] = []
        for weight_slope, skip, total in zip(spectral, parameters[1::3], _total(sums), strict=True):
            size = skip.numel()
            slopes += weight_slope, total[:size].reshape(skip.shape), total[size : size + len(skip)]
        x_slope = None
        if ctx.needs_input_grad[0]:
            skip, rows, _ = following
            x_slope, _ = _blend(slope, skip.T, rows, plan.forward, None, active=False, following=None)
        return x_slope, None, None, None, None, *slopes


def _total(sums: torch.Tensor) -> torch.Tensor:
    """Return the sum over programs, (.., programs, n) -> (.., n).

    In two steps where it can be: the first has eight times the results, which keeps a GPU busy.
    """
    programs = sums.shape[-2]
    return sums.sum(-2) if programs % 8 else sums.unflatten(-2, (8, -1)).sum(-2).sum(-2)


def _narrow(parameters: Sequence[torch.Tensor]) -> bool:
    """Whether all layers have so few channels that a tile of theirs keeps two warps busy, not four."""
    return max(max(skip.shape) for skip in parameters[1::3]) <= FEW_CHANNELS


def _most_sums(parameters: Sequence[torch.Tensor]) -> int:
    """Return the size of the largest matrix and bias of a layer."""
    return max(skip.numel() + len(skip) for skip in parameters[1::3])


class _Projection(torch.autograd.Function):
    """`projection` and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, first: torch.Tensor, shift: torch.Tensor, second: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        from .fourier_kernels import project

        points = x[0].numel()
        hidden, outputs = first.shape[0], second.shape[0]
        out = x.new_empty(x.shape[1], outputs, *x.shape[2:])
        block = 128 if x.dtype == torch.bfloat16 else 64
        project[(-(-points // block),)](
            x, x.stride(0), x.stride(1), first, shift, second, bias, out, points, x[0, 0].numel(), x.shape[0], hidden,
            outputs, padded(x.shape[0]), padded(hidden), padded(outputs), block, precision(x.dtype),
            num_warps=block // 16,
        )  # fmt: skip
        ctx.save_for_backward(x, first, shift, second, bias)
        return out.transpose(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, ...]:
        from .fourier_kernels import project_backward

        x, *parameters = ctx.saved_tensors
        first, shift, second, _ = parameters
        points, kind = x[0].numel(), precision(x.dtype)
        # TF32 fills a processor with one program, whose loads do not run ahead: its tiles take all of its memory.
        block, warps, stages, each = {"tf32x3": (32, 4, 3, 2), "tf32": (64, 8, 1, 1)}[kind]
        if x.dtype == torch.bfloat16:
            stages = 3
        programs = _programs(x.device, -(-points // block), each)
        slope, x_slope = _planes(slope, slope.dtype), torch.empty_like(x)
        sizes = [part.numel() for part in parameters]
        sums = x.new_empty(programs, sum(sizes), dtype=torch.float32)
        project_backward[(programs,)](
            x, x.stride(0), x.stride(1), first, shift, second, slope, slope.stride(0), slope.stride(1), x_slope, sums,
            points, x[0, 0].numel(), x.shape[0], first.shape[0], second.shape[0], padded(x.shape[0]),
            padded(first.shape[0]), padded(second.shape[0]), block, kind, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        totals = _total(sums).split(sizes)
        return x_slope, *(total.reshape(part.shape) for total, part in zip(totals, parameters, strict=True))


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
        x, x.stride(0), x.stride(1), plan.forward, rows, h, channels, w, 2 * last, padded(channels), padded(2 * last),
        min(64, padded(w)), precision(x.dtype), num_warps=2,
    )  # fmt: skip
    return rows


def _columns(rows: torch.Tensor, matrix: Complex, shape: tuple[int, ...]) -> torch.Tensor:
    """Apply a complex matrix (k, h) to (b, h, r, l, c): the spectrum, of this shape."""
    out = rows.new_empty(shape)
    _contract(matrix, rows, _row_strides(rows), out, _spectrum_strides(out), batch=shape[3], waves=shape[1])
    return out


def _to_rows(spectrum: torch.Tensor, plan: Plan, matrix: Complex) -> torch.Tensor:
    """Apply a complex matrix (h, k) to (k, l, r, b, c): the row spectra (b, h, r, l, c)."""
    out = _row_spectra(spectrum, plan)
    _contract(matrix, spectrum, _spectrum_strides(spectrum), out, _row_strides(out), batch=spectrum.shape[3],
              waves=spectrum.shape[1])  # fmt: skip
    return out


def _row_spectra(spectrum: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Return memory for the row spectra of a spectrum (k, l, r, b, c)."""
    _, last, _, batch, channels = spectrum.shape
    return spectrum.new_empty(batch, plan.grid[0], 2, last, channels)


def _contract(
    matrix: Complex, source: torch.Tensor, source_strides: tuple[int, ...], out: torch.Tensor,
    out_strides: tuple[int, ...], *, batch: int, waves: int,
) -> None:  # fmt: skip
    """Run `contract_columns` for all (b, l)."""
    from .fourier_kernels import contract_columns

    m, n = matrix[0].shape
    channels, block = source.shape[-1], min(64, padded(m))
    kind = precision(source.dtype)
    # Where little is summed for much that is written, and where a product is three, smaller tiles on more warps; three
    # products of many channels take large tiles on many.
    small = kind == "tf32x3" or (source.dtype == torch.float32 and n <= 32)
    wide = kind == "tf32x3" and channels > FEW_CHANNELS
    columns = min(padded(channels), 32 if small and not wide else 64)
    contract_columns[(batch * waves, -(-m // block), -(-channels // columns))](
        *matrix, source, out, channels, waves, n, m, *source_strides, *out_strides, min(64, padded(n)), block, columns,
        kind, num_warps=8 if wide else 4 if small else 2,
    )  # fmt: skip


def _mix(spectrum: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(k, l, r, b, c), (modes, c, r, o) -> (k, l, r, b, o)."""
    from .fourier_kernels import mix_modes

    k, last, _, batch, channels = spectrum.shape
    outputs = weight.shape[-1]
    out = spectrum.new_empty(k, last, 2, batch, outputs)
    block = min(padded(outputs), padded(batch))
    mix_modes[(k * last, -(-batch // block))](
        spectrum, weight, out, batch, channels, outputs, block, padded(channels), padded(outputs),
        precision(spectrum.dtype), num_warps=4,
    )  # fmt: skip
    return out


def _mix_backward(
    spectrum: torch.Tensor, weight: torch.Tensor, slope: torch.Tensor, *, goes_back: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `_mix` by the spectrum, without values where nothing goes back to it, and by the weight."""
    from .fourier_kernels import mix_modes_backward

    k, last, _, batch, channels = spectrum.shape
    outputs = weight.shape[-1]
    spectrum_slope, weight_slope = torch.empty_like(spectrum), torch.empty_like(weight)
    mix_modes_backward[(k * last,)](
        spectrum, weight, slope, spectrum_slope, weight_slope, batch, channels, outputs, 16, padded(channels),
        padded(outputs), goes_back, precision(spectrum.dtype), num_warps=4,
        num_stages=3 if spectrum.dtype == torch.bfloat16 else 1,
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
    out = _states(x, outputs)
    spectra = None if following is None else torch.empty_like(z)
    blend[(batch * h,)](
        x, x.stride(0), x.stride(1), matrix, matrix.stride(0), matrix.stride(1), z, transform,
        matrix if bias is None else bias, out, out.stride(0), out.stride(1),
        transform if following is None else following.forward, z if spectra is None else spectra, h, channels,
        outputs, w, waves, padded(channels), padded(outputs), padded(waves), _width(x, 64), bias is not None, active,
        spectra is not None, precision(x.dtype), num_warps=2 if max(channels, outputs) <= FEW_CHANNELS else 4,
        # Loads that run ahead pay for 16 bits only, where a row is more than one tile.
        num_stages=2 if x.dtype == torch.bfloat16 and w > 64 else 1,
    )  # fmt: skip
    return out, spectra


def _states(like: torch.Tensor, channels: int) -> torch.Tensor:
    """Return new states, (c, b, h, w), that lie in memory as those do, batch or channels first."""
    _, batch, h, w = like.shape
    if like.stride(0) > like.stride(1):
        return like.new_empty(channels, batch, h, w)
    return like.new_empty(batch, channels, h, w).transpose(0, 1)


def _width(x: torch.Tensor, most: int) -> int:
    """Return how many points of a row are worked on at a time; 16 bits need 64, see `fourier_kernels`."""
    return 64 if x.dtype == torch.bfloat16 else min(most, padded(x.shape[3]))


def _blend_backward(  # noqa: PLR0913
    x: torch.Tensor, matrix: torch.Tensor, z: torch.Tensor, transform: torch.Tensor, bias: torch.Tensor,
    slope: torch.Tensor, sums: torch.Tensor, *, active: bool, following: tuple[torch.Tensor, torch.Tensor, Plan] | None,
    goes_back: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Run `blend_backward`: gradients before the nonlinearity, and of z; those of matrix and bias go into `sums`.

    Where nothing goes back to the states, the first of these is not made.

    Where a layer follows, `slope` is that before its nonlinearity, and `following` its matrix, gradient of the row
    spectra of its states, and plan.
    """
    from .fourier_kernels import blend_backward

    channels, batch, h, w = x.shape
    outputs, waves = matrix.shape[0], transform.shape[0]
    keeps = goes_back and (active or following is not None)
    before = _states(slope, outputs) if keeps else slope
    z_slope = torch.empty_like(z)
    next_matrix, next_z, back = (matrix, z, transform) if following is None else (
        following[0], following[1], following[2].forward)  # fmt: skip
    following_outputs = next_matrix.shape[0]
    blend_backward[(len(sums),)](
        x, x.stride(0), x.stride(1), matrix, z, transform, bias, slope, slope.stride(0), slope.stride(1), next_matrix,
        next_z, back, before, before.stride(0), before.stride(1), z_slope, sums, sums.stride(0), batch * h, h,
        channels, outputs, following_outputs, w, waves, padded(channels), padded(outputs), padded(following_outputs),
        padded(waves), _width(x, 32), active, following is not None, keeps, precision(x.dtype),
        num_warps=2 if max(channels, outputs, following_outputs) <= FEW_CHANNELS else 4,
        num_stages=2 if x.dtype == torch.bfloat16 else 1,
    )  # fmt: skip
    return before, z_slope


def _programs(device: torch.device, most: int, each: int) -> int:
    """How many programs share a sum: so many for each processor, at most one for each piece of work."""
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
    return min(most, each * processors)
