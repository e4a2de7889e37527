"""What surrounds the network of a channel: the inflow stays, and the flow may be projected before it goes in again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .channel import Channel


class KeepsInflow(torch.nn.Module):
    """A network of windows whose last field is given and stays."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.stagger = network, network.stagger

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the next window."""
        return torch.cat((self.network(window)[:, :, :-1], window[:, :, -1:]), dim=2)


class Projected(KeepsInflow):
    """The same, where the velocities are projected, and the pressure is the one that belongs to them.

    What is left to the networks is near at hand: transport, friction, and the slope of a pressure that they see. The
    projection reaches everywhere, and is the only thing that parts learn of each other. In training no gradient goes
    through the pressure.
    """

    def __init__(self, network: torch.nn.Module, channel: Channel) -> None:
        super().__init__(network)
        self.channel = channel

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the next window."""
        channel = self.channel
        new = torch.movedim(self.network(window)[:, :, : channel.ndim], 2, 0)
        flow = channel.solver(window.device.type, window.dtype).projected(new)[0]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.training):
            pressure = channel.pressure(flow, window[:, :, -1])
        return torch.cat((torch.movedim(flow, 0, 2), pressure[:, :, None], window[:, :, -1:]), dim=2)
