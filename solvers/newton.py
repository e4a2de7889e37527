"""Matrix-free Newton-Krylov for the equation of one implicit step, on distributed vectors.

    F(u) = sigma·u - beta·f(u, t) + known = 0

Products with the Jacobian are differences of f; the linear systems are solved by preconditioned GMRES
(Knoll and Keyes 2004).
"""

from __future__ import annotations

import math

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
        self._gmres = Gmres(blocks, points, max_krylov)
        self._stale, self._cost = True, math.inf
        self._equation = (math.nan, math.nan)
        self.newton_iterations = 0
        self.krylov_iterations = 0

    def solve(self, sigma: float, beta: float, known: np.ndarray, t: float, guess: np.ndarray) -> np.ndarray:
        """Return u with sigma·u - beta·f(u, t) + known = 0. Collective.

        Raises
        ------
        DivergenceError : no solution within the iterations allowed.
        """
        u = guess
        fu = self._f(u, t)
        F = sigma * u - beta * fu + known
        norm_F, norm_u = self._norms(F, u)
        for _ in range(self._max_newton):
            if not math.isfinite(norm_F):
                raise DivergenceError(f"field {self._worst_field(F)} is no longer finite at t = {t:.6g}")
            target = self._tolerance * sigma * norm_u
            if norm_F <= target:
                return u
            # A state of zero has no scale of its own; the correction that it needs has one.
            scale = max(norm_u, norm_F / sigma)
            if self._stale or self._equation != (sigma, beta):
                self._refresh(u, fu, t, (sigma, beta, scale))
            step = _DIFFERENCE * scale * sigma
            # As exact as the target asks for, but not beyond what one Newton step gains on a nonlinear equation.
            relative = min(max(0.3 * target / norm_F, _MOST_GAIN), 0.1)
            correction = self._correction(u, fu, F, t, (sigma, beta, step, relative))
            u, fu, F, (norm_F, norm_u) = self._damped(u, correction, t, (sigma, beta, known, norm_F))
            self.newton_iterations += 1
        raise DivergenceError(
            f"Newton's method did not converge at t = {t:.6g}: residual {norm_F:.3g}, most of it in field "
            f"{self._worst_field(F)}, after {self._max_newton} iterations; {target:.3g} is needed. More "
            "steps_per_snapshot may help"
        )

    def _correction(
        self, u: np.ndarray, fu: np.ndarray, F: np.ndarray, t: float, equation: tuple[float, float, float, float]
    ) -> np.ndarray:
        """Return the Newton correction -F'(u)^-1 F, to a relative residual."""
        sigma, beta, step, relative = equation
        shape = u.shape

        def apply(v: np.ndarray) -> np.ndarray:
            # v has norm 1; preconditioned vectors are about 1 / sigma long.
            z = self._preconditioner(v.reshape(shape), sigma)
            product = sigma * z - (beta / step) * (self._f(u + step * z, t) - fu)
            return product.ravel()

        x, iterations = self._gmres.solve(apply, -F.ravel(), relative)
        self.krylov_iterations += iterations
        # The coefficients drift: estimate them again when a decimal costs half as many iterations more as at first.
        cost = iterations / -math.log10(relative)
        self._cost = min(self._cost, cost)
        self._stale = cost > 1.5 * self._cost
        return self._preconditioner(x.reshape(shape), sigma)

    def _refresh(self, u: np.ndarray, fu: np.ndarray, t: float, equation: tuple[float, float, float]) -> None:
        sigma, beta, scale = equation
        self._equation, self._cost = (sigma, beta), math.inf
        step = _DIFFERENCE * scale / math.sqrt(math.prod(self._blocks.grid_shape))
        self._preconditioner.refresh(lambda v: (self._f(u + step * v, t) - fu) / step, sigma, beta, u.shape)

    def _damped(
        self, u: np.ndarray, correction: np.ndarray, t: float, equation: tuple[float, float, np.ndarray, float]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[float, float]]:
        """Return the state after the correction, halved until the residual does not grow, with f, F and norms there."""
        sigma, beta, known, norm_before = equation
        for halving in range(6):
            trial = u + correction * 0.5**halving
            f_trial = self._f(trial, t)
            F = sigma * trial - beta * f_trial + known
            norms = self._norms(F, trial)
            if norms[0] < norm_before:
                break
        return trial, f_trial, F, norms

    def _worst_field(self, F: np.ndarray) -> str:
        squares = self._blocks.sum(np.array([np.vdot(part, part) for part in F]))
        return self._fields[int(np.argmax(np.where(np.isfinite(squares), squares, np.inf)))]

    def _norms(self, F: np.ndarray, u: np.ndarray) -> tuple[float, float]:
        squares = self._blocks.sum(np.array([np.vdot(F, F), np.vdot(u, u)]))
        return math.sqrt(squares[0]), math.sqrt(squares[1])
