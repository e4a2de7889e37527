"""What networks of a channel are graded by, explicit steps of a frame from their own states, and pools of states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .figures import repeated

if TYPE_CHECKING:
    from .channel import Channel

WILD = 50.0
"""What no velocity or pressure comes to, in units of the inflow."""
LASTING, MORE = 4, 2.0
"""Cells of the blocks whose mean errors count for more, and by how much more. What alternates from cell to cell is gone
within a frame by friction; what does not lasts until the flow has carried it away, and adds up."""
AGES = 16
"""States of one simulation in a pool of all ages."""


def block_means(fields: torch.Tensor, cells: int, ndim: int) -> torch.Tensor:
    """Return fields (*lead, *grid) with the means over blocks of so many cells along each axis in place of values."""
    shape, lead = fields.shape, fields.shape[: fields.ndim - ndim]
    blocks = fields.reshape(*lead, *(size for n in shape[-ndim:] for size in (n // cells, cells)))
    means = blocks.mean(tuple(range(-2 * ndim + 1, 0, 2)), keepdim=True)
    return means.expand_as(blocks).reshape(shape)


class ChannelSteps:
    """Explicit steps of frames as an equation for velocity and pressure of windows (count, frames, fields, *grid).

    The frames of a window are graded as one roll-out, beside that of explicit steps from the frame before the first.
    Old states carry no gradient. New ones are graded as the network gives them, which makes them nearly free of
    divergence; the steps start from the projection of the old ones.

    weighed : errors for training, of which those count for more that last (`LASTING`). Where a channel has `still` they
        are in units of what the flow changes by in a frame and that share of the flow, times the flow: the loss is then
        the square of their ratio to the change, in a flow that comes to rest as in a young one.
    """

    def __init__(self, channel: Channel, device: str, *, compiled: bool = False, weighed: bool = True) -> None:
        self._channel, self._weighed = channel, weighed
        self._solver = channel.compiled(device) if compiled else channel.solver(device, torch.float32)

    def _inflow(self, states: torch.Tensor) -> torch.Tensor:
        """Return inflows with the axes of (*lead, *grid)."""
        return states[(..., -1, *[slice(0, 1)] * self._channel.ndim)]

    def _stepped(self, velocity: torch.Tensor, inflow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return velocity and pressure a frame later."""
        channel, viscosity = self._channel, 1 / (self._channel.reynolds * inflow)
        dt = channel.frame / channel.steps * inflow
        velocity = self._solver.advanced(velocity, dt, viscosity, channel.steps)
        return velocity, self._solver.pressure(velocity, viscosity)

    def correction(self, old: Any, new: Any, t: float, dt: float) -> Any:
        """Return the error of new velocities and pressures, (*lead, ndim + 1, *grid)."""
        channel = self._channel
        with torch.no_grad():
            first = old[:, :1]
            velocity, frames = channel.read(first)[:-1], []
            for _ in range(old.shape[1]):
                velocity, pressure = self._stepped(velocity, self._inflow(first))
                frames.append(torch.cat((velocity - channel.base_like(first), pressure[None])))
            wanted = torch.cat(frames, 2)
            weight = self._weight(old, wanted) if self._weighed and channel.still else 1.0
        found = torch.movedim(new[(..., slice(0, -1), *[slice(None)] * channel.ndim)], -1 - channel.ndim, 0)
        error = (found - wanted) * weight
        if self._weighed:
            error = error + MORE * block_means(error, LASTING, channel.ndim)
        return torch.movedim(error, 0, -1 - channel.ndim)

    def _weight(self, old: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Return the size of old states over that of their change, with the axes of (*lead, *grid)."""
        channel, axes = self._channel, tuple(range(-self._channel.ndim, 0))
        size = self.size(old).square().mean((-1 - channel.ndim, *axes))
        change = wanted - torch.movedim(old, -1 - channel.ndim, 0)[:-1]
        change = change.square().mean(0).mean(axes)
        weight = (size / (change + channel.still**2 * size)).sqrt()
        return weight.reshape(*weight.shape, *[1] * channel.ndim)

    def size(self, fields: Any) -> Any:
        """Return velocities and pressure."""
        return torch.movedim(self._channel.read(fields), 0, -1 - self._channel.ndim)

    @torch.no_grad()
    def of_all_ages(self, young: torch.Tensor) -> torch.Tensor:
        """Return starts (count, 1, fields, *grid) with their pressure, and AGES windows of each of the simulations.

        Where flows come to rest (`Channel.still`) most of these are young.
        """
        channel = self._channel
        inflow, velocity = self._inflow(young), channel.read(young)[:-1]
        first = young.clone()
        first[:, :, -2] = self._solver.pressure(velocity, 1 / (channel.reynolds * inflow))
        kept = [first]
        quarter = round(channel.end / channel.frame) // AGES
        device, octaves = young.device.type, set(np.geomspace(1, AGES * quarter, AGES).round().astype(int))
        steps = repeated(lambda u: self._stepped(u, inflow), velocity, AGES * quarter, device)
        for number, (velocity, pressure) in enumerate(steps, 1):
            # Every simulation is kept once a quarter, each at ages of its own, or more often while it is young.
            now = [k for k in range(len(young)) if (number - k * quarter // len(young)) % quarter == 0]
            if channel.still:
                now = list(range(len(young))) if number in octaves else []
            if now:
                flow = torch.cat((velocity - channel.base_like(young), pressure[None]))[:, now]
                flow = torch.movedim(flow, 0, -1 - channel.ndim)
                kept.append(torch.cat((flow, young[now, :, -1:]), dim=2))
        windows = torch.cat(kept)
        return windows[(windows.flatten(1).abs() < WILD).all(1)]
