"""Time schemes: one object that the solver steps with and that the physics loss takes its residual from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

RightHandSideFunction = Callable[[Any, float], Any]
ImplicitSolve = Callable[[float, float, Any, float, Any], Any]


class SplitFunction(Protocol):
    """A right-hand side f(u, t) with its linear part f.stiff(u, t)."""

    stiff: RightHandSideFunction

    def semilinear(self, u: Any) -> Any:
        """Return the linear part in Fourier space, for states of the kind of u."""

    def __call__(self, u: Any, t: float) -> Any:
        """Return f(u, t), the linear part included."""


class Scheme(ABC):
    """A discretisation in time of du/dt = f(u, t).

    One definition serves two users. The solver calls `step`; a physics loss calls `residual` with
    arrays or tensors of the same shapes. What `step` returns makes `residual` vanish to the solver's tolerance.
    """

    num_old: int
    """How many earlier states a step needs; before that many exist, a step falls back to fewer."""

    order: int
    """Observed order in the time step for smooth solutions."""

    implicit: bool
    """Whether a step solves equations, and is stable for any step in return."""

    splits: bool = False
    """Whether the scheme treats the case's stiff part apart; f is then a `SplitFunction`."""

    @abstractmethod
    def residual(self, old: Sequence[Any], new: Any, f: RightHandSideFunction, t: float, dt: float) -> Any:
        """Return the defect of the discrete equation, in the units of du/dt.

        old : earlier states, oldest first, the last one at time t; each (fields, *batch, *grid).
        new : the state at t + dt.
        f : the right-hand side, f(u, t) -> same shape.
        """

    @abstractmethod
    def step(
        self, old: Sequence[Any], f: RightHandSideFunction, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return the state at t + dt. Collective where f is.

        solve : for implicit schemes, solve(sigma, beta, known, time, guess) returns u with
            sigma·u - beta·f(u, time) + known = 0.
        """


@dataclass(frozen=True, kw_only=True)
class LinearMultistep(Scheme):
    """An implicit linear multistep method with constant steps, as data.

    Σ_j a_j u_{n+1-j} / dt = Σ_j b_j f(u_{n+1-j}, t_{n+1-j}),   j = 0 ... num_old

    a, b : coefficients, newest first.
    start : the scheme of the first steps, while fewer earlier states exist than needed. One step of order k
        has a local error O(dt^(k+1)), so that a start of one order less keeps the order.
    """

    name: str
    order: int
    a: tuple[float, ...]
    b: tuple[float, ...]
    start: LinearMultistep | None = None
    implicit: bool = True

    @property
    def num_old(self) -> int:  # type: ignore[override]
        """Earlier states in the formula."""
        return len(self.a) - 1

    def _for(self, old: Sequence[Any]) -> tuple[LinearMultistep, Sequence[Any]]:
        scheme = self
        while scheme.num_old > len(old):
            if scheme.start is None:
                raise ValueError(f"{self.name} needs {self.num_old} earlier states, got {len(old)}.")
            scheme = scheme.start
        return scheme, old[len(old) - scheme.num_old :]

    def _known(self, old: Sequence[Any], f: RightHandSideFunction, t: float, dt: float) -> Any:
        """Return the part of the equation that does not depend on the new state."""
        known = None
        for j, (a, b) in enumerate(zip(self.a[1:], self.b[1:], strict=True)):
            u = old[-1 - j]
            term = u * (a / dt)
            if b:
                term = term - b * f(u, t - j * dt)
            known = term if known is None else known + term
        return known

    def residual(self, old: Sequence[Any], new: Any, f: RightHandSideFunction, t: float, dt: float) -> Any:
        """Return Σ a_j u_{n+1-j} / dt - Σ b_j f(u_{n+1-j}), with the starting scheme where `old` is short."""
        scheme, old = self._for(old)
        return new * (scheme.a[0] / dt) - scheme.b[0] * f(new, t + dt) + scheme._known(old, f, t, dt)

    def step(
        self, old: Sequence[Any], f: RightHandSideFunction, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return the solution of the implicit equation, starting from an extrapolation in time."""
        if solve is None:
            raise ValueError(f"{self.name} is implicit: step needs a solver for its equation.")
        # More old states than the formula needs make a better guess. The step from the initial state is left out:
        # initial and wall data may be incompatible.
        guess = old[-1]
        if len(old) > 3:
            guess = 3 * (old[-1] - old[-2]) + old[-3]
        elif len(old) == 3:
            guess = 2 * old[-1] - old[-2]
        scheme, old = self._for(old)
        return solve(scheme.a[0] / dt, scheme.b[0], scheme._known(old, f, t, dt), t + dt, guess)


@dataclass(frozen=True, kw_only=True)
class TwoStageDiagonal(Scheme):
    """A singly diagonally implicit Runge-Kutta method of two stages whose second stage is the new state.

    v       = u_n + γ dt f(v, t + γ dt)
    u_{n+1} = u_n + (1 - γ) dt f(v, t + γ dt) + γ dt f(u_{n+1}, t + dt)

    The inner stage follows from both ends of a step without solving:
    v = u_n + γ/(1-γ) (u_{n+1} - u_n - γ dt f(u_{n+1})), so that the residual takes no more than the two states.
    """

    name: str
    order: int
    gamma: float
    num_old: int = 1
    implicit: bool = True

    def residual(self, old: Sequence[Any], new: Any, f: RightHandSideFunction, t: float, dt: float) -> Any:
        """Return (u_{n+1} - u_n) / dt - (1 - γ) f(v) - γ f(u_{n+1}), with v from the two states."""
        g, u = self.gamma, old[-1]
        rate = (new - u) * (1 / dt) - g * f(new, t + dt)
        inner = u + (g / (1 - g) * dt) * rate
        return rate - (1 - g) * f(inner, t + g * dt)

    def step(
        self, old: Sequence[Any], f: RightHandSideFunction, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return the solution of the two implicit equations, one after the other."""
        if solve is None:
            raise ValueError(f"{self.name} is implicit: step needs a solver for its equation.")
        g, u = self.gamma, old[-1]
        slope = (u - old[-2]) if len(old) > 2 else 0.0  # not from the first step: see LinearMultistep.step
        inner = solve(1 / dt, g, -u * (1 / dt), t + g * dt, u + g * slope)
        rate = (inner - u) * (1 / (g * dt))
        return solve(1 / dt, g, -u * (1 / dt) - (1 - g) * rate, t + dt, inner + (1 - g) * dt * rate)


@dataclass(frozen=True, kw_only=True)
class RungeKutta(Scheme):
    """An explicit Runge-Kutta method as its Butcher tableau.

    k_i = f(u + dt Σ_j matrix_ij k_j, t + nodes_i dt),   u_{n+1} = u_n + dt Σ_i weights_i k_i

    stable_radius : |λ| dt up to which the method is stable for every λ with Re λ <= 0 that a diffusion-advection
        operator has: the smaller of the extents of its stability region on the negative real and the imaginary
        axis (for methods whose region does not reach along the imaginary axis, a value that damps).
    """

    name: str
    order: int
    nodes: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    stable_radius: float
    num_old: int = 1
    implicit: bool = False

    def residual(self, old: Sequence[Any], new: Any, f: RightHandSideFunction, t: float, dt: float) -> Any:
        """Return (u_{n+1} - step(u_n)) / dt."""
        return (new - self.step(old, f, t, dt)) * (1 / dt)

    def step(
        self, old: Sequence[Any], f: RightHandSideFunction, t: float, dt: float, solve: ImplicitSolve | None = None
    ) -> Any:
        """Return u_n + dt Σ weights_i k_i."""
        return _combination(f)(old[-1], dt, self.weights, self._slopes(old[-1], f, t, dt))

    def _slopes(self, u: Any, f: RightHandSideFunction, t: float, dt: float) -> list[Any]:
        slopes: list[Any] = []
        combined = _combination(f)
        for node, row in zip(self.nodes, self.matrix, strict=True):
            slopes.append(f(combined(u, dt, row, slopes), t + node * dt))
        return slopes


@dataclass(frozen=True, kw_only=True)
class EmbeddedRungeKutta(RungeKutta):
    """An explicit Runge-Kutta method whose stages give the error of a step too: steps are chosen by it.

    error_weights : error of u_{n+1} = dt Σ_i error_weights_i k_i.
    rtol, atol : an error of atol + rtol·|u| is allowed at every point in every step.
    """

    error_weights: tuple[float, ...]
    rtol: float = 1e-6
    atol: float = 1e-9

    def step_with_error(self, u: Any, f: RightHandSideFunction, t: float, dt: float) -> tuple[Any, Any]:
        """Return the state at t + dt and an estimate of its error. Collective where f is."""
        slopes = self._slopes(u, f, t, dt)
        combined = _combination(f)
        return combined(u, dt, self.weights, slopes), _advanced(np.zeros(()), dt, self.error_weights, slopes)


def _combination(f: RightHandSideFunction) -> Callable[..., Any]:
    """Return what computes u + dt Σ weights_i k_i: the right-hand side's own way, in one pass, where it has one."""
    return getattr(f, "combined", None) or _advanced


def _advanced(u: Any, dt: float, weights: Sequence[float], slopes: Sequence[Any]) -> Any:
    for weight, k in zip(weights, slopes, strict=True):
        if weight:
            term = (dt * weight) * k
            # A sum of two arrays into the first of them spares a temporary as large as the block, with the same bits.
            u = np.add(u, term, out=term) if type(term) is np.ndarray and np.ndim(u) <= term.ndim else u + term
    return u


IMPLICIT_EULER = LinearMultistep(name="implicit Euler", order=1, a=(1.0, -1.0), b=(1.0, 0.0))
"""u_{n+1} - u_n = dt f(u_{n+1}); L-stable."""

CRANK_NICOLSON = LinearMultistep(name="Crank-Nicolson", order=2, a=(1.0, -1.0), b=(0.5, 0.5))
"""u_{n+1} - u_n = dt/2 (f(u_{n+1}) + f(u_n)); A-stable, does not damp jumps (Crank and Nicolson 1947)."""

BDF2 = LinearMultistep(name="BDF2", order=2, a=(1.5, -2.0, 0.5), b=(1.0, 0.0, 0.0), start=IMPLICIT_EULER)
"""3/2 u_{n+1} - 2 u_n + 1/2 u_{n-1} = dt f(u_{n+1}); L-stable,
starts with implicit Euler (Curtiss and Hirschfelder 1952)."""

SDIRK2 = TwoStageDiagonal(name="SDIRK2", order=2, gamma=1 - 0.5 * math.sqrt(2))
"""L-stable, one-step: second order from the first step on (Alexander 1977)."""

HEUN = RungeKutta(
    name="Heun", order=2, nodes=(0.0, 1.0), matrix=((), (1.0,)), weights=(0.5, 0.5), stable_radius=1.0
)  # fmt: skip
"""The trapezoidal predictor-corrector (Heun 1900)."""

SSPRK3 = RungeKutta(
    name="SSPRK3", order=3, nodes=(0.0, 1.0, 0.5), matrix=((), (1.0,), (0.25, 0.25)),
    weights=(1 / 6, 1 / 6, 2 / 3), stable_radius=1.7,
)  # fmt: skip
"""Strong-stability-preserving, three stages (Shu and Osher 1988, eq. 2.18)."""

RK4 = RungeKutta(
    name="RK4", order=4, nodes=(0.0, 0.5, 0.5, 1.0), matrix=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    weights=(1 / 6, 1 / 3, 1 / 3, 1 / 6), stable_radius=2.7,
)  # fmt: skip
"""The classical method (Kutta 1901)."""

DORMAND_PRINCE = EmbeddedRungeKutta(
    name="Dormand-Prince 5(4)", order=5, nodes=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    matrix=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    weights=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    error_weights=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    stable_radius=1.0,
)  # fmt: skip
"""Fifth order with an error estimate of fourth order; adaptive unless the case fixes its steps
(Dormand and Prince 1980)."""

ALL_SCHEMES: tuple[LinearMultistep | TwoStageDiagonal | RungeKutta, ...] = (
    IMPLICIT_EULER, CRANK_NICOLSON, BDF2, SDIRK2, HEUN, SSPRK3, RK4, DORMAND_PRINCE,
)  # fmt: skip
