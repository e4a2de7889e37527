"""Conditioning of hidden channels on a few numbers: a scale and a shift of each (Perez et al. 2018)."""

from __future__ import annotations

import torch


class Film(torch.nn.Module):
    """(1 + γ(c)) h + β(c) with γ and β linear in the condition c; the identity at first, and always without c.

    Parameters
    ----------
    conditions : entries of c; 0 for none.
    width : channels of h.
    axis : that of the channels in h, 1 for (batch, channels, *grid), 0 for (channels, batch, *grid).
    """

    def __init__(self, conditions: int, width: int, *, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.linear = torch.nn.Linear(conditions, 2 * width) if conditions else None
        if self.linear is not None:
            torch.nn.init.zeros_(self.linear.weight)
            torch.nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
        """Return the modulated channels; condition (batch, conditions)."""
        if self.linear is None:
            return hidden
        values = self.linear(condition)  # (batch, 2 width)
        if self.axis == 0:
            values = values.T
        gamma, beta = values.reshape(*values.shape, *(1,) * (hidden.ndim - 2)).chunk(2, dim=self.axis)
        return torch.addcmul(beta, 1 + gamma, hidden)
