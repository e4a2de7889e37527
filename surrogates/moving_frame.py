"""A PDE in a frame that moves: labels X, places x(X, t), and the residual of a case's own right-hand side there.

    x = X + b t + S(t) (v0(X) - b)              eulerian: x = X; galilean: S = 0; limited: S = (1 - e^(-rt)) / r
    x = ... + t²/T δ(X, t)                      lagrangian: δ, a network's, makes ∂x/∂t the flow's velocity v
    u = u0(X) + t/T B(X) υ(X, t)                υ is a network's; B vanishes on walls with given values

v0 is v in the initial state, b its mean over space, and r keeps the Jacobian above a floor: where the flow compresses,
labels gather, and never cross; the lagrangian frame starts from r = 0 where labels do not meet anyway. With
F = ∂x/∂X, derivatives in space are those in the label times F^-1, second ones with the curvature of x taken off. The
residual, with w = ∂x/∂t, holds in any frame:

    ∂u/∂t|X - w·∇u = rhs(u)

The frame dial therefore decides how smooth υ is, not what is solved. Following Mojgani, Balajewicz and Hassanzadeh
(CMAME 404, 2023) in the idea; the Jacobian, the hard conditions and the frames between are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from headrace.solvers.boundary import Dirichlet, Periodic, sides_of
from headrace.solvers.case import Case
from headrace.solvers.parameters import Parameters

from .jet import Jet, constant, pairs, stacked
from .jet_operators import JetOperators

FRAMES = ("auto", "eulerian", "galilean", "limited", "lagrangian")
_GRID = {1: 256, 2: 32, 3: 12}
"""Labels per axis on which the mean and the compression of v0 are found."""

_AT_REST, _MEETING = 1e-13, 0.95


@dataclass(frozen=True, kw_only=True)
class Points:
    """Labels and times, each with a row of parameters.

    labels : (ndim, points). times : (points,). rows : (rows, parameters). row_of : (points,), whole numbers.
    values : (points, parameters), the parameters in the equation where they differ from those of the frame, as where
        they are sought; None takes those of the rows.
    """

    labels: torch.Tensor
    times: torch.Tensor
    rows: torch.Tensor
    row_of: torch.Tensor
    values: torch.Tensor | None = None

    def at(self, labels: torch.Tensor) -> Points:
        """Return the same times and parameters at other labels."""
        return replace(self, labels=labels)

    def of_rows(self) -> Points:
        """Return the same points with the parameters of the rows."""
        return replace(self, values=None)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where labels are: x as one jet per axis, in the label; velocity ∂x/∂t (ndim, points)."""

    x: tuple[Jet, ...]
    velocity: torch.Tensor

    def matrix(self) -> torch.Tensor:
        """Return F = ∂x/∂X, (points, ndim, ndim), row = component of x."""
        zero = torch.zeros_like(self.x[0].value)
        return torch.stack(
            [torch.stack([zero + (0.0 if g is None else g) for g in part.gradient]) for part in self.x]
        ).movedim(2, 0)

    def jacobian(self) -> torch.Tensor:
        """Return J = det F, (points,)."""
        return torch.linalg.det(self.matrix())


def flow_of(case: Case) -> tuple[Any, bool]:
    """Return the velocity function (u, d, p, t) of a case's flow, or None, and whether d.advect carries all of it.

    `case.frame_velocity` counts where it is declared; else the velocity of the first d.advect is taken, if a check on a
    random state shows that the right-hand side is -v·∇u of every field and something that advects nothing.
    """

    def recorded(u: Jet, d: JetOperators, p: Any, t: Any) -> Any:
        d.advected.clear()
        case.rhs(u, d, p, t)
        return d.advected[0][0]

    ndim, fields = case.grid.ndim, len(case.fields)
    random = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64) + 0.5

    u = Jet(draw(fields, 7), [draw(fields, 7) for _ in range(ndim)], {k: draw(fields, 7) for k in pairs(ndim)}, 2, True)
    x = _coordinates(torch.stack([draw(7) for _ in range(ndim)]))
    p = Parameters({name: constant(torch.full((7,), v).double(), ndim) for name, v in case.accept({}).items()})
    t = constant(draw(7), ndim)
    whole, without = JetOperators(x), JetOperators(x, without_advection=True)
    full = as_fields(case.rhs(u, whole, p, t), u).value
    if not whole.advected:
        return case.frame_velocity, False
    rest = as_fields(case.rhs(u, without, p, t), u).value
    v = whole.advected[0][0]
    carried = as_fields(JetOperators(x).advect(v, u), u).value
    accepted = bool(((full + carried - rest).abs() < 1e-9 * (1 + full.abs())).all())
    if case.frame_velocity is not None:
        same = case.frame_velocity(u, whole, p, t)
        gap = max(float(torch.max(torch.abs((constant(torch.zeros(7).double(), ndim) + a - b).value)))
                  for a, b in zip(same, v, strict=True))  # fmt: skip
        return case.frame_velocity, accepted and gap < 1e-12
    return (recorded if accepted else None), accepted


def as_fields(result: Any, u: Jet) -> Jet:
    """Return what a right-hand side or an initial state gave as one jet with the components of u."""
    if isinstance(result, Jet) and result.components:
        return result
    parts = list(result) if isinstance(result, tuple | list) else [result]
    single = u[0] if u.components else u
    return stacked([part if isinstance(part, Jet) else _uniform(part, single) for part in parts])


def _uniform(part: Any, like: Jet) -> Jet:
    values = np.unique(np.asarray(part, dtype=np.float64))
    if len(values) != 1:
        raise ValueError("A field met an array of your own; build it from the coordinates, so that it has derivatives.")
    return constant(torch.full_like(like.value, float(values[0])), like.ndim)


def _coordinates(values: torch.Tensor) -> tuple[Jet, ...]:
    ndim = len(values)
    zero = dict.fromkeys(pairs(ndim))
    return tuple(Jet(values[i], [1.0 if i == j else None for j in range(ndim)], dict(zero)) for i in range(ndim))


class MovingFrame:
    """What a case says about a frame: where labels go, the initial state there, and the residual.

    frame : one of `FRAMES`; "auto" is limited where the case has a flow, else eulerian.
    floor : of the Jacobian in the limited frame.
    open_walls : labels pass walls freely, right where the solution is 0 or constant near them; else they stay inside.
    """

    def __init__(self, case: Case, *, frame: str = "auto", floor: float = 0.1, open_walls: bool = False) -> None:
        if case.rhs is None:
            raise ValueError(f"Case {case.name} has a solver of its own and no rhs; a Lagrangian PINN needs rhs.")
        if case.seeds:
            raise ValueError(f"Case {case.name} starts from random states (seed {case.seeds[0]}); a network with hard "
                             "initial conditions needs them as a formula in x and p.")  # fmt: skip
        self.case = case
        self.flow, self._relative = flow_of(case)
        if frame == "auto":
            frame = "eulerian" if self.flow is None else "limited"
        if frame != "eulerian" and self.flow is None:
            raise ValueError(
                f"Case {case.name} does not say how its frame moves: write d.advect(v, u) in rhs, declare "
                "frame_velocity, or take frame='eulerian'."
            )
        self.frame, self.floor, self.open_walls = frame, floor, open_walls
        self.ndim = case.grid.ndim
        self._sides = sides_of(case.boundary, case.fields, case.grid)
        for name, sides in self._sides.items():
            for low, high in sides:
                for side in (low, high):
                    constant_value = isinstance(side, Dirichlet) and not callable(side.value)
                    if not (constant_value or isinstance(side, Periodic)):
                        raise ValueError(f"Case {case.name}: {side} of field {name} cannot be made exact; periodic "
                                         "sides and constant given values can.")  # fmt: skip

    # --- what the case says, as jets in the label

    def _scalars(self, points: Points) -> tuple[Parameters, Jet]:
        values = points.values if points.values is not None else points.rows[points.row_of]
        columns = values.unbind(1)
        p = {name: constant(c, self.ndim) for name, c in zip(self.case.parameters, columns, strict=True)}
        return Parameters(p), constant(points.times, self.ndim)

    def initial(self, points: Points) -> Jet:
        """Return u0(X), (fields, points)."""
        x = _coordinates(points.labels)
        p, _ = self._scalars(points)
        return as_fields(self.case.initial(x, p, np.random.default_rng(0)), x[0])

    def initial_velocity(self, points: Points) -> list[Jet]:
        """Return v0(X), one jet per axis, zero across walls."""
        # The frame may be any: where parameters are sought it keeps those of the rows.
        points = points.of_rows()
        start = replace(points, times=torch.zeros_like(points.times))
        x, (p, t) = _coordinates(points.labels), self._scalars(start)
        zero = x[0] * 0
        return [(zero + part) * self._cutoff(x, axis)
                for axis, part in enumerate(self.flow(self.initial(points), JetOperators(x), p, t))]  # fmt: skip

    def _cutoff(self, x: tuple[Jet, ...], axis: int) -> Jet | float:
        if self.case.periodic[axis] or self.open_walls:
            return 1.0
        s = (x[axis] - self.case.grid.origin[axis]) / self.case.grid.extent[axis]
        return 4.0 * s * (1.0 - s)

    def walls(self, labels: torch.Tensor) -> list[Jet | float]:
        """Return B(X) of each field: 0 on walls with given values, 1 without walls."""
        x = _coordinates(labels)
        result: list[Jet | float] = []
        for sides in self._sides.values():
            factor: Jet | float = 1.0
            for axis, (low, _) in enumerate(sides):
                if isinstance(low, Dirichlet):
                    s = (x[axis] - self.case.grid.origin[axis]) / self.case.grid.extent[axis]
                    factor = 4.0 * s * (1.0 - s) * factor
            result.append(factor)
        return result

    @torch.no_grad()
    def bulk(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return b (rows, ndim) and the rate r (rows,) of the limited frame."""
        grid = self.case.grid
        axes = [grid.origin[i] + (torch.arange(_GRID[self.ndim], dtype=rows.dtype, device=rows.device) + 0.5)
                * (grid.extent[i] / _GRID[self.ndim]) for i in range(self.ndim)]  # fmt: skip
        labels = torch.stack([a.reshape(-1) for a in torch.meshgrid(*axes, indexing="ij")])
        count, each = len(rows), labels.shape[1]
        points = Points(
            labels=labels.repeat(1, count), times=labels.new_zeros(count * each), rows=rows,
            row_of=torch.arange(count, device=rows.device).repeat_interleave(each),
        )  # fmt: skip
        v = self.initial_velocity(points)
        mean = torch.stack([part.value.reshape(count, each).mean(1) for part in v], 1)
        for axis in range(self.ndim):
            if not self.case.periodic[axis] and not self.open_walls:
                mean[:, axis] = 0
        zero = labels.new_zeros(count * each)
        slopes = torch.stack([zero + (0.0 if g is None else g) for part in v for g in part.gradient])
        if self.ndim == 1:
            rate = (-slopes[0]).reshape(count, each).amax(1)
        else:  # |S| times the norm of ∇v0 below 1 - floor keeps F invertible
            rate = slopes.square().sum(0).sqrt().reshape(count, each).amax(1)
        return mean, rate.clamp(min=_AT_REST) / (1 - self.floor)

    def place(self, points: Points, displacement: tuple[list[Jet], torch.Tensor] | None = None) -> Place:
        """Return where the labels are.

        displacement : δ, one jet per axis, and ∂δ/∂t (ndim, points); in the lagrangian frame only.
        """
        x, t = list(_coordinates(points.labels)), points.times
        if self.frame == "eulerian":
            return Place(x=tuple(x), velocity=torch.zeros_like(points.labels))
        mean, rate = (part[points.row_of] for part in self.bulk(points.rows))
        if self.frame == "galilean":
            moved = tuple(a + constant(mean[:, i] * t, self.ndim) for i, a in enumerate(x))
            return Place(x=moved, velocity=mean.T)
        T = self.case.duration
        if self.frame == "lagrangian":  # labels that do not meet within the duration go on as they set out
            rate = torch.where(rate * (1 - self.floor) * T < _MEETING, torch.full_like(rate, _AT_REST), rate)
        S, decay = -torch.expm1(-rate * t) / rate, torch.exp(-rate * t)
        v0 = self.initial_velocity(points)
        moved = [a + v.mapped(lambda part: part * S) + constant(mean[:, i] * (t - S), self.ndim)
                 for i, (a, v) in enumerate(zip(x, v0, strict=True))]  # fmt: skip
        velocity = torch.stack([mean[:, i] + decay * (v.value - mean[:, i]) for i, v in enumerate(v0)])
        if displacement is None:
            return Place(x=tuple(moved), velocity=velocity)
        delta, slope = displacement
        cut = [self._cutoff(tuple(x), axis) for axis in range(self.ndim)]
        moved = [a + (b * c).mapped(lambda part: part * (t * t / T))
                 for a, b, c in zip(moved, delta, cut, strict=True)]  # fmt: skip
        factors = [c.value if isinstance(c, Jet) else c for c in cut]
        further = [f * (2 * t / T * b.value + t * t / T * r) for f, b, r in zip(factors, delta, slope, strict=True)]
        return Place(x=tuple(moved), velocity=velocity + torch.stack(further))

    # --- in space

    def state_in_space(self, u: Jet, place: Place) -> Jet:
        """Return a jet in the label as the jet in space: g F^-1, F^-T (H - Σ g_k ∂²x_k) F^-1."""
        if self.frame == "eulerian":
            return u
        inverse = torch.linalg.inv(place.matrix()) if self.ndim > 1 else 1 / place.matrix()
        full, axes = u._full, range(self.ndim)
        slopes = [full(g) for g in u.gradient]
        gradient = [sum(slopes[k] * inverse[:, k, i] for k in axes) for i in axes]
        bent = {}
        for key in pairs(self.ndim):
            bent[key] = full(u.hessian[key])
            for k in axes:
                curvature = place.x[k].hessian[key]
                if curvature is not None:
                    bent[key] = bent[key] - gradient[k] * curvature
        hessian = {
            (i, j): sum(inverse[:, k, i] * bent[min(k, m), max(k, m)] * inverse[:, m, j] for k in axes for m in axes)
            for i, j in pairs(self.ndim)
        }
        return Jet(u.value, gradient, hessian, 2, True)

    def residual(self, points: Points, u: Jet, rate: torch.Tensor, place: Place) -> torch.Tensor:
        """Return ∂u/∂t|X - w·∇u - rhs(u), and in the lagrangian frame w - v below it, (equations, points).

        u : in the label. rate : ∂u/∂t at fixed label, (fields, points).
        """
        p, t = self._scalars(points)
        state = self.state_in_space(u, place)
        x = _coordinates(torch.stack([part.value for part in place.x]))
        w = list(place.velocity)
        moving = self.frame != "eulerian"
        d = JetOperators(x, w if moving and self._relative else None)
        result = as_fields(self.case.rhs(state, d, p, t), state).value
        residual = rate - result
        if moving and not self._relative:
            residual = residual - sum(a * b for a, b in zip(w, state.gradient, strict=True))
        if self.frame != "lagrangian":
            return residual
        v = self.flow(state, JetOperators(x), p, t)
        cut = [self._cutoff(_coordinates(points.labels), axis) for axis in range(self.ndim)]
        zero = constant(torch.zeros_like(points.times), self.ndim)
        gap = torch.stack([a - ((zero + b) * c).value for a, b, c in zip(w, v, cut, strict=True)])
        return torch.cat((residual, gap))
