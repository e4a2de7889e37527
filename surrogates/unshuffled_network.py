"""The rival of a staggered network on one device: one network on the coarse grid that sees all parts as channels.

It has all the information and one stream of kernels, but no part of it runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .autoregressive import box_position
from .stagger import Stagger


class UnshuffledNetwork(torch.nn.Module):
    """A window of s_t frames -> the next s_t frames, all parts at once.

    Parameters
    ----------
    make : (inputs, outputs) -> a network (batch, inputs, *coarse) -> (batch, outputs, *coarse); it gives changes since
        the last frame.
    stagger, fields : the decomposition, and the fields of a state.
    position : per axis, whether it is periodic: the network then sees where its points lie; None: not.
    scale : size of the states; inputs are divided by it and changes multiplied.
    """

    def __init__(
        self, make: Callable[[int, int], torch.nn.Module], stagger: Stagger, *, fields: int = 1,
        position: Sequence[bool] | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stagger, self.scale = stagger, scale
        self.periodic = None if position is None else tuple(bool(closed) for closed in position)
        placed = 0 if self.periodic is None else len(self.periodic) + sum(self.periodic)
        channels = stagger.parts * fields
        self.network = make(channels + placed, channels)

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        """Return the next window, (batch, s_t, fields, *grid)."""
        parts = self.stagger.split(window)[:, :, 0]  # (parts, batch, fields, *coarse)
        seen = (parts / self.scale).transpose(0, 1).flatten(1, 2)
        if self.periodic is not None:
            place = box_position(tuple(parts.shape[3:]), self.periodic, parts)
            seen = torch.cat((seen, place.expand(len(seen), *place.shape[1:])), dim=1)
        changes = self.network(seen).unflatten(1, (self.stagger.parts, -1)).transpose(0, 1)
        last = window[:, -1:].expand_as(window)
        return last + self.scale * self.stagger.join(changes[:, :, None])
