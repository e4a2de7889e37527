"""The spectral layer of Fourier neural operators as real matrix products, in 1 to 3 dimensions.

A truncated discrete Fourier transform is a product with a thin matrix of cosines and sines. Written so, it
needs no complex numbers, takes any grid size, costs less than an FFT that is mostly thrown away, and has
no ambiguity: an inverse real FFT of a spectrum whose zero column is not Hermitian, which every such layer produces,
is implementation-defined. Here the sines of the wave numbers 0 and n/2 are zero by construction, which equals an
inverse transform that ignores the imaginary parts there.

Letters: b batch, c channels, n points along an axis, k kept wave numbers along an axis, r the pair (real, imaginary).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch


class SpectralConv(torch.nn.Module):
    """Multiplies the low Fourier modes of all channels by learned complex matrices (Li et al. 2021, eq. 4).

    The last axis keeps the wave numbers 0 .. m-1, each other axis -m .. m-1, with m its number of modes.

    Parameters
    ----------
    inputs, outputs : channels.
    modes : m of each axis; 2 m <= points, on the last axis m <= points // 2 + 1.
    periods : length of the transform's period over that of the grid, per axis. 1 on periodic axes; more than 1
        continues the state by zeros, so that the two ends of an axis with walls do not touch.
    generator : draws the weights.
    """

    def __init__(
        self, inputs: int, outputs: int, *, modes: Sequence[int], periods: Sequence[float],
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.modes = tuple(modes)
        self.periods = tuple(float(period) for period in periods)
        self.kept = (*(2 * m for m in self.modes[:-1]), self.modes[-1])
        # Mode-major, so that all modes are one batched product; (real, imaginary) before outputs, so that the
        # product with both parts needs no copy of the weights.
        self.weight = torch.nn.Parameter(torch.empty(math.prod(self.kept), inputs, 2, outputs))
        torch.nn.init.normal_(self.weight, std=math.sqrt(0.5 / inputs), generator=generator)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the filtered channels: (b, inputs, *grid) -> (b, outputs, *grid)."""
        grid = tuple(x.shape[2:])
        check_modes(self.modes, grid)
        spectrum = _mix(self._analyse(x, grid), self.weight)
        return self._synthesise(spectrum, grid)

    def _analyse(self, x: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """Truncated forward transform: (b, c, *grid) -> (b, c, 2, all modes)."""
        b, c = x.shape[:2]
        last = len(grid) - 1
        y = x @ forward_matrix(
            grid[last], self.modes[last], self.periods[last], x.dtype, x.device
        )  # (b, c, .., n, 2 k)
        y = y.unflatten(-1, (2, self.kept[last]))
        for axis in range(last - 1, -1, -1):
            matrix = analysis_matrix(grid[axis], self.modes[axis], self.periods[axis], x.dtype, x.device)
            # (b, c, lead, n, r, k..) -> (b c lead, r n, k..)
            y = y.reshape(-1, grid[axis], 2, math.prod(self.kept[axis + 1 :])).transpose(1, 2).flatten(1, 2)
            y = (matrix @ y).unflatten(1, (2, self.kept[axis]))  # (b c lead, r, k, k..)
        return y.reshape(b, c, 2, math.prod(self.kept))

    def _synthesise(self, spectrum: torch.Tensor, grid: tuple[int, ...]) -> torch.Tensor:
        """Inverse transform on the grid: (b, c, 2, all modes) -> (b, c, *grid)."""
        b, c = spectrum.shape[:2]
        last = len(grid) - 1
        y = spectrum.reshape(b * c, 2, -1)
        for axis in range(last):
            matrix = synthesis_matrix(grid[axis], self.modes[axis], self.periods[axis], y.dtype, y.device)
            # (b c lead, r, k, k..) -> (b c lead, r k, k..) -> (b c lead n, r, k..)
            y = y.reshape(-1, 2 * self.kept[axis], math.prod(self.kept[axis + 1 :]))
            y = (matrix @ y).unflatten(1, (2, grid[axis])).transpose(1, 2).flatten(0, 1)
        inverse = inverse_matrix(grid[last], self.modes[last], self.periods[last], y.dtype, y.device)
        return (y.reshape(-1, 2 * self.kept[last]) @ inverse).reshape(b, c, *grid)


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
        raise ValueError(
            f"Modes {tuple(modes)} do not fit the grid {tuple(grid)}: each must be 1 to {tuple(largest)}."
        )


def _mix(spectrum: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Multiply each mode's channels by its complex matrix: (b, i, 2, k), (k, i, 2, o) -> (b, o, 2, k)."""
    b = len(spectrum)
    # Real and imaginary channels are rows, real and imaginary weights columns: one product gives all four parts.
    rows = spectrum.permute(3, 2, 0, 1).flatten(1, 2)  # (k, r b, i)
    parts = torch.bmm(rows, weight.flatten(2)).unflatten(1, (2, b)).unflatten(3, (2, -1))  # (k, r, b, r, o)
    real = parts[:, 0, :, 0] - parts[:, 1, :, 1]
    imaginary = parts[:, 0, :, 1] + parts[:, 1, :, 0]
    return torch.stack((real, imaginary)).permute(2, 3, 0, 1)


def _angles(points: int, wave_numbers: range, period: float) -> torch.Tensor:
    """Angles 2π k j / (period·n), shape (n, k), float64."""
    k = torch.arange(wave_numbers.start, wave_numbers.stop, dtype=torch.float64)
    j = torch.arange(points, dtype=torch.float64)
    return 2 * math.pi / (period * points) * j[:, None] * k


@lru_cache(maxsize=256)
def forward_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the transform of a real axis, (n, 2 m): x @ it = [Re X, Im X], X_k = Σ_j x_j e^(-iθ) / (period·n)."""
    # A cached tensor that was made in inference mode could never take part in training.
    with torch.inference_mode(False):
        angles = _angles(n, range(m), period)
        return (torch.cat((angles.cos(), -angles.sin()), 1) / (period * n)).to(device, dtype)


@lru_cache(maxsize=256)
def inverse_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the inverse onto a real axis, (2 m, n): x_j = Σ_k c_k Re(X_k e^(iθ)).

    c is 1 for the wave numbers 0 and n/2, which are their own conjugates, and 2 for all others.
    """
    with torch.inference_mode(False):
        angles = _angles(n, range(m), period).T
        c = torch.full((m, 1), 2.0, dtype=torch.float64)
        c[0] = 1.0
        if 2 * (m - 1) == period * n:
            c[-1] = 1.0
        sines = -c * angles.sin()
        # Zero but for rounding; exact here, so that these imaginary parts have no influence at all.
        sines[c[:, 0] == 1.0] = 0.0
        return torch.cat((c * angles.cos(), sines)).to(device, dtype)


@lru_cache(maxsize=256)
def analysis_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the forward transform of a complex axis as a real matrix, (2·2m, 2·n), parts as the outer blocks."""
    with torch.inference_mode(False):
        angles = _angles(n, range(-m, m), period).T
        cos, sin = angles.cos(), angles.sin()
        blocks = torch.cat((torch.cat((cos, sin), 1), torch.cat((-sin, cos), 1)))
        return (blocks / (period * n)).to(device, dtype)


@lru_cache(maxsize=256)
def synthesis_matrix(n: int, m: int, period: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the inverse transform onto a complex axis as a real matrix, (2·n, 2·2m)."""
    with torch.inference_mode(False):
        angles = _angles(n, range(-m, m), period)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((torch.cat((cos, -sin), 1), torch.cat((sin, cos), 1))).to(device, dtype)
