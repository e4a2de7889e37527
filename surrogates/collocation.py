"""Where the residual is asked for: labels and times drawn afresh, partly where the residual is large.

Points that are spread evenly are a randomly shifted Kronecker sequence: frac(shift + n α), α_j = φ^-j, φ^(d+1) = φ + 1
in d dimensions (M. Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018); they leave smaller gaps
than independent ones. Two ways to put more of them where the residual is large:

- adaptive distribution (RAD; Wu, Zhu, Tan, Kartha, Lu, CMAME 403, 2023): candidates are kept with a probability that
  grows with their residual;
- retain, resample, release (R3; Daw, Bu, Wang, Perdikaris, Karpatne, ICML 2023): points whose residual is above the
  mean of all stay, the others are drawn anew.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .places import Points
from .transport_network import TransportNetwork


class Sampler:
    """Draws collocation points for a network; calling it with a step gives new ones.

    rows : (rows, parameters), or a function of a generator that returns them.
    count : points of a draw.
    adaptive : share of the points that is chosen among four times as many by |residual| (RAD).
    retain : retain, resample and release (R3) in place of that.
    duration : from the network's first time on; None takes all it is for.
    """

    def __init__(
        self, network: TransportNetwork, rows: torch.Tensor | Callable[[torch.Generator], torch.Tensor], count: int, *,
        adaptive: float = 0.5, retain: bool = False, seed: int = 0, duration: float | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= adaptive < 1:
            raise ValueError(f"The adaptive share {adaptive} must be 0 or more, and below 1.")
        if retain and not torch.is_tensor(rows):
            raise ValueError("A sampler that retains points retains their parameters: give rows as a tensor.")
        self._network, self._count, self._adaptive, self._retain = network, count, adaptive, retain
        self.rows = rows
        weight = network.state.weights[0]
        self._like = weight.detach()
        self._generator = torch.Generator(weight.device).manual_seed(seed)
        self._duration = duration if duration is not None else network.moving.length
        self._last: Points | None = None

    def uniform(self, count: int, rows: torch.Tensor) -> Points:
        """Return labels and times that are spread evenly in space and time, with rows at random."""
        like, grid = self._like, self._network.moving.case.grid
        shift = torch.rand(grid.ndim + 1, 1, generator=self._generator, dtype=torch.float64, device=like.device)
        number = torch.arange(count, dtype=torch.float64, device=like.device)
        unit = torch.cat([(s + number * a) % 1 for s, a in zip(shift, _steps(grid.ndim + 1), strict=True)])
        unit = unit.reshape(grid.ndim + 1, count).to(like.dtype)
        extent, origin = like.new_tensor(grid.extent)[:, None], like.new_tensor(grid.origin)[:, None]
        row_of = torch.randint(len(rows), (count,), generator=self._generator, device=like.device)
        times = self._network.moving.begins + unit[-1] * self._duration
        return Points(labels=origin + unit[:-1] * extent, times=times, rows=rows, row_of=row_of)

    def __call__(self, step: int) -> Points:
        """Return the points of a draw; those of step 0 are uniform, as no residual means anything then."""
        rows = self.rows if torch.is_tensor(self.rows) else self.rows(self._generator)
        rows = rows.to(self._like)
        if self._retain:
            self._last = self.uniform(self._count, rows) if self._last is None or not step else self._released(rows)
            return self._last
        chosen = int(self._count * self._adaptive) if step else 0
        few, many = self._count - chosen, 4 * chosen
        base = self.uniform(few, rows)
        if not chosen:
            return base
        number = torch.arange(few + many, device=rows.device)
        # In one, so that places that cost much are found once.
        both = self._network.moving.prepared(_joined(base, self.uniform(many, rows), number[:many]))
        size = self._size(both.part(number[few:]))
        pick = torch.multinomial(size / size.mean().clamp(min=1e-300) + 0.5, chosen, generator=self._generator)
        return both.part(torch.cat((number[:few], few + pick)))

    def _size(self, points: Points) -> torch.Tensor:
        """Return |residual| at each point, 0 where it is not finite."""
        with torch.no_grad():
            size = self._network.residual(points).square().sum(0).sqrt()
        return torch.nan_to_num(size, nan=0.0, posinf=0.0)

    def _released(self, rows: torch.Tensor) -> Points:
        size = self._size(self._last)
        retained = (size > size.mean()).nonzero()[:, 0]
        return _joined(self.uniform(self._count - len(retained), rows), self._last, retained)


def _steps(dimensions: int) -> list[float]:
    ratio = 1.5
    for _ in range(60):  # a contraction to the root of φ^(d+1) = φ + 1
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    return [ratio**-power for power in range(1, dimensions + 1)]


def _joined(base: Points, others: Points, pick: torch.Tensor) -> Points:
    return Points(
        labels=torch.cat((base.labels, others.labels[:, pick]), 1),
        times=torch.cat((base.times, others.times[pick])), rows=base.rows,
        row_of=torch.cat((base.row_of, others.row_of[pick])),
    )  # fmt: skip
