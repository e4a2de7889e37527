"""Matrix-free Newton-Krylov for the equation of one implicit step, on distributed vectors.

    F(u) = sigma·u - beta·f(u, t) + known = 0

Products with the Jacobian are differences of f; the linear systems are solved by preconditioned GMRES
(Knoll and Keyes 2004).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .blocks import Blocks
from .case import Case
from .krylov import Gmres
from .preconditioner import DiffusionPreconditioner
from .right_hand_side import RightHandSide

_DIFFERENCE = 1e-7
"""Relative step of the difference quotient, between the truncation of f and the rounding of float64."""

_MOST_GAIN = 1e-4
"""Reduction of the residual that one linear solve aims at."""


class DivergenceError(RuntimeError):
    """The solution became infinite or not a number, or an implicit step found no solution; the same on every rank."""


@dataclass(frozen=True, kw_only=True)
class _Equation:
    sigma: float
    beta: float
    known: np.ndarray
    t: float


@dataclass(frozen=True, kw_only=True)
class _Iterate:
    """A state with f and F there; norms are Euclidean, over all points of all ranks."""

    u: np.ndarray
    fu: np.ndarray
    F: np.ndarray
    norm_F: float
    norm_u: float

    def scale(self, sigma: float) -> float:
        """Return the size that steps are relative to: a state of zero has none of its own, its correction has one."""
        return max(self.norm_u, self.norm_F / sigma)


class NewtonKrylov:
    """Solves implicit steps to ‖F‖ <= tolerance·sigma·‖u‖, that is to a relative error below tolerance in u.

    tolerance : relative; 1e-10 leaves a trajectory's residual far below any discretisation error.
    """

    def __init__(
        self, case: Case, f: RightHandSide, blocks: Blocks, *, tolerance: float = 1e-10,
        max_newton: int = 25, max_krylov: int = 200,
    ) -> None:  # fmt: skip
        self._fields = case.fields
        self._f = f
        self._blocks = blocks
        self._tolerance = tolerance
        self._max_newton = max_newton
        self._preconditioner = DiffusionPreconditioner(case, blocks)
        points = len(case.fields) * math.prod(blocks.shape)
        # Newton asks for four digits at most: rarely a second pass.
        self._gmres = Gmres(blocks, points, max_krylov, cancellation=1e-3)
        self._stale, self._cost = True, math.inf
        self._refreshed_for = (math.nan, math.nan)
        self.newton_iterations = 0
        self.krylov_iterations = 0

    def solve(self, sigma: float, beta: float, known: np.ndarray, t: float, guess: np.ndarray) -> np.ndarray:
        """Return u with sigma·u - beta·f(u, t) + known = 0. Collective.

        Raises
        ------
        DivergenceError : no solution within the iterations allowed.
        """
        equation = _Equation(sigma=sigma, beta=beta, known=known, t=t)
        now = self._at(equation, guess)
        for _ in range(self._max_newton):
            if not math.isfinite(now.norm_F):
                raise DivergenceError(f"field {self._worst_field(now.F)} is no longer finite at t = {t:.6g}")
            target = self._tolerance * sigma * now.norm_u
            if now.norm_F <= target:
                return now.u
            if self._stale or self._refreshed_for != (sigma, beta):
                self._refresh(equation, now)
            # As exact as the target asks for, but not beyond what one Newton step gains on a nonlinear equation.
            relative = min(max(0.3 * target / now.norm_F, _MOST_GAIN), 0.1)
            now = self._damped(equation, now, self._correction(equation, now, relative))
            self.newton_iterations += 1
        raise DivergenceError(
            f"Newton's method did not converge at t = {t:.6g}: residual {now.norm_F:.3g}, most of it in field "
            f"{self._worst_field(now.F)}, after {self._max_newton} iterations; {target:.3g} is needed. More "
            "steps_per_snapshot may help"
        )

    def _at(self, equation: _Equation, u: np.ndarray) -> _Iterate:
        fu = self._f(u, equation.t)
        F = equation.sigma * u - equation.beta * fu + equation.known
        squares = self._blocks.sum(np.array([np.vdot(F, F), np.vdot(u, u)]))
        return _Iterate(u=u, fu=fu, F=F, norm_F=math.sqrt(squares[0]), norm_u=math.sqrt(squares[1]))

    def _correction(self, equation: _Equation, now: _Iterate, relative: float) -> np.ndarray:
        """Return the Newton correction -F'(u)^-1 F, to a relative residual."""
        sigma, shape = equation.sigma, now.u.shape
        # Basis vectors have norm 1; preconditioned they are about 1 / sigma long.
        step = _DIFFERENCE * now.scale(sigma) * sigma

        def precondition(v: np.ndarray) -> np.ndarray:
            return self._preconditioner(v.reshape(shape), sigma).ravel()

        def apply(z: np.ndarray) -> np.ndarray:
            z = z.reshape(shape)
            return (sigma * z - (equation.beta / step) * (self._f(now.u + step * z, equation.t) - now.fu)).ravel()

        x, iterations = self._gmres.solve(apply, precondition, -now.F.ravel(), norm_b=now.norm_F, relative=relative)
        self.krylov_iterations += iterations
        # The coefficients drift: estimate them again when a decimal costs half as many iterations more as at first.
        cost = iterations / -math.log10(relative)
        self._cost = min(self._cost, cost)
        self._stale = cost > 1.5 * self._cost
        return x.reshape(shape)

    def _refresh(self, equation: _Equation, now: _Iterate) -> None:
        sigma, beta, t = equation.sigma, equation.beta, equation.t
        self._refreshed_for, self._cost = (sigma, beta), math.inf
        step = _DIFFERENCE * now.scale(sigma) / math.sqrt(math.prod(self._blocks.grid_shape))
        self._preconditioner.refresh(lambda v: (self._f(now.u + step * v, t) - now.fu) / step, sigma, beta, now.u.shape)

    def _damped(self, equation: _Equation, now: _Iterate, correction: np.ndarray) -> _Iterate:
        """Return the iterate after the correction, halved until the residual does not grow."""
        for halving in range(6):
            trial = self._at(equation, now.u + correction * 0.5**halving)
            if trial.norm_F < now.norm_F:
                break
        return trial

    def _worst_field(self, F: np.ndarray) -> str:
        squares = self._blocks.sum(np.array([np.vdot(part, part) for part in F]))
        return self._fields[int(np.argmax(np.where(np.isfinite(squares), squares, np.inf)))]
