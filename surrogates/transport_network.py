"""Two networks in parallel, state and displacement, that solve a case in a moving frame for all its parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .jet import Jet, pairs, stacked
from .jet_network import JetNetwork, Pairs
from .moving_frame import MovingFrame
from .places import Place, Points
from .problem import Problem

Trace = list[tuple[torch.Tensor, ...]]

_MOST_STEPS = 80
"""Of the inversion of a map."""


class TransportNetwork(torch.nn.Module):
    """υ(X, t, p) and, in the lagrangian frame, δ(X, t, p), with the conditions of a case built in.

    widths : of the hidden layers of υ. paths : of those of δ; None takes the first half of widths, at least one.
    harmonics : sines and cosines per periodic axis that the networks see.
    auxiliary : further outputs of υ's network, one for each d.inverse_laplacian of the right-hand side.
    """

    def __init__(
        self, problem: Problem, *, widths: Sequence[int] = (20, 20, 20), harmonics: int = 1, lagrangian: bool = False,
        seed: int = 0, origin: Sequence[float] | None = None, auxiliary: int = 0, paths: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.problem, self.harmonics, self.auxiliary = problem, harmonics, auxiliary
        self.ndim = len(problem.shape)
        self.origin = tuple(origin) if origin is not None else (0.0,) * self.ndim
        self._second: Pairs = tuple(pairs(self.ndim))
        inputs = sum(2 * harmonics if periodic else 1 for periodic in problem.periodic) + 1 + len(problem.parameters)
        generator = torch.Generator().manual_seed(seed)
        self.state = JetNetwork((inputs, *widths, len(problem.fields) + auxiliary), generator, last=0.1)
        self.displacement = None
        if lagrangian:
            paths = tuple(widths)[: max(1, len(widths) // 2)] if paths is None else paths
            self.displacement = JetNetwork((inputs, *paths, self.ndim), generator)
        self.moving: MovingFrame | None = None

    def use(self, moving: MovingFrame) -> None:
        """Take the conditions and the equation of a case.

        Raises
        ------
        ValueError : its right-hand side needs another number of auxiliary outputs.
        """
        if moving.auxiliaries != self.auxiliary:
            raise ValueError(
                f"The right-hand side of case {moving.case.name} calls d.inverse_laplacian {moving.auxiliaries} times; "
                f"the network has {self.auxiliary} auxiliary outputs. Make it with auxiliary={moving.auxiliaries}."
            )
        self.moving = moving
        self.origin = moving.case.grid.origin

    def features(self, points: Points) -> torch.Tensor:
        """Return what the networks see as a jet in (X, t), (components, points, inputs)."""
        ndim, problem, N = self.ndim, self.problem, points.labels.shape[1]
        columns: list[tuple[torch.Tensor, int | None, Any, Any]] = []  # value, direction, first and second derivative
        for axis, periodic in enumerate(problem.periodic):
            X = points.labels[axis]
            if periodic:
                for k in range(1, self.harmonics + 1):
                    w = 2 * math.pi * k / problem.extent[axis]
                    c, s = torch.cos(w * (X - self.origin[axis])), torch.sin(w * (X - self.origin[axis]))
                    columns += [(c, axis, -w * s, -w * w * c), (s, axis, w * c, -w * w * s)]
            else:
                half = problem.extent[axis] / 2
                columns.append(((X - self.origin[axis]) / half - 1, axis, 1 / half, 0.0))
        columns.append((2 * self.moving.elapsed(points) - 1, ndim, 2 / self.moving.length, None))
        for index, (name, (low, high)) in enumerate(problem.parameters.items()):
            value = points.rows[points.row_of][:, index]
            if name in problem.logarithmic:
                value, low, high = torch.log(value), math.log(low), math.log(high)
            columns.append((2 * (value - low) / (high - low) - 1, None, None, None))
        zero = points.times.new_zeros(N)
        components = [torch.stack([value for value, *_ in columns], 1)]
        for direction in range(ndim + 1):
            slopes = [zero + first if of == direction else zero for _, of, first, _ in columns]
            components.append(torch.stack(slopes, 1))
        for i, j in self._second:
            components.append(
                torch.stack([zero + second if i == j == of else zero for _, of, _, second in columns], 1)
            )
        return torch.stack(components)

    def _jet(self, out: torch.Tensor) -> tuple[list[Jet], torch.Tensor]:
        """Return one jet in the label per output, and their derivatives in time (outputs, points)."""
        ndim = self.ndim
        jets = [
            Jet(a[0], [a[1 + i] for i in range(ndim)], {k: a[2 + ndim + n] for n, k in enumerate(self._second)})
            for a in out.unbind(2)
        ]
        return jets, out[1 + ndim].T

    def place(self, points: Points, traces: list[Trace] | None = None) -> Place:
        """Return where labels are."""
        if self.displacement is None:
            return self.moving.place(points)
        trace: Trace | None = None if traces is None else []
        out = self.displacement(self.features(points), self.ndim + 1, self._second, trace)
        if traces is not None:
            traces.append(trace)
        return self.moving.place(points, self._jet(out))

    def unknowns(self, points: Points, traces: list[Trace] | None = None) -> tuple[Jet, torch.Tensor]:
        """Return u as a jet in the label (fields, points), and ∂u/∂t at fixed label."""
        return self._solution(points, traces)[:2]

    def _solution(self, points: Points, traces: list[Trace] | None) -> tuple[Jet, torch.Tensor, list[Jet]]:
        """Return u, ∂u/∂t and the auxiliary unknowns."""
        trace: Trace | None = None if traces is None else []
        jets, rates = self._jet(self.state(self.features(points), self.ndim + 1, self._second, trace))
        if traces is not None:
            traces.append(trace)
        t, T = points.times - self.moving.begins, self.moving.length
        walls, fields = self.moving.walls(points.labels), len(self.problem.fields)
        parts, slopes = [], []
        for jet, rate, wall in zip(jets[:fields], rates[:fields], walls, strict=True):
            parts.append((jet * wall).mapped(lambda a: a * (t / T)))
            factor = wall.value if isinstance(wall, Jet) else wall
            slopes.append(factor * (jet.value + t * rate) / T)
        auxiliary = [jet * walls[0] for jet in jets[fields:]]
        return self.moving.initial(points) + stacked(parts), torch.stack(slopes), auxiliary

    def residual(self, points: Points, traces: list[Trace] | None = None) -> torch.Tensor:
        """Return the residuals of the equations, (equations, points)."""
        u, rate, auxiliary = self._solution(points, traces)
        return self.moving.residual(points, u, rate, self.place(points, traces), auxiliary)

    def min_jacobian(self, points: Points) -> tuple[float, float, list[float]]:
        """Return the smallest J over some points, with its time and label; below 0 characteristics have crossed."""
        with torch.no_grad():
            J = self.place(points).jacobian()
        worst = int(J.argmin())
        return float(J[worst]), float(points.times[worst]), points.labels[:, worst].tolist()

    def labels_at(self, points: Points) -> torch.Tensor:
        """Return the labels that are at the places points.labels at their times, (ndim, points): safeguarded Newton.

        On a line each step that leaves the bracket of the root is replaced by a bisection; in more dimensions a step
        that does not reduce the distance is halved.

        Raises
        ------
        ArithmeticError : some place is reached from no label, as where characteristics have crossed.
        """
        if self.moving.frame == "eulerian":
            return points.labels
        if self.displacement is not None:
            return self._inverted(points)
        key = (points.labels, points.times, points.rows, points.row_of)  # the weights do not move these frames
        return self.moving.keep("labels", key, lambda: self._inverted(points))

    def _inverted(self, points: Points) -> torch.Tensor:
        target = points.labels
        with torch.no_grad():
            solve = _on_line if self.ndim == 1 else _in_space
            start = self.moving.first_labels(points)
            labels, gap = solve(lambda X: self.place(points.at(X)), target, start)
            scale = max(1.0, float(target.abs().max()))
            if not float(gap) <= max(1e-9, 1e4 * torch.finfo(target.dtype).eps) * scale:
                J, t, label = self.min_jacobian(points.at(labels))
                raise ArithmeticError(
                    f"Some places have no label (distance {float(gap):.2g}); the smallest J is {J:.2g} at t = {t:.3g}, "
                    f"label {label}. Take frame='limited', or a shorter time."
                )
        return labels

    def values_at(self, points: Points) -> torch.Tensor:
        """Return u at the places points.labels, (fields, points), with gradients, those of the inversion included."""
        labels = self.labels_at(points)
        if self.displacement is not None and torch.is_grad_enabled():
            place = self.place(points.at(labels))
            gap = torch.stack([part.value for part in place.x]) - points.labels
            labels = labels - torch.linalg.solve(place.matrix().detach(), gap.T[..., None])[..., 0].T
        return self.unknowns(points.at(self._inside(labels)))[0].value

    @torch.no_grad()
    def state_at(self, points: Points) -> Jet:
        """Return u at the places points.labels as a jet in space, (fields, points), without gradients to weights."""
        there = points.at(self._inside(self.labels_at(points)))
        return self.moving.state_in_space(self.unknowns(there)[0], self.place(there))

    def _inside(self, labels: torch.Tensor) -> torch.Tensor:
        if not self.moving.open_walls:
            return labels
        # Outside the box of labels the solution is what it is at its edge.
        corner, extent = labels.new_tensor(self.origin)[:, None], labels.new_tensor(self.problem.extent)[:, None]
        return torch.minimum(torch.maximum(labels, corner), corner + extent)


def _on_line(
    place: Callable[[torch.Tensor], Place], target: torch.Tensor, start: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    X = target - (place(target).x[0].value - target[0]) if start is None else start
    reach = (X - target).abs() + 1e-3
    low, high = X - reach, X + reach
    for _ in range(60):  # until both ends lie on either side
        below, above = place(low).x[0].value > target[0], place(high).x[0].value < target[0]
        if not bool((below | above).any()):
            break
        reach = reach * 2
        low, high = torch.where(below, X - reach, low), torch.where(above, X + reach, high)
    for _ in range(_MOST_STEPS):
        moved = place(X)
        gap = moved.x[0].value - target[0]
        low, high = torch.where(gap < 0, X, low), torch.where(gap >= 0, X, high)
        step = X - gap / moved.matrix()[:, 0, 0]
        inside = (step > low) & (step < high)
        following = torch.where(inside, step, 0.5 * (low + high))
        eps = 4 * torch.finfo(X.dtype).eps
        close = (following - X).abs() <= eps * (1 + X.abs())
        there = gap.abs() <= 4 * eps * (1 + target[0].abs())
        if bool((close | there).all()):
            break
        X = torch.where(there, X, following)
    return X, (place(X).x[0].value - target[0]).abs().max()


def _in_space(
    place: Callable[[torch.Tensor], Place], target: torch.Tensor, start: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    def distance(X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        moved = place(X)
        return torch.stack([part.value for part in moved.x]) - target, moved.matrix()

    X = target - distance(target)[0] if start is None else start
    gap, F = distance(X)
    damping, enough = torch.ones_like(gap[0]), 16 * torch.finfo(X.dtype).eps * (1 + float(target.abs().max()))
    for _ in range(_MOST_STEPS):
        left = gap.abs().amax(0) > enough
        if not bool((left & (damping >= 1e-3)).any()):
            break
        step = torch.linalg.solve(F, gap.T[..., None])[..., 0].T
        tried = torch.where(left, X - damping * step, X)
        new_gap, new_F = distance(tried)
        better = left & (new_gap.norm(dim=0) < gap.norm(dim=0))
        X, gap = torch.where(better, tried, X), torch.where(better, new_gap, gap)
        F = torch.where(better[:, None, None], new_F, F)
        damping = torch.where(better, (damping * 2).clamp(max=1.0), damping / 2)
    return X, gap.norm(dim=0).max()
