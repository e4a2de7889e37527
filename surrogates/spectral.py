"""The spectral layer of Fourier neural operators as real matrix products, in 1 to 3 dimensions.

A truncated discrete Fourier transform is a product with a thin matrix of cosines and sines. Written so, it
needs no complex numbers, takes any grid size, costs less than an FFT that is mostly thrown away, and has
no ambiguity: an inverse real FFT of a spectrum whose zero column is not Hermitian, which every such layer produces,
is implementation-defined. Here the sines of the wave numbers 0 and n/2 are zero by construction, which equals an
inverse transform that ignores the imaginary parts there.

Channels come before the batch here: then pointwise layers, and every step below, are single matrix products.

Letters: c channels, b batch, n points along an axis, k kept wave numbers along an axis, r the pair (real, imaginary).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, wraps
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes


class SpectralConv(torch.nn.Module):
    """Multiplies the low Fourier modes of all channels by learned complex matrices (Li et al. 2021, eq. 4).

    The last axis keeps the wave numbers 0 .. m-1, each other axis -m .. m-1, with m its number of modes.

    Parameters
    ----------
    inputs, outputs : channels.
    modes : m of each axis; 2 m <= points, on the last axis m <= points // 2 + 1.
    periods : length of the transform's period over that of the grid, per axis. 1 on periodic axes; more than 1
        continues the state by zeros, so that the two ends of an axis with walls do not touch.
    rank : weights as a sum of this many products of one factor per axis and per channel (canonical polyadic form,
        Kossaifi et al. 2023): rank·(inputs + outputs + 2·kept modes summed over the axes) numbers. None: all weights.
    generator : draws the weights; by default torch's own.
    """

    def __init__(
        self, inputs: int, outputs: int, *, modes: Sequence[int], periods: Sequence[float],
        rank: int | None = None, generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.modes = tuple(modes)
        self.periods = tuple(float(period) for period in periods)
        self.kept = (*(2 * m for m in self.modes[:-1]), self.modes[-1])
        self.weight: torch.nn.Module
        form = DenseWeight if rank is None else partial(FactorisedWeight, rank=rank)
        self.weight = form(self.kept, inputs, outputs, generator=generator)

    def forward(self, x: torch.Tensor, matrices: torch.Tensor | None = None) -> torch.Tensor:
        """Return the filtered channels: (inputs, b, *grid) -> (outputs, b, *grid).

        matrices : for each mode, in place of its own weights, as those of `DenseWeight`.
        """
        grid = tuple(x.shape[2:])
        check_modes(self.modes, grid)
        last = (grid[-1], self.modes[-1], self.periods[-1])
        forward = forward_matrix(*last, x.dtype, x.device)
        if len(grid) == 1:
            mixed = self._mixed((x @ forward).unflatten(-1, (self.modes[-1], 2)), matrices)
            return mixed.flatten(-2) @ inverse_matrix(*last, mixed.dtype, mixed.device)
        rows = self.between_rows(row_spectra(x, forward), matrices)
        planes, inverse = rows.flatten(0, -3), inverse_matrix(*last, rows.dtype, rows.device)
        y = torch.bmm(planes.mT, inverse.expand(planes.shape[0], -1, -1))
        return y.reshape(*rows.shape[:2], *grid)

    def between_rows(
        self, rows: torch.Tensor, matrices: torch.Tensor | None, *, batch_first: bool = False
    ) -> torch.Tensor:
        """Return the row spectra of the filtered channels: (inputs, b, .., k r, n) -> (outputs, b, .., k r, n).

        In two dimensions or more; n is the last axis but one of the grid, and the spectra are those of the last one.
        With batch_first the batch comes before the channels, here and there.
        """
        grid = (*rows.shape[2:-2], rows.shape[-1])
        spectrum = self._analyse(rows)
        if batch_first:
            return self._synthesise(self._mixed(spectrum.transpose(0, 1), matrices).transpose(0, 1), grid)
        return self._synthesise(self._mixed(spectrum, matrices), grid)

    def _mixed(self, spectrum: torch.Tensor, matrices: torch.Tensor | None) -> torch.Tensor:
        """Multiply each mode's channels by the matrix of its own, or by that in its place."""
        return self.weight(spectrum) if matrices is None else _mix(spectrum, matrices)

    def _analyse(self, rows: torch.Tensor) -> torch.Tensor:
        """Truncated forward transform of all axes but the last: (c, b, .., k r, n) -> (c, b, k, .., k, r)."""
        y = rows.unflatten(-2, (self.modes[-1], 2))  # (c, b, .., k, r, n)
        for axis in reversed(range(2, y.ndim - 2)):
            sizes = (y.shape[-1], self.modes[axis - 2], self.periods[axis - 2])
            y = _along(y, analysis_matrix(*sizes, y.dtype, y.device))
            if axis > 2:
                y = y.mT.movedim(axis - 1, -1)  # the next axis in the last place: (.., k, r, n)
        last = y.ndim - 1
        return y.permute(0, 1, last, *range(last - 2, 1, -1), last - 1)

    def _synthesise(self, spectrum: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """Inverse transform onto all axes but the last: (c, b, k, .., k, r) -> (c, b, .., k r, n)."""
        pair = spectrum.ndim - 1
        y = spectrum.permute(0, 1, *range(pair - 1, 2, -1), pair, 2)  # (c, b, k, .., r, k)
        for axis, points in enumerate(grid, start=2):
            sizes = (points, self.modes[axis - 2], self.periods[axis - 2])
            y = _along(y, synthesis_matrix(*sizes, y.dtype, y.device))
            if axis <= len(grid):
                y = y.movedim(-1, axis).mT  # the next axis in the last place: (.., n, .., r, k)
        return y.flatten(-3, -2)


class DenseWeight(torch.nn.Module):
    """One complex matrix for each mode."""

    def __init__(
        self, kept: Sequence[int], inputs: int, outputs: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.kept = tuple(kept)
        # Mode-major, so that all modes are one batched product; (real, imaginary) before outputs, so that the
        # product with both parts needs no copy of the weights.
        self.matrices = torch.nn.Parameter(torch.empty(math.prod(kept), inputs, 2, outputs))
        # Smaller than the pointwise path beside it: trained FNOs of the heat case came out 20 % better for it.
        torch.nn.init.normal_(self.matrices, std=0.3 * math.sqrt(0.5 / inputs), generator=generator)

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Multiply each mode's channels by its matrix: (i, b, k, .., r) -> (o, b, k, .., r)."""
        return _mix(spectrum, self.matrices)


class FactorisedWeight(torch.nn.Module):
    """Σ_q C_oq A¹_kq .. Aᵈ_kq B_iq in place of one matrix for each mode, with complex A and real B, C."""

    def __init__(
        self, kept: Sequence[int], inputs: int, outputs: int, *, rank: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.encode = torch.nn.Parameter(torch.empty(rank, inputs))
        self.decode = torch.nn.Parameter(torch.empty(outputs, rank))
        self.factors = torch.nn.ParameterList(torch.empty(2, rank, k) for k in kept)
        # The product has the deviation of the dense weights.
        torch.nn.init.normal_(self.encode, std=math.sqrt(1 / inputs), generator=generator)
        torch.nn.init.normal_(self.decode, std=0.3 * math.sqrt(1 / rank), generator=generator)
        for factor in self.factors:
            torch.nn.init.normal_(factor, std=math.sqrt(0.5), generator=generator)

    def forward(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Multiply each mode's channels by its matrix: (i, b, k, .., r) -> (o, b, k, .., r)."""
        y = (self.encode @ spectrum.flatten(1)).unflatten(1, spectrum.shape[1:])
        real, imaginary = y.unbind(-1)
        for axis, factor in enumerate(self.factors, start=2):
            # (2, rank, k) -> two of (rank, 1, .., k, ..)
            a, b = factor.reshape(2, len(self.encode), *(-1 if other == axis else 1 for other in range(1, y.ndim - 1)))
            real, imaginary = real * a - imaginary * b, real * b + imaginary * a
        y = torch.stack((real, imaginary), dim=-1)
        return (self.decode @ y.flatten(1)).unflatten(1, y.shape[1:])


def row_spectra(x: torch.Tensor, forward: torch.Tensor) -> torch.Tensor:
    """Return the spectra of the last axis, by `forward_matrix` (w, k r): (.., h, w) -> (.., k r, h)."""
    planes = x.flatten(0, -3)
    rows = torch.bmm(forward.T.expand(planes.shape[0], -1, -1), planes.mT)  # not by @, which would copy the result
    return rows.reshape(*x.shape[:-2], forward.shape[1], x.shape[-2])


def _along(y: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Multiply the pairs of the last axis by a matrix (r n, r k): (.., r, n) -> (.., r, k), in one product of rows."""
    return (y.reshape(-1, matrix.shape[0]) @ matrix).reshape(*y.shape[:-2], 2, matrix.shape[1] // 2)


def check_modes(modes: Sequence[int], grid: Sequence[int]) -> None:
    """Check that a grid resolves the modes.

    Raises
    ------
    ValueError : an axis has too few points, or another number of axes.
    """
    if len(modes) != len(grid):
        raise ValueError(f"Modes {tuple(modes)} are for {len(modes)} axes; the grid {tuple(grid)} has {len(grid)}.")
    largest = [*(n // 2 for n in grid[:-1]), grid[-1] // 2 + 1]
    if any(not 1 <= m <= most for m, most in zip(modes, largest, strict=True)):
        raise ValueError(f"Modes {tuple(modes)} do not fit the grid {tuple(grid)}: each must be 1 to {tuple(largest)}.")


def after_map(
    x: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, matrices: torch.Tensor, skip: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Take a linear map of the channels into what follows: states, weights of the modes and skip without it.

    spectral(matrix · x + shift) + skip · (matrix · x + shift) is the same with these on i + 1 channels instead of c:
    those of x, and one of ones, which the shift scales; on a GPU up to three of zeros. So the many channels need not be
    made.

    x : (i, b, *grid).
    matrix, shift : (c, i), (c,).
    matrices, skip : (modes, c, 2, o), (o, c).
    """
    (channels, inputs), batch, grid = matrix.shape, x.shape[1], tuple(x.shape[2:])
    # Products on a GPU are slow where the rows of a matrix are no multiple of four numbers: then some of zeros follow.
    spare = -(inputs + 1) % 4 if x.is_cuda else 0
    number = (1,) * x.ndim
    ones, zeros = (
        _full(number, value, x.dtype, x.device).expand(batch, n, *grid) for n, value in ((1, 1.0), (spare, 0.0))
    )
    x = torch.cat((x.transpose(0, 1), ones, zeros), dim=1).transpose(0, 1)
    none = [_full((channels, spare), 0.0, matrix.dtype, matrix.device)] if spare else []
    lifting = torch.cat((matrix, shift[:, None], *none), dim=1)
    # Not by @, which would copy the weights to fold both into one product.
    product = torch.bmm(lifting.T.expand(matrices.shape[0], -1, -1), matrices.flatten(2))
    return x, product.unflatten(2, matrices.shape[2:]), skip @ lifting


def _mix(spectrum: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply each mode's channels by its complex matrix: (i, b, k, .., r), (modes, i, 2, o) -> (o, b, k, .., r)."""
    (i, b, *kept, _), axes = spectrum.shape, range(2, spectrum.ndim - 1)
    # Real and imaginary channels are rows, real and imaginary weights columns: one product gives all four parts.
    rows = spectrum.permute(*axes, -1, 1, 0).reshape(len(weight), 2 * b, i)
    parts = torch.bmm(rows, weight.flatten(2)).reshape(len(weight), 2, b, 2, weight.shape[-1])  # (modes, r, b, r, o)
    (rr, ri), (ir, ii) = (part.unbind(2) for part in parts.unbind(1))
    mixed = torch.stack((rr - ii, ri + ir)).unflatten(1, kept)  # (r, k, .., b, o)
    return mixed.permute(-1, -2, *range(1, spectrum.ndim - 2), 0)


def keep(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Keep the tensors made for the last 256 different arguments, the last of which is the device.

    PyTorch's compiler traces through a cache. There a tensor is part of the step and made on the device: small beside
    all else, and without a copy from the host, so that a compiled step can be recorded as a CUDA graph.
    """

    @lru_cache(maxsize=256)
    def kept(*arguments: Any) -> torch.Tensor:
        # One that was made in inference mode could never take part in training, and one that was made while an exporter
        # traces (torch.export) would be its placeholder, without numbers.
        with torch.inference_mode(False), _disable_current_modes():
            return make(*arguments[:-1], torch.device("cpu")).to(arguments[-1])

    @wraps(make)
    def get(*arguments: Any) -> torch.Tensor:
        return make(*arguments) if torch.compiler.is_dynamo_compiling() else kept(*arguments)

    return get


@keep
def _full(shape: tuple[int, ...], value: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of one number, which a step would otherwise fill every time."""
    return torch.full(shape, value, dtype=dtype, device=device)


def _angles(points: int, wave_numbers: range, period: float, device: torch.device) -> torch.Tensor:
    """Angles 2π k j / (period·n), shape (n, k), float64."""
    k = torch.arange(wave_numbers.start, wave_numbers.stop, dtype=torch.float64, device=device)
    j = torch.arange(points, dtype=torch.float64, device=device)
    return 2 * math.pi / (period * points) * j[:, None] * k


@keep
def forward_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the transform of a real axis, (n, k r): x @ it holds X_k = Σ_j x_j e^(-iθ) / (period·n)."""
    angles = _angles(n, range(m), period, device)
    return (torch.stack((angles.cos(), -angles.sin()), 2).flatten(1) / (period * n)).to(dtype)


@keep
def inverse_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the inverse onto a real axis, (k r, n): x_j = Σ_k c_k Re(X_k e^(iθ)).

    c is 1 for the wave numbers 0 and n/2, which are their own conjugates, and 2 for all others.
    """
    angles = _angles(n, range(m), period, device).T
    k = torch.arange(m, device=device)[:, None]
    alone = (k == 0) | (2 * k == period * n)
    c = torch.where(alone, 1.0, 2.0)
    # Zero but for rounding; exact here, so that these imaginary parts have no influence at all.
    sines = torch.where(alone, 0.0, -c * angles.sin())
    return torch.stack((c * angles.cos(), sines), 1).flatten(0, 1).to(dtype)


@keep
def analysis_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the forward transform of a complex axis, (r n, r k): y @ it, with (real, imaginary) before the points."""
    angles = _angles(n, range(-m, m), period, device)
    return _pairs(angles.cos(), -angles.sin()).div(period * n).to(dtype)


@keep
def synthesis_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the inverse transform onto a complex axis, (r k, r n)."""
    angles = _angles(n, range(-m, m), period, device).T
    return _pairs(angles.cos(), angles.sin()).to(dtype)


def _pairs(real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
    """Return the complex matrix that rows of pairs (real, imaginary) are multiplied by, as a real one."""
    return torch.cat((torch.cat((real, imaginary), 1), torch.cat((-imaginary, real), 1)))
