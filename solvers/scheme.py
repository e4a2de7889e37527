"""Time schemes: one object that the solver steps with and that the physics loss takes its residual from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any


class Scheme(ABC):
    """A discretisation in time of du/dt = f(u, t).

    One definition serves two users. The solver calls `step`; a physics loss calls `residual` with
    arrays or tensors of the same shapes. What `step` returns makes `residual` vanish to the solver's tolerance.
    """

    num_old: int
    """How many earlier states a step needs; before that many exist, a step falls back to fewer."""

    order: int
    """Observed order in the time step for smooth solutions."""

    @abstractmethod
    def residual(self, old: Sequence[Any], new: Any, f: Callable[[Any, float], Any], t: float, dt: float) -> Any:
        """Return the defect of the discrete equation, in the units of du/dt.

        old : earlier states, oldest first, the last one at time t; each (fields, *batch, *grid).
        new : the state at t + dt.
        f : the right-hand side, f(u, t) -> same shape.
        """
