"""How far a state is from solving one step of a case's own discrete equation: what a physics loss minimises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .case import Case
from .parameters import Parameters
from .right_hand_side import TensorRightHandSide
from .scheme import CRANK_NICOLSON

Correction = Callable[[Any, Any, Any, float, Any], Any]
"""(old, new, t, dt, rows) -> error of new: tensors (batch, fields, *grid) at t (batch,) and t + dt, parameters
(batch, parameters) in the case's order -> (batch, fields, *grid)."""


def step_correction(case: Case) -> Correction:
    """Return the error of a new state as far as the defect of one step tells it, in the units of the state.

    A case with a `correction` of its own gives that. Of a right-hand side it is dt times the residual of the case's
    scheme, where that is implicit and takes one old state, else of Crank-Nicolson's, with gradients to both states.

    Raises
    ------
    ValueError : the case has a solver of its own and no `correction`.
    """
    if case.correction is not None:
        own = case.correction(case)

        def corrected(old: Any, new: Any, t: Any, dt: float, rows: Any) -> Any:
            columns = rows.to(old).reshape(len(rows), -1, *(1,) * (1 + case.grid.ndim)).unbind(1)
            return own(old, new, t, dt, Parameters(dict(zip(case.parameters, columns, strict=True))))

        return corrected
    if case.rhs is None:
        raise ValueError(
            f"Case {case.name} has a solver of its own and does not say what the defect of a step is: nothing can be "
            "trained on its equation. Give it correction=..., or take a case with rhs."
        )
    scheme = case.scheme if case.scheme is not None and case.scheme.implicit and case.scheme.num_old == 1 else None
    scheme = CRANK_NICOLSON if scheme is None or scheme.splits else scheme

    def of_scheme(old: Any, new: Any, t: Any, dt: float, rows: Any) -> Any:
        f = TensorRightHandSide(case, rows)
        fields_first = (old.transpose(0, 1), new.transpose(0, 1))
        return dt * scheme.residual([fields_first[0]], fields_first[1], f, t, dt).transpose(0, 1)

    return of_scheme
