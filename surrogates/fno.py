"""The Fourier neural operator as an autoregressive surrogate, in 1 to 3 dimensions and on any grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from .autoregressive import Autoregressive, Channels
from .fourier_network import NORMS, FourierNetwork
from .problem import Problem
from .spectral import check_modes
from .stepping import ONE_STEP, Stepping, whole


class FNO(Autoregressive):
    """The last states -> the next ones, with the network of Li et al. (2021); longer predictions are rolled out.

    It works on any grid that resolves its modes, whatever the grid it was trained on.

    Parameters
    ----------
    modes : Fourier modes, one number for all axes or one for each.
    width : channels.
    layers : spectral layers.
    padding : on axes with walls, zeros appended for the transform, as a fraction of the axis.
    norm, channel_mlp, rank : see `FourierNetwork`; the published network has none of them.
    stepping : what the network sees and gives, and how it is trained.
    """

    def __init__(
        self, *, modes: int | Sequence[int] = 12, width: int = 32, layers: int = 4, padding: float = 0.25,
        norm: str = "none", channel_mlp: float = 0.0, rank: int | None = None, stepping: Stepping = ONE_STEP,
    ) -> None:  # fmt: skip
        several = tuple(whole(m, "FNO modes", least=1) for m in (modes if isinstance(modes, Iterable) else [modes]))
        modes = several if isinstance(modes, Iterable) else several[0]
        width, layers = whole(width, "FNO width", least=1), whole(layers, "FNO layers", least=1)
        rank = None if rank is None else whole(rank, "FNO rank", least=1)
        super().__init__(stepping, modes=modes, width=width, layers=layers, padding=float(padding), norm=norm,
                         channel_mlp=float(channel_mlp), rank=rank)  # fmt: skip
        if norm not in NORMS:
            raise ValueError(f"FNO norm {norm!r} is not one of {', '.join(NORMS)}.")
        for name, fraction in {"padding": padding, "channel_mlp": channel_mlp}.items():
            if not 0 <= fraction < math.inf:
                raise ValueError(f"FNO {name} {fraction} must be finite and not negative.")

    def build(self, channels: Channels, problem: Problem) -> FourierNetwork:
        """Return the network.

        Raises
        ------
        ValueError : more modes than the grid has.
        """
        modes = (self.modes,) * len(problem.shape) if isinstance(self.modes, int) else self.modes
        check_modes(modes, problem.shape)
        network = FourierNetwork(
            channels.inputs, channels.outputs, self.width, modes=modes, layers=self.layers, norm=self.norm,
            periods=[1.0 if periodic else 1.0 + self.padding for periodic in problem.periodic],
            conditions=channels.conditions, channel_mlp=self.channel_mlp, rank=self.rank,
        )  # fmt: skip
        if self.stepping.target != "direct":
            # Training starts from persistence, the natural guess for a small step.
            torch.nn.init.zeros_(network.output.weight)
        return network
