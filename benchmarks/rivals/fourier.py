"""The published Fourier neural operator in plain PyTorch, and those of neuraloperator and PhysicsNeMo."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch


@dataclass(frozen=True)
class Shape:
    """One size of the network: batch, channels, grid and modes per axis."""

    batch: int
    width: int
    grid: tuple[int, ...]
    modes: int

    def __str__(self) -> str:
        return f"B{self.batch} C{self.width} {'x'.join(map(str, self.grid))} m{self.modes}"


class FFTConv(torch.nn.Module):
    """The spectral layer as published: (batch, channels, *grid), complex weights for each kept corner."""

    def __init__(self, inputs: int, outputs: int, modes: int, ndim: int) -> None:
        super().__init__()
        self.modes, self.ndim = modes, ndim
        corners = 2 ** (ndim - 1)
        scale = math.sqrt(0.5 / inputs)
        weight = scale * torch.randn(corners, inputs, outputs, *(modes,) * ndim, dtype=torch.complex64)
        self.weight = torch.nn.Parameter(weight)

    def corner(self, number: int) -> tuple[slice, ...]:
        """Index of one kept corner of the spectrum."""
        low, high = slice(None, self.modes), slice(-self.modes, None)
        chosen = [high if number >> axis & 1 else low for axis in range(self.ndim - 1)]
        return (slice(None), slice(None), *chosen, low)

    def forward(self, x: torch.Tensor, *, strict: bool = False) -> torch.Tensor:
        """Return the filtered channels; strict puts the imaginary parts that irfft must ignore to zero."""
        grid, axes = x.shape[2:], tuple(range(2, x.ndim))
        spectrum = torch.fft.rfftn(x, dim=axes, norm="forward")
        out = spectrum.new_zeros(len(x), self.weight.shape[2], *spectrum.shape[2:])
        for number, weight in enumerate(self.weight):
            corner = self.corner(number)
            out[corner] = torch.einsum("bi...,io...->bo...", spectrum[corner], weight)
        if not strict:
            return torch.fft.irfftn(out, s=grid, dim=axes, norm="forward")
        if self.ndim > 1:
            out = torch.fft.ifftn(out, dim=axes[:-1], norm="forward")
        out[..., 0].imag.zero_()
        return torch.fft.irfft(out, n=grid[-1], dim=-1, norm="forward")


class FFTNetwork(torch.nn.Module):
    """The whole published network, as large as ours; layer(channels, channels, modes, ndim) makes its filters."""

    def __init__(self, inputs: int, shape: Shape, layer: Callable[..., torch.nn.Module] = FFTConv) -> None:
        super().__init__()
        ndim, width = len(shape.grid), shape.width
        self.lifting = torch.nn.Conv1d(inputs, width, 1)
        self.spectral = torch.nn.ModuleList(layer(width, width, shape.modes, ndim) for _ in range(4))
        self.skips = torch.nn.ModuleList(torch.nn.Conv1d(width, width, 1) for _ in range(4))
        self.hidden, self.output = torch.nn.Conv1d(width, 128, 1), torch.nn.Conv1d(128, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, inputs, *grid) -> (batch, 1, *grid)."""
        grid = x.shape[2:]
        x = self.lifting(x.flatten(2))
        for number, (spectral, skip) in enumerate(zip(self.spectral, self.skips, strict=True)):
            x = spectral(x.unflatten(2, grid)).flatten(2) + skip(x)
            x = torch.nn.functional.gelu(x) if number < 3 else x
        return self.output(torch.nn.functional.gelu(self.hidden(x))).unflatten(2, grid)


def neuraloperator(shape: Shape, inputs: int, *, channel_mlp: bool, mixed: bool) -> torch.nn.Module | None:
    """Return neuraloperator's network with the same sizes; None where it is not installed."""
    try:
        from neuralop.models import FNO as TheirFNO
    except ImportError:
        return None
    return TheirFNO(
        n_modes=tuple(2 * shape.modes for _ in shape.grid), hidden_channels=shape.width, in_channels=inputs,
        out_channels=1, n_layers=4, use_channel_mlp=channel_mlp, fno_block_precision="mixed" if mixed else "full",
    )  # fmt: skip


def spread(
    filters: Callable[..., torch.nn.Module], inputs: int, outputs: int, modes: int, ndim: int
) -> torch.nn.Module:
    """Return a filter whose class takes the modes of each axis one by one."""
    return filters(inputs, outputs, *(modes,) * ndim)


def physicsnemo(shape: Shape, inputs: int) -> torch.nn.Module | None:
    """Return the published network with the spectral layers of PhysicsNeMo; None where they are not on sys.path.

    Their file is loaded alone: it needs only PyTorch, while importing the package asks for much else.
    """
    for folder in sys.path:
        path = Path(folder) / "physicsnemo" / "nn" / "module" / "spectral_layers.py"
        if path.exists():
            spec = importlib.util.spec_from_file_location("spectral_layers", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            filters = getattr(module, f"SpectralConv{len(shape.grid)}d")
            return FFTNetwork(inputs, shape, partial(spread, filters))
    return None
