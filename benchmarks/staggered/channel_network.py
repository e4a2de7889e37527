"""What surrounds the network of a channel: the inflow stays, and the flow may be projected before it goes in again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import silu

from headrace.surrogates.convolution import BoxConv

if TYPE_CHECKING:
    from .channel import Channel


CHANGE = 0.06
"""What velocities change by in a frame, in units of the inflow."""


class KeepsInflow(torch.nn.Module):
    """A network of windows whose last field is given and stays."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.stagger = network, network.stagger

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the next window."""
        return torch.cat((self.network(window)[:, :, :-1], window[:, :, -1:]), dim=2)


class CommonLayers(torch.nn.Module):
    """Four convolutions on the grid of all parts, which correct what these give together; without effect at first.

    What parts are off by mostly alternates from point to point, as each of them is off by itself: neighbours tell, and
    those that the flow comes from, up to eight cells away in a plane. The two in the middle add to the first.
    """

    def __init__(self, ndim: int, channels: int) -> None:
        super().__init__()
        walls = (False,) * ndim
        self.first = BoxConv(2 * ndim + 2, channels, periodic=walls, kernel=5)
        middle = 5 if ndim == 2 else 3  # in space it would cost as much as all parts
        self.middle = torch.nn.ModuleList(
            BoxConv(channels, channels, periodic=walls, kernel=middle) for _ in range(2)
        )  # fmt: skip
        self.second = BoxConv(channels, ndim, periodic=walls, kernel=5)
        for last in (self.middle[-1], self.second):
            torch.nn.init.zeros_(last.conv.weight)
            torch.nn.init.zeros_(last.conv.bias)

    def forward(self, window: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Return the velocities of new windows, corrected; window and new as networks see and give them."""
        old, change = window.flatten(0, 1), (new - window[:, :, : new.shape[2]]).flatten(0, 1)
        seen = self.first(torch.cat((old, change / CHANGE), dim=1))
        one, other = self.middle
        seen = seen + other(silu(one(silu(seen))))
        return new + CHANGE * self.second(silu(seen)).reshape(new.shape)


class Projected(KeepsInflow):
    """The same, where the velocities are projected, and the pressure is the one that belongs to them.

    What is left to the networks is near at hand: transport, friction, and the slope of a pressure that they see. The
    projection reaches everywhere, and is the only thing that parts learn of each other, unless they have `common`
    layers of so many channels. In training no gradient goes through the pressure.
    """

    def __init__(self, network: torch.nn.Module, channel: Channel, common: int = 0) -> None:
        super().__init__(network)
        self.channel = channel
        self.common = CommonLayers(channel.ndim, common) if common else None

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the next window."""
        channel = self.channel
        new = self.network(window)[:, :, : channel.ndim]
        if self.common is not None:
            new = self.common(window, new)
        new = torch.movedim(new, 2, 0)
        flow = channel.solver(window.device.type, window.dtype).projected(new)[0]
        # In training it is compiled, for float32 only.
        compiled, known = self.training and flow.dtype == torch.float32, flow.detach() if self.training else flow
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            pressure = channel.pressure(known, window[:, :, -1], compiled=compiled)
        return torch.cat((torch.movedim(flow, 0, 2), pressure[:, :, None], window[:, :, -1:]), dim=2)


class Unrolled(torch.nn.Module):
    """A network's roll-out of so many frames from the last of a window, which the gradient goes back through."""

    def __init__(self, network: torch.nn.Module, frames: int) -> None:
        super().__init__()
        self.network, self.frames = network, frames

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the window of the frames after a window."""
        made = [window[:, -1:]]
        for _ in range(self.frames):
            made.append(self.network(made[-1]))
        return torch.cat(made[1:], dim=1)
