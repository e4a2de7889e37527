"""Paths in a flow that is known beforehand: labels carried by RK4 steps, with their derivatives by label and time.

Along a path dx/dt = v(x, t), the derivatives by the label X obey

    dF/dt = ∇v F,      d(∂²x)/dt = ∇v ∂²x + ∇∇v F F,      F = ∂x/∂X

and are carried in the same steps, so that they are those of the numerical path itself. Every point takes equally many
steps, however late it is; how the steps grow with the time elapsed gives ∂x/∂t of the numerical path, which differs
from v by the error of the method. In a moving frame the equation then holds for any number of steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from headrace.solvers.case import Case
from headrace.solvers.parameters import Parameters

from .case_on_jets import coordinates
from .jet import Jet, constant, pairs
from .jet_operators import JetOperators
from .places import Points

Velocity = Callable[[torch.Tensor, torch.Tensor], list[Jet]]
"""Places (ndim, points) and times (points,) -> v, one jet in space and time, the last direction, per axis."""

_STAGES = ((0.0, 1.0), (0.5, 2.0), (0.5, 2.0), (1.0, 1.0))
"""Where in a step v is asked for, and how much it counts."""

_STEP, _MOST = 0.1, 400
"""|∇v| times a step, which moves one turn to 2e-6 of its radius; and steps at most."""


class TracedPaths:
    """The paths of a case whose flow needs no state.

    flow : of `headrace.surrogates.case_on_jets.flow_of`. cutoff : coordinates, axis -> what v counts, 0 at walls.
    """

    def __init__(
        self, case: Case, flow: Callable[..., Any], cutoff: Callable[[tuple[Jet, ...], int], Jet | float]
    ) -> None:
        self._case, self._flow, self._cutoff = case, flow, cutoff

    def steps(self, points: Points, length: float) -> int:
        """Return how many steps a time takes, by the largest |∇v| at some points."""
        slopes = [part._full(g) for part in self._velocity(points)(points.labels, points.times)
                  for g in part.gradient[:-1]]  # fmt: skip
        most = float(torch.stack(slopes).square().sum(0).max().sqrt())
        return min(max(4, math.ceil(length * most / _STEP)), _MOST)

    def places(self, points: Points, begins: float, steps: int) -> tuple[tuple[Jet, ...], torch.Tensor]:
        """Return where labels are that set out at a time, one jet in the label per axis, and ∂x/∂t (ndim, points)."""
        since = torch.full_like(points.times, begins)
        return carried(self._velocity(points), points.labels, since, points.times - begins, steps)

    def labels(self, points: Points, begins: float, steps: int) -> torch.Tensor:
        """Return close to which labels the places points.labels are, (ndim, points)."""
        return places(self._velocity(points), points.labels, points.times, begins - points.times, steps)

    def _velocity(self, points: Points) -> Velocity:
        ndim, rows = self._case.grid.ndim, points.rows[points.row_of]
        p = Parameters({name: constant(column, ndim + 1)
                        for name, column in zip(self._case.parameters, rows.unbind(1), strict=True)})  # fmt: skip

        def velocity(x: torch.Tensor, times: torch.Tensor) -> list[Jet]:
            *where, t = coordinates(torch.cat((x, times[None])))
            zero, any_state = where[0] * 0, x.new_ones(len(self._case.fields), x.shape[1])
            d = JetOperators(tuple(where), auxiliary=lambda number: zero)
            flow = self._flow(constant(any_state, ndim + 1, True), d, p, t)
            return [(zero + part) * self._cutoff(tuple(where), axis) for axis, part in enumerate(flow)]

        return velocity


@torch.no_grad()
def carried(
    velocity: Velocity, labels: torch.Tensor, begins: torch.Tensor, elapsed: torch.Tensor, steps: int
) -> tuple[tuple[Jet, ...], torch.Tensor]:
    """Return x as one jet in the label per axis, and ∂x/∂t at fixed label (ndim, points).

    labels : (ndim, points). begins, elapsed : when each sets out, and for how long it goes, (points,).
    """
    ndim, count = labels.shape
    F = torch.eye(ndim, dtype=labels.dtype, device=labels.device)[:, :, None].expand(-1, -1, count)
    state = [labels, F, labels.new_zeros(ndim, ndim, ndim, count), torch.zeros_like(labels)]
    h = elapsed / steps
    for step in range(steps):
        total = slopes = [torch.zeros_like(part) for part in state]
        for share, weight in _STAGES:
            moved, passed = _ahead(state, slopes, share, h, steps), (step + share) / steps
            slopes = _slopes(velocity(moved[0], begins + passed * elapsed), moved, passed)
            total = [a + weight * b for a, b in zip(total, slopes, strict=True)]
        state = _ahead(state, total, 1 / 6, h, steps)
    x, F, bend, rate = state
    return tuple(Jet(x[i], list(F[i]), {key: bend[i][key] for key in pairs(ndim)}) for i in range(ndim)), rate


@torch.no_grad()
def places(
    velocity: Velocity, labels: torch.Tensor, begins: torch.Tensor, elapsed: torch.Tensor, steps: int
) -> torch.Tensor:
    """Return x alone, (ndim, points); a negative time elapsed traces places back to their labels."""
    x, h = labels, elapsed / steps
    for step in range(steps):
        total = slope = torch.zeros_like(x)
        for share, weight in _STAGES:
            slope = _values(velocity(x + share * h * slope, begins + (step + share) * h), x)
            total = total + weight * slope
        x = x + h / 6 * total
    return x


def _ahead(
    state: list[torch.Tensor], slopes: list[torch.Tensor], share: float, h: torch.Tensor, steps: int
) -> list[torch.Tensor]:
    """Return the state a share of a step later; its rate also grows because the step does."""
    moved = [part + share * h * slope for part, slope in zip(state, slopes, strict=True)]
    moved[3] = moved[3] + share / steps * slopes[0]
    return moved


def _slopes(velocity: list[Jet], state: list[torch.Tensor], passed: float) -> list[torch.Tensor]:
    """Return the derivatives in time of x, F and ∂²x, and that of v by the time elapsed, of which `passed` is gone."""
    x, F, bend, rate = state
    v, first, second, late = _derivatives(velocity, x)
    bent = (first[:, :, None, None] * bend[None]).sum(1)
    if second is not None:
        half = (second[:, :, :, None] * F[None, None]).sum(2)
        bent = bent + (half[:, :, None] * F[None, :, :, None]).sum(1)
    return [v, (first[:, :, None] * F[None]).sum(1), bent, (first * rate[None]).sum(1) + passed * late]


def _values(velocity: list[Jet], like: torch.Tensor) -> torch.Tensor:
    return torch.stack([part.value + torch.zeros_like(like[0]) for part in velocity])


def _derivatives(velocity: list[Jet], like: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Return v (ndim, points), ∂v_i/∂x_k (ndim, ndim, points), ∂²v_i/∂x_k∂x_l, None where all are 0, and ∂v/∂t."""
    axes, zero = range(len(velocity)), torch.zeros_like(like[0])

    def full(part: torch.Tensor | float | None) -> torch.Tensor:
        return zero if part is None else part + zero

    first = torch.stack([torch.stack([full(part.gradient[k]) for k in axes]) for part in velocity])
    second = None
    if any(part.hessian[key] is not None for part in velocity for key in pairs(len(velocity))):
        second = torch.stack([
            torch.stack([torch.stack([full(part.hessian[min(k, m), max(k, m)]) for m in axes]) for k in axes])
            for part in velocity])  # fmt: skip
    return _values(velocity, like), first, second, torch.stack([full(part.gradient[-1]) for part in velocity])
