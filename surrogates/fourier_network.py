"""The network of Fourier neural operators, in 1 to 3 dimensions and on any grid that resolves its modes.

Inside, channels come before the batch, (channels, batch, *grid): then pointwise layers are single matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn.functional import gelu

from . import fused_fourier, pieces
from .film import Film
from .spectral import (
    DenseWeight,
    SpectralConv,
    after_map,
    check_modes,
    forward_matrix,
    inverse_matrix,
    row_spectra,
)

NORMS = ("none", "instance", "layer")
PROJECTION = 128
"""Channels of the pointwise layer before the output, as published."""


class FourierNetwork(torch.nn.Module):
    """(b, inputs, *grid) -> (b, outputs, *grid) by lifting, spectral layers with skips, projection (Li et al. 2021).

    Parameters
    ----------
    inputs, outputs, width : channels at the ends and inside.
    modes, periods : per axis, see `SpectralConv`.
    layers : spectral layers.
    conditions : entries of the second argument, which scales and shifts the channels of every layer; 0 for none.
    norm : of the spectral branch: "none", "instance" (each channel of each sample over the grid) or "layer" (each
        sample over channels and grid). Both forget the size of the states, which most equations need.
    channel_mlp : after every layer, a pointwise network with channel_mlp·width hidden channels and a gated skip around
        layer and network, as in Kossaifi et al. (2023); 0 for none.
    rank : of the spectral weights, see `SpectralConv`.
    lifting, projection : hidden channels of the first and the last pointwise network; lifting 0 is one linear map.
    """

    def __init__(  # noqa: PLR0913
        self, inputs: int, outputs: int, width: int, *, modes: Sequence[int], periods: Sequence[float], layers: int = 4,
        conditions: int = 0, norm: str = "none", channel_mlp: float = 0.0, rank: int | None = None, lifting: int = 0,
        projection: int = PROJECTION,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lifting = PointwiseMLP(inputs, lifting, width) if lifting else Pointwise(inputs, width)
        hidden = round(channel_mlp * width)
        self.layers = torch.nn.ModuleList(
            FourierLayer(width, modes=modes, periods=periods, conditions=conditions, norm=norm, hidden=hidden,
                         rank=rank)
            for _ in range(layers)
        )  # fmt: skip
        self.hidden = Pointwise(width, projection)
        self.output = Pointwise(projection, outputs)

    def forward(self, x: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        """Return the output channels, (b, outputs, *grid); condition (b, conditions)."""
        x, lifting = x.transpose(0, 1), self.lifting
        if not self._taken_in(x):
            x, lifting = self.lifting(x), None
        if all(layer.fusable(x) and not layer.channel_mlp for layer in self.layers):
            return self._project(fused_layers(self.layers, x, active=False, lifting=lifting)).transpose(0, 1)
        large = pieces.large(len(self.hidden.weight.T), x.shape[2:])
        if large and pieces.usable(x) and all(layer.plain for layer in self.layers):
            return self._in_pieces(x, lifting)
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, condition, active=number < len(self.layers), lifting=lifting)
            lifting = None
        return self._project(x).transpose(0, 1)

    def _in_pieces(self, x: torch.Tensor, lifting: Pointwise | None) -> torch.Tensor:
        """Return the output channels, (b, outputs, *grid); each layer gives the next one its row spectra.

        Inside, channels come right before the last two axes, as `pieces.blend` wants them.
        """
        matrices, skips = None, [layer.skip.weight for layer in self.layers]
        first = self.layers[0].spectral
        if lifting is not None:
            x, matrices, skips[0] = after_map(x, lifting.weight, lifting.bias, first.weight.matrices, skips[0])
        check_modes(first.modes, x.shape[2:])
        last = (x.shape[-1], first.modes[-1], first.periods[-1], x.dtype, x.device)
        forward, inverse = forward_matrix(*last), inverse_matrix(*last)
        x = x.movedim(0, -3)
        rows = row_spectra(x, forward)
        for number, (layer, skip) in enumerate(zip(self.layers, skips, strict=True), start=1):
            rows = layer.spectral.between_rows(rows.movedim(-3, 1), matrices, batch_first=True)
            active, matrices = number < len(self.layers), None
            x, rows = pieces.blend(
                x, rows.movedim(1, -3), skip, layer.skip.bias, forward if active else None, inverse, active=active
            )
        y = pieces.projection(x.flatten(0, -4).flatten(2), *self._projection)
        return y.reshape(*x.shape[:-3], y.shape[1], *x.shape[-2:]).movedim(-3, 1)

    def _taken_in(self, x: torch.Tensor) -> bool:
        """Whether the lifting is taken into the first layer: it is linear, of fewer channels, and its states unused."""
        first = self.layers[0]
        return (
            isinstance(self.lifting, Pointwise) and x.shape[0] < self.lifting.weight.shape[0]
            and isinstance(first.spectral.weight, DenseWeight) and first.channel_mlp is None
        )  # fmt: skip

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output channels, before the batch."""
        parts, outputs = self._projection, len(self.output.bias)
        if self.layers[0].fused and fused_fourier.usable(x, ()) and outputs <= fused_fourier.MOST_OUTPUTS:
            return fused_fourier.projection(x, *parts)
        if pieces.usable(x):
            return pieces.projection(x.flatten(1)[None], *parts)[0].unflatten(1, x.shape[1:])
        return self.output(gelu(self.hidden(x)))

    @property
    def _projection(self) -> tuple[torch.Tensor, ...]:
        """The weights of the last pointwise network."""
        return self.hidden.weight, self.hidden.bias, self.output.weight, self.output.bias


class FourierLayer(torch.nn.Module):
    """gelu(spectral(x) + W x + b), and after it the pointwise network with its gated skip, where there is one."""

    fused = True
    """Whether the kernels of `fused_fourier` may run where they can; a comparison takes them away."""

    def __init__(
        self, width: int, *, modes: Sequence[int], periods: Sequence[float], conditions: int, norm: str, hidden: int,
        rank: int | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.spectral = SpectralConv(width, width, modes=modes, periods=periods, rank=rank)
        self.skip = Pointwise(width, width)
        self.norm = Norm(width, norm) if norm != "none" else torch.nn.Identity()
        self.film = Film(conditions, width, axis=0)
        self.channel_mlp = PointwiseMLP(width, hidden, width) if hidden else None
        self.gate = torch.nn.Parameter(torch.ones(width)) if hidden else None

    def forward(
        self, x: torch.Tensor, condition: torch.Tensor | None, *, active: bool, lifting: Pointwise | None = None
    ) -> torch.Tensor:
        """Return the next channels; the last layer is not active: it ends without its nonlinearity.

        lifting : of x, where that was not done before; not with a pointwise network.
        """
        y = self._filtered(x, condition, active, lifting)
        if self.channel_mlp is None:
            return y
        y = self.channel_mlp(y) + self.gate.reshape(-1, *(1,) * (x.ndim - 1)) * x
        return gelu(y) if active else y

    def _filtered(
        self, x: torch.Tensor, condition: torch.Tensor | None, active: bool, lifting: Pointwise | None
    ) -> torch.Tensor:
        """Return the layer without its pointwise network."""
        if self.fusable(x):
            return fused_layers([self], x, active=active, lifting=lifting)
        matrices, skip = None, self.skip.weight
        if lifting is not None:
            x, matrices, skip = after_map(x, lifting.weight, lifting.bias, self.spectral.weight.matrices, skip)
        y = self.norm(self.spectral(x, matrices)) + pointwise(x, skip, self.skip.bias)
        y = self.film(y, condition)
        return gelu(y) if active else y

    @property
    def plain(self) -> bool:
        """Whether the layer is the published one: gelu(spectral(x) + W x + b) and nothing else."""
        return isinstance(self.norm, torch.nn.Identity) and self.film.linear is None and self.channel_mlp is None

    def fusable(self, x: torch.Tensor) -> bool:
        """Whether `fused_layers` takes this layer and these states."""
        return (
            self.fused and fused_fourier.usable(x, self.spectral.modes) and isinstance(self.norm, torch.nn.Identity)
            and isinstance(self.spectral.weight, DenseWeight) and self.film.linear is None
            and len(self.skip.bias) <= fused_fourier.MOST_CHANNELS and self.skip.bias.dtype == torch.float32
            and not torch._C._functorch.is_batchedtensor(self.skip.weight)
        )  # fmt: skip


def fused_layers(
    layers: Sequence[FourierLayer], x: torch.Tensor, *, active: bool, lifting: Pointwise | None = None
) -> torch.Tensor:
    """Return x, lifted if asked for, after layers without their pointwise networks, by `fused_fourier`."""
    spectral = layers[0].spectral
    check_modes(spectral.modes, x.shape[2:])
    parts = [(layer.spectral.weight.matrices, layer.skip.weight, layer.skip.bias) for layer in layers]
    more = {"modes": spectral.modes, "periods": spectral.periods, "active": active}
    if lifting is None:
        return fused_fourier.fourier_layers(x, parts, **more)
    return fused_fourier.lifted_layers(x, lifting.weight, lifting.bias, parts, **more)


class Norm(torch.nn.Module):
    """Mean 0 and deviation 1 over the grid ("instance"), or over channels and grid ("layer"), then scale and shift."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.layer = kind == "layer"
        self.weight = torch.nn.Parameter(torch.ones(width))
        self.bias = torch.nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalised channels, (channels, batch, *grid)."""
        axes = tuple(axis for axis in range(x.ndim) if axis != 1 and (self.layer or axis > 1))
        variance, mean = torch.var_mean(x, dim=axes, correction=0, keepdim=True)
        view = (-1, *(1,) * (x.ndim - 1))
        return (x - mean) * torch.rsqrt(variance + 1e-5) * self.weight.reshape(view) + self.bias.reshape(view)


class Pointwise(torch.nn.Module):
    """A linear map of the channels at every point: (inputs, ...) -> (outputs, ...).

    With channels first it is one matrix product, on a CPU 1.4 to 5 times as fast as a convolution with kernel size 1.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs))
        self.bias = torch.nn.Parameter(torch.zeros(outputs))
        torch.nn.init.normal_(self.weight, std=math.sqrt(1 / inputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return weight · x + bias."""
        return pointwise(x, self.weight, self.bias)


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return weight · x + bias, (inputs, ...) -> (outputs, ...)."""
    return torch.addmm(bias[:, None], weight, x.flatten(1)).unflatten(1, x.shape[1:])


class PointwiseMLP(torch.nn.Module):
    """Two pointwise maps with a gelu between them: (inputs, ...) -> (outputs, ...)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = Pointwise(inputs, hidden), Pointwise(hidden, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mapped channels."""
        return self.second(gelu(self.first(x)))
