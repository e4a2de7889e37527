"""A PDE in a frame that moves: labels X, places x(X, t), and the residual of a case's own right-hand side there.

    x = X + b t + S(t) (v0(X) - b)              eulerian: x = X; galilean: S = 0; limited: S = (1 - e^(-rt)) / r
    x = ... + g(t) δ(X, t)                      lagrangian: δ, a network's, makes ∂x/∂t the flow's velocity v
    ∂x/∂t = v(x, t)                             traced: by RK4, where v does not depend on the state (`TracedPaths`)
    u = u0(X) + t/T B(X) υ(X, t)                υ is a network's; B vanishes on walls with given values

v0 is v in the initial state, b its mean over space, and r keeps the Jacobian above a floor: where the flow compresses,
labels gather, and never cross; the lagrangian frame starts from r = 0 where labels do not meet anyway. g is t²/T where
v0 is known exactly, else t. In a later slab of time (`headrace.surrogates.time_slabs`) t counts from its beginning, T
is its length, u0 is the state reached before, and v0 a smooth series close to the velocity then, or the velocity itself
where no state decides it. With F = ∂x/∂X, derivatives in space are those in the label times F^-1, second ones with the
curvature of x taken off. The residual, with w = ∂x/∂t, holds in any frame:

    ∂u/∂t|X - w·∇u = rhs(u)

The frame dial therefore decides how smooth υ is, not what is solved. Following Mojgani, Balajewicz and Hassanzadeh
(CMAME 404, 2023) in the idea; the Jacobian, the hard conditions and the frames between are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headrace.solvers.boundary import Dirichlet, Periodic, sides_of
from headrace.solvers.case import Case
from headrace.solvers.parameters import Parameters

from .box_series import BoxSeries
from .case_on_jets import as_fields, auxiliaries_of, coordinates, flow_of, known_beforehand
from .jet import Jet, constant, pairs
from .jet_operators import JetOperators
from .places import Place, Points
from .traced_paths import TracedPaths

FRAMES = ("auto", "eulerian", "galilean", "limited", "lagrangian", "traced")
_GRID = {1: 256, 2: 32, 3: 12}
"""Labels per axis on which the mean and the compression of v0 are found."""

_AT_REST, _MEETING = 1e-13, 0.995


def _following(jet: Jet, labels: torch.Tensor) -> Jet:
    """Return a jet known without gradients, whose value follows the labels where those have some."""
    if not labels.requires_grad:
        return jet
    shifts = labels - labels.detach()
    value = jet.value + sum(shifts[i] * jet._full(part) for i, part in enumerate(jet.gradient))
    return Jet(value, jet.gradient, jet.hessian, jet.order, jet.components)


class MovingFrame:
    """What a case says about a frame: where labels go, the initial state there, and the residual.

    frame : one of `FRAMES`; "auto" is limited where the case has a flow, else eulerian.
    floor : of the Jacobian in the limited frame.
    open_walls : labels pass walls freely, right where the solution is 0 or constant near them; else they stay inside.
    begins, length : of the slab of time it is for; the whole duration unless told otherwise.
    start : points -> the state at `begins` in space, a jet without gradients to weights; None takes the case's own.
    """

    def __init__(
        self, case: Case, *, frame: str = "auto", floor: float = 0.1, open_walls: bool = False, begins: float = 0.0,
        length: float | None = None, start: Callable[[Points], Jet] | None = None,
    ) -> None:  # fmt: skip
        if case.rhs is None:
            raise ValueError(f"Case {case.name} has a solver of its own and no rhs; a Lagrangian PINN needs rhs.")
        if case.seeds:
            raise ValueError(f"Case {case.name} starts from random states (seed {case.seeds[0]}); a network with hard "
                             "initial conditions needs them as a formula in x and p.")  # fmt: skip
        self.case = case
        self.flow, self._relative = flow_of(case)
        self.auxiliaries, self._velocity_known = auxiliaries_of(case, self.flow)
        if frame == "auto":
            frame = "limited" if self.flow is not None and self._velocity_known else "eulerian"
        if frame != "eulerian" and self.flow is None:
            raise ValueError(
                f"Case {case.name} does not say how its frame moves: write d.advect(v, u) in rhs, declare "
                "frame_velocity, or take frame='eulerian'."
            )
        if frame in ("galilean", "limited") and not self._velocity_known:
            raise ValueError(
                f"Case {case.name}: the {frame} frame sets out with the velocity at the start, which here comes from "
                "d.inverse_laplacian and is not known before training. Take frame='lagrangian' or 'eulerian'."
            )
        # Else nobody asks: at the start the state is known anyway.
        asked = self.flow is not None and (frame == "traced" or start is not None)
        self._beforehand = asked and known_beforehand(case, self.flow)
        if frame == "traced" and not self._beforehand:
            raise ValueError(
                f"Case {case.name}: the traced frame follows a velocity of d.x, p and t alone, without operators; here "
                "it depends on the state, or on derivatives. Take frame='lagrangian' or 'limited'."
            )
        if self.auxiliaries and open_walls:
            raise ValueError(f"Case {case.name}: d.inverse_laplacian needs walls that labels do not pass; take "
                             "open_walls=False.")  # fmt: skip
        self.frame, self.floor, self.open_walls = frame, floor, open_walls
        self.begins, self.length = begins, case.duration if length is None else length
        self._start = start
        self._exact = self._velocity_known and (start is None or self._beforehand)
        self._paths = TracedPaths(case, self.flow, self._cutoff) if frame == "traced" else None
        self._kept: dict[str, tuple[Any, ...]] = {}
        self._series = BoxSeries(case.grid, case.periodic)
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

    @property
    def recordable(self) -> bool:
        """Whether residuals depend on no values on the host, so that a GPU may replay them as a CUDA graph."""
        return self._start is None

    def prepared(self, points: Points) -> Points:
        """Return the points with their places, where those cost much and do not depend on weights."""
        if self.frame != "traced" or points.place is not None:
            return points
        return replace(points, place=self.place(points).numbers())

    def elapsed(self, points: Points) -> torch.Tensor:
        """Return the time since the slab began, as a share of its length, (points,)."""
        return (points.times - self.begins) / self.length

    def initial(self, points: Points) -> Jet:
        """Return u0(X), (fields, points)."""
        if self._start is not None:  # asked for in every step, but a function of the points alone
            key = (points.labels, points.times, points.rows, points.row_of)
            return _following(self.keep("initial", key, lambda: self._start(points)), points.labels)
        x = coordinates(points.labels)
        p, _ = self._scalars(points)
        return as_fields(self.case.initial(x, p, np.random.default_rng(0)), x[0])

    def initial_velocity(self, points: Points) -> list[Jet]:
        """Return v0(X), one jet per axis, zero across walls."""
        # The frame may be any: where parameters are sought it keeps those of the rows.
        points = points.of_rows()
        if not self._velocity_known:
            return [part * 0 for part in coordinates(points.labels)]
        if self._exact:
            velocity = self._velocity_at_start(points)
        else:
            series = self.keep("velocity", (points.rows,), lambda: self._velocity_series(points.rows))
            velocity = [_following(self._series.jet(part, points.labels, points.row_of), points.labels)
                        for part in series]  # fmt: skip
        x = coordinates(points.labels)
        return [part * self._cutoff(x, axis) for axis, part in enumerate(velocity)]

    @torch.no_grad()
    def meeting(self, points: Points) -> tuple[float, tuple[float, ...]]:
        """Return after how long labels would meet if all kept the velocity they start with, and which."""
        if not self._velocity_known:
            return math.inf, ()
        x = coordinates(points.labels)
        velocity = [part * self._cutoff(x, axis) for axis, part in enumerate(self._velocity_at_start(points))]
        slopes = torch.stack([torch.stack([part._full(g) for g in part.gradient], 1) for part in velocity], 1)
        # J = det(1 + t ∇v0) vanishes at -1/λ; pairs of complex λ turn labels about each other, and keep J up.
        rates = torch.linalg.eigvals(slopes)
        closing = torch.where(rates.imag.abs() < 0.5 * rates.real.abs(), -rates.real, -math.inf).amax(1)
        first = int(closing.argmax())
        return 1 / max(float(closing[first]), 1e-300), tuple(points.labels[:, first].tolist())

    def _velocity_at_start(self, points: Points) -> list[Jet]:
        start = replace(points, times=torch.full_like(points.times, self.begins))
        x, (p, t) = coordinates(points.labels), self._scalars(start)
        zero = x[0] * 0
        state = as_fields([zero] * len(self.case.fields), x[0]) if self._beforehand else self.initial(points)
        return [zero + part for part in self.flow(state, JetOperators(x), p, t)]

    @torch.no_grad()
    def _velocity_series(self, rows: torch.Tensor) -> list[torch.Tensor]:
        # Not the velocity itself: each would ask for the labels of the slab before, and so on, times over.
        velocity = self._velocity_at_start(self.for_each(rows, self._series.nodes(rows)))
        return [self._series.fit(part.value.reshape(len(rows), -1)) for part in velocity]

    def for_each(self, rows: torch.Tensor, labels: torch.Tensor) -> Points:
        """Return the same labels for every row, at the beginning."""
        count, each = len(rows), labels.shape[1]
        return Points(
            labels=labels.repeat(1, count), times=labels.new_full((count * each,), self.begins), rows=rows,
            row_of=torch.arange(count, device=rows.device).repeat_interleave(each),
        )  # fmt: skip

    def keep(self, name: str, tensors: tuple[torch.Tensor, ...], make: Callable[[], Any]) -> Any:
        """Return what `make` gives, made once for the same tensors with the same values."""
        if tensors[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return make()  # a replay must compute it from the tensors it is given
        known, versions = self._kept.get(name), [part._version for part in tensors]
        same = known is not None and all(a is b for a, b in zip(known[0], tensors, strict=True))
        if not same or known[1] != versions:
            known = self._kept[name] = (tensors, versions, make())
        return known[2]

    def _cutoff(self, x: tuple[Jet, ...], axis: int) -> Jet | float:
        if self.case.periodic[axis] or self.open_walls:
            return 1.0
        s = (x[axis] - self.case.grid.origin[axis]) / self.case.grid.extent[axis]
        return 4.0 * s * (1.0 - s)

    def walls(self, labels: torch.Tensor) -> list[Jet | float]:
        """Return B(X) of each field: 0 on walls with given values, 1 without walls."""
        x = coordinates(labels)
        result: list[Jet | float] = []
        for sides in self._sides.values():
            factor: Jet | float = 1.0
            for axis, (low, _) in enumerate(sides):
                if isinstance(low, Dirichlet):
                    s = (x[axis] - self.case.grid.origin[axis]) / self.case.grid.extent[axis]
                    factor = 4.0 * s * (1.0 - s) * factor
            result.append(factor)
        return result

    def bulk(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return b (rows, ndim) and the rate r (rows,) of the limited frame."""
        return self.keep("bulk", (rows,), lambda: self._bulk(rows))

    def _even(self, rows: torch.Tensor) -> Points:
        """Return labels in even rows and columns, for every row, at the beginning."""
        grid = self.case.grid
        axes = [grid.origin[i] + (torch.arange(_GRID[self.ndim], dtype=rows.dtype, device=rows.device) + 0.5)
                * (grid.extent[i] / _GRID[self.ndim]) for i in range(self.ndim)]  # fmt: skip
        return self.for_each(rows, torch.stack([a.reshape(-1) for a in torch.meshgrid(*axes, indexing="ij")]))

    @torch.no_grad()
    def _bulk(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points, count = self._even(rows), len(rows)
        labels, each = points.labels, points.labels.shape[1] // count
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
        x, t = coordinates(points.labels), points.times - self.begins
        if self.frame == "eulerian":
            return Place(x=x, velocity=torch.zeros_like(points.labels))
        tensors = (points.labels, points.times, points.rows, points.row_of)
        if points.place is not None:
            return Place.of_numbers(points.place, self.ndim)
        if self.frame == "traced":
            return self.keep("traced", tensors, lambda: self._traced(points))
        if torch.is_grad_enabled() and any(part.requires_grad for part in tensors):
            moved, velocity = self._as_it_sets_out(points)
        else:  # asked for in every step, but a function of the points alone
            moved, velocity = self.keep("base", tensors, lambda: self._as_it_sets_out(points))
        if displacement is None:
            return Place(x=moved, velocity=velocity)
        delta, slope = displacement
        T = self.length
        factor, its_slope = (t * t / T, 2 * t / T) if self._exact else (t, torch.ones_like(t))
        cut = [self._cutoff(x, axis) for axis in range(self.ndim)]
        moved = [a + (b * c).mapped(lambda part: part * factor)
                 for a, b, c in zip(moved, delta, cut, strict=True)]  # fmt: skip
        walls = [c.value if isinstance(c, Jet) else c for c in cut]
        further = [f * (its_slope * b.value + factor * r) for f, b, r in zip(walls, delta, slope, strict=True)]
        return Place(x=tuple(moved), velocity=velocity + torch.stack(further))

    def _as_it_sets_out(self, points: Points) -> tuple[tuple[Jet, ...], torch.Tensor]:
        """Return places, and ∂x/∂t (ndim, points), without a displacement."""
        x, t = coordinates(points.labels), points.times - self.begins
        mean, rate = (part[points.row_of] for part in self.bulk(points.rows))
        if self.frame == "galilean":
            return tuple(a + constant(mean[:, i] * t, self.ndim) for i, a in enumerate(x)), mean.T
        if self.frame == "lagrangian":  # labels that do not meet within the duration go on as they set out
            near = rate * (1 - self.floor) * self.length < _MEETING
            rate = torch.where(near, torch.full_like(rate, _AT_REST), rate)
        S, decay = -torch.expm1(-rate * t) / rate, torch.exp(-rate * t)
        v0 = self.initial_velocity(points)
        moved = tuple(a + v.mapped(lambda part: part * S) + constant(mean[:, i] * (t - S), self.ndim)
                      for i, (a, v) in enumerate(zip(x, v0, strict=True)))  # fmt: skip
        velocity = torch.stack([mean[:, i] + decay * (v.value - mean[:, i]) for i, v in enumerate(v0)])
        return moved, velocity

    def first_labels(self, points: Points) -> torch.Tensor | None:
        """Return labels that are close to those at the places points.labels, or None where no path tells them."""
        if self._paths is None:
            return None
        return self._paths.labels(points, self.begins, self._steps(points.rows))

    def _traced(self, points: Points) -> Place:
        x, velocity = self._paths.places(points, self.begins, self._steps(points.rows))
        return Place(x=x, velocity=velocity)

    def _steps(self, rows: torch.Tensor) -> int:
        return self.keep("steps", (rows,), lambda: self._paths.steps(self._even(rows), self.length))

    # --- in space

    def state_in_space(self, u: Jet, place: Place) -> Jet:
        """Return a jet in the label as the jet in space: g F^-1, F^-T (H - Σ g_k ∂²x_k) F^-1."""
        if self.frame == "eulerian":
            return u
        inverse = place.inverse()
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
        return Jet(u.value, gradient, hessian, 2, u.components)

    def residual(
        self, points: Points, u: Jet, rate: torch.Tensor, place: Place, auxiliary: Sequence[Jet] = ()
    ) -> torch.Tensor:
        """Return ∂u/∂t|X - w·∇u - rhs(u), (equations, points).

        Below it in the lagrangian frame w - v, and below that what auxiliary unknowns lack of their equations.

        u : in the label. rate : ∂u/∂t at fixed label, (fields, points). auxiliary : in the label, one jet each.
        """
        p, t = self._scalars(points)
        state = self.state_in_space(u, place)
        x = coordinates(torch.stack([part.value for part in place.x]))
        w = list(place.velocity)
        moving = self.frame != "eulerian"
        others = [self.state_in_space(psi, place) for psi in auxiliary]
        d = JetOperators(x, w if moving and self._relative else None, auxiliary=others.__getitem__)
        result = as_fields(self.case.rhs(state, d, p, t), state).value
        residual = rate - result
        if moving and not self._relative:
            residual = residual - sum(a * b for a, b in zip(w, state.gradient, strict=True))
        further = [part[None] for part in d.further]
        if self.frame != "lagrangian":
            return torch.cat((residual, *further))
        v = self.flow(state, JetOperators(x, auxiliary=others.__getitem__), p, t)
        cut = [self._cutoff(coordinates(points.labels), axis) for axis in range(self.ndim)]
        zero = constant(torch.zeros_like(points.times), self.ndim)
        gap = torch.stack([a - ((zero + b) * c).value for a, b, c in zip(w, v, cut, strict=True)])
        return torch.cat((residual, gap, *further))
