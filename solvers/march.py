"""Marches a state through time with a scheme: constant, stable or adaptive steps between the snapshots."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .case import Case
from .newton import DivergenceError, NewtonKrylov
from .right_hand_side import RightHandSide
from .scheme import EmbeddedRungeKutta, Scheme

log = logging.getLogger(__name__)

_SAFETY = 0.9
"""Part of the largest stable step, or of the step that an error estimate allows, that is taken."""

_MOST_STEPS = 1e8
"""Stable steps between two snapshots beyond which a state is taken to have blown up: hours on the smallest grid."""

_LOOK_EVERY = 1000
"""Explicit steps after which a state is looked at: a blown-up one often asks for millions more until the snapshot."""


def march(case: Case, scheme: Scheme, f: RightHandSide, u: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the states at snapshots 1, 2, ... Collective.

    Raises
    ------
    TypeError : the scheme is none of those for a right-hand side.
    ValueError : it needs a stiff part that the case does not have.
    DivergenceError : an implicit step found no solution, or a stable or an adaptive one became too small.
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"Case {case.name}: scheme {scheme!r} must be a Scheme, such as headrace.solvers.scheme.RK4.")
    if scheme.splits and case.stiff is None:
        raise ValueError(f"Case {case.name}: {scheme.name} treats `stiff` apart, and the case declares none.")
    if isinstance(scheme, EmbeddedRungeKutta) and case.steps_per_snapshot is None:
        return _adaptive_steps(case, scheme, f, u)
    if scheme.implicit and scheme.splits:
        return _split_steps(case, scheme, f, u)
    if scheme.implicit:
        return _implicit_steps(case, scheme, f, u)
    return _explicit_steps(case, scheme, f, u)


def _implicit_steps(case: Case, scheme: Scheme, f: RightHandSide, u: np.ndarray) -> Iterator[np.ndarray]:
    """Constant implicit steps."""
    newton = NewtonKrylov(case, f, f.blocks)
    per_snapshot = case.steps_per_snapshot or 1
    dt = case.duration / (case.num_snapshots * per_snapshot)
    # Four states, more than any scheme needs: the first guess is extrapolated from them.
    old = [u]
    for n in range(case.num_snapshots * per_snapshot):
        old = [*old, scheme.step(old, f, n * dt, dt, newton.solve)][-max(scheme.num_old, 4) :]
        if (n + 1) % per_snapshot == 0:
            yield old[-1]
    log.debug(
        "%s: %d rhs evaluations, %d Newton and %d Krylov iterations",
        case.name, f.calls, newton.newton_iterations, newton.krylov_iterations,
    )  # fmt: skip


def _split_steps(case: Case, scheme: Scheme, f: RightHandSide, u: np.ndarray) -> Iterator[np.ndarray]:
    """Constant steps, implicit in the stiff part; where they must get shorter, the multistep method starts anew."""
    newton = NewtonKrylov(case, f.stiff, f.blocks)
    interval = case.duration / case.num_snapshots
    remembered = _Remembered(f)
    old, count, direction = [u], case.steps_per_snapshot, None
    for index in range(case.num_snapshots):
        start = index * interval
        if case.steps_per_snapshot is None:
            needed, direction = _stable_count(_Rest(f), scheme, old[-1], start, interval, direction)
            if count is None or needed > count:
                count, old = needed, old[-1:]
        dt = interval / count
        for n in range(count):
            # A state that has blown up needs no look here: Newton's method finds no solution.
            old = [*old, scheme.step(old, remembered, start + n * dt, dt, newton.solve)][-max(scheme.num_old, 2) :]
        yield old[-1]


def _explicit_steps(case: Case, scheme: Scheme, f: RightHandSide, u: np.ndarray) -> Iterator[np.ndarray]:
    """Equal explicit steps between two snapshots."""
    interval = case.duration / case.num_snapshots
    direction = None
    limiting = _Rest(f) if scheme.splits else f
    for index in range(case.num_snapshots):
        start = index * interval
        count = case.steps_per_snapshot
        if count is None:
            count, direction = _stable_count(limiting, scheme, u, start, interval, direction)
        dt = interval / count
        for n in range(count):
            u = scheme.step([u], f, start + n * dt, dt)
            if n % _LOOK_EVERY == _LOOK_EVERY - 1 and not _finite(u, f.blocks):
                break
        yield u


def _adaptive_steps(case: Case, scheme: EmbeddedRungeKutta, f: RightHandSide, u: np.ndarray) -> Iterator[np.ndarray]:
    """Steps as long as the estimated error allows; snapshots are met exactly."""
    interval = case.duration / case.num_snapshots
    blocks = f.blocks
    dt = None
    for index in range(case.num_snapshots):
        t, end = index * interval, (index + 1) * interval
        while t < end:
            if dt is None:
                dt = _first_step(scheme, f, u, t, interval)
            last = t + dt >= end - 1e-12 * interval
            taken = end - t if last else dt
            new, defect = scheme.step_with_error(u, f, t, taken)
            allowed = scheme.atol + scheme.rtol * np.maximum(np.abs(u), np.abs(new))
            # The largest of all points: unlike a sum, the same bits on any number of ranks.
            error = float(blocks.max(np.array([np.abs(defect / allowed).max()]))[0])
            factor = 5.0 if error == 0.0 else _SAFETY * error ** (-1 / scheme.order)
            if error <= 1.0:
                t, u = end if last else t + taken, new
                # A last step was cut to meet the snapshot: it says little about the next one.
                dt = max(dt, taken * min(factor, 5.0)) if last else taken * min(factor, 5.0)
            else:
                dt = taken * max(factor, 0.2)
                if not dt > 1e-12 * interval:
                    size = blocks.max(np.array([np.abs(part).max() for part in u]))
                    worst = case.fields[int(np.argmax(size))]
                    raise DivergenceError(f"the step of {scheme.name} vanished at t = {t:.6g}, field {worst}")
        yield u


def _first_step(
    scheme: EmbeddedRungeKutta, f: RightHandSide, u: np.ndarray, t: float, interval: float
) -> float:
    """Return a step over which the state changes little (Hairer, Norsett and Wanner 1993, II.4)."""
    allowed = scheme.atol + scheme.rtol * np.abs(u)
    size, slope = f.blocks.max(np.array([np.abs(u / allowed).max(), np.abs(f(u, t) / allowed).max()]))
    if not (size > 1e-5 and slope > 1e-5 and math.isfinite(slope)):
        return 1e-3 * interval
    return min(0.01 * size / slope, interval)


def _finite(u: np.ndarray, blocks: Any) -> bool:
    """Return whether all values of all ranks are finite. Collective."""
    return not blocks.max(np.array([float(not np.isfinite(u).all())]))[0]


class _Remembered:
    """f and f.stiff with the last results kept: a multistep method asks for those of earlier states again."""

    def __init__(self, f: RightHandSide) -> None:
        self._rhs, self._stiff = f, f.stiff
        self._known: list[tuple[Any, np.ndarray, np.ndarray]] = []

    def __call__(self, u: np.ndarray, t: float) -> np.ndarray:
        return self._of(self._rhs, u, t)

    def stiff(self, u: np.ndarray, t: float) -> np.ndarray:
        return self._of(self._stiff, u, t)

    def _of(self, function: Any, u: np.ndarray, t: float) -> np.ndarray:
        for known, state, value in self._known:
            if known is function and state is u:
                return value
        self._known = [*self._known[-3:], (function, u, function(u, t))]
        return self._known[-1][2]


class _Rest:
    """f - f.stiff as a function with blocks."""

    def __init__(self, f: RightHandSide) -> None:
        self._f, self.blocks = f, f.blocks

    def __call__(self, u: np.ndarray, t: float) -> np.ndarray:
        return self._f(u, t) - self._f.stiff(u, t)


def _stable_count(
    f: RightHandSide | _Rest, scheme: Scheme, u: np.ndarray, t: float, interval: float, direction: np.ndarray | None
) -> tuple[int, np.ndarray]:
    """Return the number of stable steps in an interval, and what makes the next estimate cheap. Collective.

    Raises
    ------
    DivergenceError : there are more of them than anyone waits for.
    """
    radius, direction = spectral_radius(f, u, t, direction)
    needed = interval * radius / (_SAFETY * scheme.stable_radius)
    if not needed <= _MOST_STEPS:
        largest = float(f.blocks.max(np.array([np.abs(u).max()]))[0])
        raise DivergenceError(
            f"at t = {t:.6g}, where the largest value is {largest:.3g}, {scheme.name} needs {needed:.1e} stable steps "
            "to the next snapshot; if that value is right, take an implicit scheme, or smooth a jump of the right-hand "
            "side"
        )
    return max(1, math.ceil(needed)), direction


def spectral_radius(
    f: RightHandSide | _Rest, u: np.ndarray, t: float, direction: np.ndarray | None = None, *, iterations: int = 12
) -> tuple[float, np.ndarray]:
    """Return an estimate of the largest |eigenvalue| of ∂f/∂u by power iteration, and its direction. Collective.

    direction : start of the iteration, from an earlier call; makes fewer iterations do.
    """
    blocks = f.blocks
    norm_u = math.sqrt(blocks.dot(u, u))
    if direction is None:
        # Pseudo-random in the global index, so that the ranks do not change it.
        index = np.ravel_multi_index(np.ix_(*(np.arange(s.start, s.stop) for s in blocks.where)), blocks.grid_shape)
        direction = np.broadcast_to(np.sin(12.9898 * (index + 1.0) ** 1.5), u.shape).copy()
        iterations *= 3
    fu = f(u, t)
    step = 1e-7 * max(norm_u, math.sqrt(math.prod(blocks.grid_shape)) * 1e-3)
    v = direction / math.sqrt(blocks.dot(direction, direction))
    growth = []
    for _ in range(iterations):
        w = (f(u + step * v, t) - fu) / step
        norm = math.sqrt(blocks.dot(w, w))
        if norm == 0.0 or not math.isfinite(norm):
            break
        growth.append(norm)
        v = w / norm
    if not growth:
        return 0.0, direction
    # Complex pairs make single factors oscillate; the power iteration approaches from below, hence the margin.
    return 1.1 * max(growth[-4:]), v
