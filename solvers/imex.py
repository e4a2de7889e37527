"""Implicit-explicit multistep schemes: the stiff linear part of a case implicitly, the rest explicitly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .scheme import ImplicitSolve, Scheme, SplitFunction


@dataclass(frozen=True, kw_only=True)
class ImexMultistep(Scheme):
    """A linear multistep method with constant steps for du/dt = g(u, t) + N(u, t), as data.

    Σ_j a_j u_{n+1-j} / dt = Σ_j b_j g(u_{n+1-j}) + Σ_{j >= 1} c_j N(u_{n+1-j}),   j = 0 ... num_old

    where g = f.stiff is the case's `stiff` and N = f - g (Ascher, Ruuth and Wetton 1995).

    a, b, c : coefficients, newest first; c_0 is 0.
    start : the scheme of the first steps, while fewer earlier states exist than needed.
    stable_radius : |λ| dt of N that steps chosen by the solver stay below.
    """

    name: str
    order: int
    a: tuple[float, ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    start: ImexMultistep | None = None
    stable_radius: float
    implicit: bool = True
    splits: bool = True

    @property
    def num_old(self) -> int:  # type: ignore[override]
        """Earlier states in the formula."""
        return len(self.a) - 1

    def residual(self, old: Sequence[Any], new: Any, f: SplitFunction, t: float, dt: float) -> Any:
        """Return the left side minus the right side, with the starting scheme where `old` is short."""
        scheme = self._for(old)
        return new * (scheme.a[0] / dt) - scheme.b[0] * f.stiff(new, t + dt) + scheme._known(old, f, t, dt)

    def step(
        self, old: Sequence[Any], f: SplitFunction, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return the solution of the implicit equation; `solve` is for g in place of f."""
        if solve is None:
            raise ValueError(f"{self.name} is implicit in the stiff part: step needs a solver for its equation.")
        scheme = self._for(old)
        guess = 2 * old[-1] - old[-2] if len(old) > 1 else old[-1]
        return solve(scheme.a[0] / dt, scheme.b[0], scheme._known(old, f, t, dt), t + dt, guess)

    def _for(self, old: Sequence[Any]) -> ImexMultistep:
        if self.num_old <= len(old):
            return self
        if self.start is None:
            raise ValueError(f"{self.name} needs {self.num_old} earlier states, got {len(old)}.")
        return self.start._for(old)

    def _known(self, old: Sequence[Any], f: SplitFunction, t: float, dt: float) -> Any:
        """Return the part of the equation that does not depend on the new state."""
        known = None
        for j in range(1, self.num_old + 1):
            u, time = old[-j], t - (j - 1) * dt
            term = u * (self.a[j] / dt)
            if self.c[j]:
                term = term - self.c[j] * f(u, time)
            # b g + c N = c f + (b - c) g
            if self.b[j] != self.c[j]:
                term = term - (self.b[j] - self.c[j]) * f.stiff(u, time)
            known = term if known is None else known + term
        return known


IMEX_EULER = ImexMultistep(
    name="IMEX Euler", order=1, a=(1.0, -1.0), b=(1.0, 0.0), c=(0.0, 1.0), stable_radius=0.5
)  # fmt: skip
"""u_{n+1} - u_n = dt (g(u_{n+1}) + N(u_n))."""

CNAB2 = ImexMultistep(
    name="CNAB2", order=2, a=(1.0, -1.0, 0.0), b=(0.5, 0.5, 0.0), c=(0.0, 1.5, -0.5), start=IMEX_EULER,
    stable_radius=0.4,
)  # fmt: skip
"""Crank-Nicolson for the stiff part, Adams-Bashforth 2 for the rest."""

SBDF2 = ImexMultistep(
    name="SBDF2", order=2, a=(1.5, -2.0, 0.5), b=(1.0, 0.0, 0.0), c=(0.0, 2.0, -1.0), start=IMEX_EULER,
    stable_radius=0.4,
)  # fmt: skip
"""BDF2 for the stiff part, extrapolation for the rest; damps stiff components strongly."""

ALL_IMEX = (IMEX_EULER, CNAB2, SBDF2)
