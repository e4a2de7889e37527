"""What the functions of a case say at scattered points: its flow, and which unknowns it needs beside its fields."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from headrace.solvers.boundary import Dirichlet, sides_of
from headrace.solvers.case import Case
from headrace.solvers.parameters import Parameters

from .jet import Jet, constant, pairs, stacked
from .jet_operators import FlowTold, JetOperators


def flow_of(case: Case) -> tuple[Any, bool]:
    """Return the velocity function (u, d, p, t) of a case's flow, or None, and whether d.advect carries all of it.

    `case.frame_velocity` counts where it is declared; else the velocity of the first d.advect is taken, if a check on a
    random state shows that the right-hand side is -v·∇u of every field and something that advects nothing.
    """

    def recorded(u: Jet, d: JetOperators, p: Any, t: Any) -> Any:
        d.advected.clear()
        d.only_flow = True
        with suppress(FlowTold):
            case.rhs(u, d, p, t)
        d.only_flow = False
        return d.advected[0][0]

    u, x, p, t, others = _random_state(case)
    whole = JetOperators(x, auxiliary=others)
    without = JetOperators(x, without_advection=True, auxiliary=others)
    full = as_fields(case.rhs(u, whole, p, t), u).value
    if not whole.advected:
        return case.frame_velocity, False
    rest = as_fields(case.rhs(u, without, p, t), u).value
    v = whole.advected[0][0]
    carried = as_fields(JetOperators(x).advect(v, u), u).value
    accepted = bool(((full + carried - rest).abs() < 1e-9 * (1 + full.abs())).all())
    if case.frame_velocity is not None:
        same = case.frame_velocity(u, whole, p, t)
        zero = constant(torch.zeros(_POINTS).double(), case.grid.ndim)
        gap = max(float(torch.max(torch.abs((zero + a - b).value)))
                  for a, b in zip(same, v, strict=True))  # fmt: skip
        return case.frame_velocity, accepted and gap < 1e-12
    return (recorded if accepted else None), accepted


def auxiliaries_of(case: Case, flow: Callable[..., Any] | None) -> tuple[int, bool]:
    """Return how many auxiliary outputs `case.rhs` needs, and whether the flow can be told from the state alone.

    Raises
    ------
    ValueError : the right-hand side needs the value of an inverse Laplacian that only its derivatives fix.
    """
    u, x, p, t, others = _random_state(case)
    d = JetOperators(x, auxiliary=others)
    found = as_fields(case.rhs(u, d, p, t), u).value
    count = len(d.further)
    if not count:
        return 0, True
    first = sides_of(case.boundary, case.fields, case.grid)[case.fields[0]]
    if not any(isinstance(low, Dirichlet) for low, _ in first):
        raised = as_fields(case.rhs(u, JetOperators(x, auxiliary=lambda k: others(k) + 1.0), p, t), u).value
        if not torch.allclose(raised, found, rtol=1e-9, atol=1e-9):
            raise ValueError(
                f"Case {case.name} uses the value of d.inverse_laplacian, which periodic sides leave free up to a "
                "constant that scattered points do not know. Only its derivatives (d.grad, d.curl) can be used."
            )
    if flow is None:
        return count, True
    parts = [[np.add(0 * x[0], part).value for part in flow(u, JetOperators(x, auxiliary=of), p, t)]
             for of in (others, lambda k: 2 * others(k))]  # fmt: skip
    return count, all(torch.allclose(a, b) for a, b in zip(*parts, strict=True))


def known_beforehand(case: Case, flow: Callable[..., Any]) -> bool:
    """Return whether a flow is the same for every state and auxiliary unknown, with two derivatives in space."""
    u, x, p, t, others = _random_state(case)
    zero = constant(torch.zeros(_POINTS).double(), case.grid.ndim)
    parts = [[zero + part for part in flow(state, JetOperators(x, auxiliary=of), p, t)]
             for state, of in ((u, others), (2.0 * u, lambda k: 2 * others(k)))]  # fmt: skip
    return all(a.order == 2 and torch.equal(a.value, b.value) for a, b in zip(*parts, strict=True))


_POINTS = 7


def _random_state(case: Case) -> tuple[Jet, tuple[Jet, ...], Parameters, Jet, Callable[[int], Jet]]:
    """Return u, x, p, t and auxiliary unknowns by number, all random and the same every time."""
    ndim, fields = case.grid.ndim, len(case.fields)

    def jet(seed: int, *shape: int) -> Jet:
        random = torch.Generator().manual_seed(seed)

        def draw() -> torch.Tensor:
            return torch.rand(*shape, _POINTS, generator=random, dtype=torch.float64) + 0.5

        return Jet(draw(), [draw() for _ in range(ndim)], {k: draw() for k in pairs(ndim)}, 2, bool(shape))

    x = coordinates(torch.stack([jet(1 + axis).value for axis in range(ndim)]))
    # Not their medians: two that are equal there could take each other's place.
    unit = torch.rand(len(case.parameters), generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    values = case.draw(unit.tolist()).items()
    p = Parameters({name: constant(torch.full((_POINTS,), float(v)).double(), ndim) for name, v in values})
    return jet(0, fields), x, p, constant(jet(9).value, ndim), lambda number: jet(10 + number)


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


def coordinates(values: torch.Tensor) -> tuple[Jet, ...]:
    """Return x, one jet per axis, from its values (ndim, points)."""
    ndim = len(values)
    zero = dict.fromkeys(pairs(ndim))
    return tuple(Jet(values[i], [1.0 if i == j else None for j in range(ndim)], dict(zero)) for i in range(ndim))
