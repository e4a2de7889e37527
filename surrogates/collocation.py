"""Where the residual is asked for: labels and times drawn afresh, partly where the residual is large.

The adaptive part follows residual-based adaptive distribution (Wu, Zhu, Tan, Kartha, Lu, CMAME 403, 2023): candidates
are kept with a probability that grows with their residual.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .moving_frame import Points
from .transport_network import TransportNetwork


class Sampler:
    """Draws collocation points for a network; calling it with a step gives new ones.

    rows : (rows, parameters), or a function of a generator that returns them.
    count : points of a draw.
    adaptive : share of the points that is chosen among four times as many by |residual|.
    duration : latest time; None takes that of the case.
    """

    def __init__(
        self, network: TransportNetwork, rows: torch.Tensor | Callable[[torch.Generator], torch.Tensor], count: int, *,
        adaptive: float = 0.5, seed: int = 0, duration: float | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= adaptive < 1:
            raise ValueError(f"The adaptive share {adaptive} must be 0 or more, and below 1.")
        self._network, self._count, self._adaptive = network, count, adaptive
        self.rows = rows
        weight = network.state.weights[0]
        self._like = weight.detach()
        self._generator = torch.Generator(weight.device).manual_seed(seed)
        self._duration = duration if duration is not None else network.moving.case.duration

    def uniform(self, count: int, rows: torch.Tensor) -> Points:
        """Return labels and times that are uniform in space and time."""
        like, grid = self._like, self._network.moving.case.grid

        def random(*shape: int) -> torch.Tensor:
            return torch.rand(*shape, generator=self._generator, dtype=like.dtype, device=like.device)

        extent, origin = like.new_tensor(grid.extent)[:, None], like.new_tensor(grid.origin)[:, None]
        labels, times = origin + random(grid.ndim, count) * extent, random(count) * self._duration
        row_of = torch.randint(len(rows), (count,), generator=self._generator, device=like.device)
        return Points(labels=labels, times=times, rows=rows, row_of=row_of)

    def __call__(self, step: int) -> Points:
        """Return the points of a draw; those of step 0 are uniform, as no residual means anything then."""
        rows = self.rows if torch.is_tensor(self.rows) else self.rows(self._generator)
        rows = rows.to(self._like)
        chosen = int(self._count * self._adaptive) if step else 0
        base = self.uniform(self._count - chosen, rows)
        if not chosen:
            return base
        candidates = self.uniform(4 * chosen, rows)
        with torch.no_grad():
            size = self._network.residual(candidates).square().sum(0).sqrt()
        size = torch.nan_to_num(size, nan=0.0, posinf=0.0)
        pick = torch.multinomial(size / size.mean().clamp(min=1e-300) + 0.5, chosen, generator=self._generator)
        return Points(
            labels=torch.cat((base.labels, candidates.labels[:, pick]), 1),
            times=torch.cat((base.times, candidates.times[pick])), rows=rows,
            row_of=torch.cat((base.row_of, candidates.row_of[pick])),
        )  # fmt: skip
