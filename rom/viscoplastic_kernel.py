"""The step of `NortonChaboche` as one loop over points, for machine code by numba; equations and names are those there.

numpy spends most of a step at a hundred points on calling itself; this loop takes a microsecond per point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

COEFFICIENTS = ("young", "poisson", "stretch", "yield_stress", "linear_hardening", "viscosity", "exponent")
"""Rows of the kernel's table; after them the moduli and recalls of the back-stresses, then saturations and rates."""

TENSOR = np.array([1.0, 1.0, 1.0, 0.5, 0.5, 0.5])
"""Components of a tensor from those of an engineering strain."""

CONTRACTION = 1 / TENSOR
"""a:b = Σ CONTRACTION a b."""


class Point(NamedTuple):
    """One point at the start of a step that flows, as the functions below see it.

    coefficients : its column of the table. curve : points of the curve of hardening, (2, any).
    deviator : of the trial stress, (6,). alpha : of the back-stresses, as tensors, (back-stresses, 6).
    log_dt : ln Δt, 0 where the step takes no time.
    """

    coefficients: np.ndarray
    num_back: int
    curve: np.ndarray
    deviator: np.ndarray
    alpha: np.ndarray
    p0: float
    G: float
    log_dt: float


@functools.lru_cache(maxsize=1)
def machine_code() -> Callable[..., int]:
    """Return `integrate` as machine code: some seconds for the first time on a machine, then read from numba's cache.

    Raises
    ------
    ImportError : numba is not installed.
    """
    import numba
    from numba.extending import register_jitable

    # Divisions as numpy's: infinite where the divisor is zero.
    for part in (try_elastic, hardening, overstress, terms, solve, correct):
        register_jitable(error_model="numpy", forceinline=True)(part)
    return numba.njit(error_model="numpy", nogil=True, cache=True)(integrate)


def integrate(
    table: np.ndarray, num_back: int, curve: np.ndarray, strain: np.ndarray, state: np.ndarray, dt: float,
    limits: tuple[float, int], end: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> int:  # fmt: skip
    """Integrate one backward Euler step; return how many points failed.

    table : see `COEFFICIENTS`, (rows, points). strain : at the end of the step, (points, 6).
    limits : the smallest ln Δp, and the most iterations.
    end : stress, new state and tangent, which are written.
    """
    stress, new, tangent = end
    failed, log_dt = 0, math.log(dt) if dt > 0 else 0.0
    coefficients, alpha = np.empty(len(table)), np.empty((num_back, 6))
    deviator, Z, Zp = np.empty(6), np.empty(6), np.empty(6)
    for i in range(len(strain)):
        # Elastic points meet no slice and no array in a tuple, whose references numba counts by atomic operations.
        for v in range(state.shape[1]):
            new[i, v] = state[i, v]
        for v in range(len(table)):
            coefficients[v] = table[v, i]  # side by side in memory
        if not try_elastic(i, coefficients, strain, state, deviator, stress, tangent):
            failed += 1
            continue
        for k in range(num_back):
            for a in range(6):
                alpha[k, a] = state[i, 7 + 6 * k + a] * TENSOR[a]
        over = overstress(coefficients, num_back, curve, deviator, alpha, state[i, 6], limits[0] - log_dt)
        if not over > 0 or (coefficients[5] > 0 and not dt > 0):  # in no time nothing viscous flows
            continue
        G = coefficients[0] / (2 * (1 + coefficients[1]))
        point = Point(coefficients, num_back, curve, deviator, alpha, state[i, 6], G, log_dt)
        y = solve(point, over, limits, Z, Zp)
        if math.isnan(y):
            failed += 1
        elif y >= limits[0]:
            correct(i, point, y, Z, Zp, stress, new, tangent)
    return failed


def try_elastic(
    i: int, coefficients: np.ndarray, strain: np.ndarray, state: np.ndarray, deviator: np.ndarray, stress: np.ndarray,
    tangent: np.ndarray,
) -> bool:  # fmt: skip
    """Take point i's whole step as elastic, in place of deviator, stress and tangent.

    Returns
    -------
    bool : whether the stress is finite.
    """
    E, nu, stretch = coefficients[0], coefficients[1], coefficients[2]
    bulk, G = E / (3 * (1 - 2 * nu)), E / (2 * (1 + nu))
    for a in range(6):
        deviator[a] = strain[i, a] - state[i, a] - (stretch if a < 3 else 0.0)
    trace = deviator[0] + deviator[1] + deviator[2]
    finite = True
    for a in range(6):
        deviator[a] = 2 * G * (deviator[a] - trace / 3) if a < 3 else G * deviator[a]
        stress[i, a] = deviator[a] + bulk * trace if a < 3 else deviator[a]
        finite = finite and math.isfinite(stress[i, a])
        for b in range(6):
            both = bulk - 2 * G / 3 if a < 3 and b < 3 else 0.0
            if a == b:
                both += 2 * G if a < 3 else G
            tangent[i, a, b] = both
    return finite


def hardening(c: np.ndarray, num_back: int, curve: np.ndarray, p: float) -> tuple[float, float]:
    """Return the yield radius R(p) and its slope."""
    radius, slope = c[3] + c[4] * p, c[4]
    first = 7 + 2 * num_back
    count = (len(c) - first) // 2
    for v in range(first, first + count):
        rest = math.exp(-c[count + v] * p)
        radius += c[v] * (1 - rest)
        slope += c[v] * c[count + v] * rest
    at = np.searchsorted(curve[0], p, side="right")
    radius += curve[1, at - 1]
    if at < curve.shape[1]:
        rise = (curve[1, at] - curve[1, at - 1]) / (curve[0, at] - curve[0, at - 1])
        radius += rise * (p - curve[0, at - 1])
        slope += rise
    return radius, slope


def overstress(
    c: np.ndarray, num_back: int, curve: np.ndarray, deviator: np.ndarray, alpha: np.ndarray, p0: float, log_rate: float
) -> float:
    """Return -F of `terms` at Δp = 0; where it is positive, less the viscous stress of the rate exp(log_rate)."""
    square = 0.0
    for a in range(6):
        one = deviator[a]
        for k in range(num_back):
            one -= 2 / 3 * c[7 + k] * alpha[k, a]
        square += one * one * CONTRACTION[a]
    over = math.sqrt(1.5 * square) - hardening(c, num_back, curve, p0)[0]
    return over - c[5] * math.exp(log_rate / c[6]) if over > 0 and c[5] > 0 else over


def terms(point: Point, y: float, Z: np.ndarray, Zp: np.ndarray) -> tuple[float, float, float]:
    """Return F, dF/dΔp and J(Z) at y = ln Δp, with Z and its derivative by Δp in place."""
    c, dp = point.coefficients, math.exp(y)
    G, K, n = point.G, c[5], c[6]
    radius, slope = hardening(c, point.num_back, point.curve, point.p0 + dp)
    hard = 3 * G
    slope += hard
    deviator, alpha, num_back = point.deviator, point.alpha, point.num_back
    for a in range(6):
        Z[a], Zp[a] = deviator[a], 0.0
    for k in range(num_back):
        C, D = c[7 + k], c[7 + num_back + k]
        theta = 1 / (1 + D * dp)
        hard += C * theta
        slope += C * theta * theta
        for a in range(6):
            pull = 2 / 3 * C * theta * alpha[k, a]
            Z[a] -= pull
            Zp[a] += pull * theta * D
    square, cross = 0.0, 0.0
    for a in range(6):
        square += Z[a] * Z[a] * CONTRACTION[a]
        cross += Z[a] * Zp[a] * CONTRACTION[a]
    J = math.sqrt(1.5 * square)
    viscous = K * math.exp((y - point.log_dt) / n) if K > 0 else 0.0
    return dp * hard + radius + viscous - J, slope + viscous / (n * dp) - 1.5 * cross / J, J


def solve(point: Point, over: float, limits: tuple[float, int], Z: np.ndarray, Zp: np.ndarray) -> float:
    """Return y = ln Δp of a positive overstress: -∞ where it is below the smallest, NaN where no root was found."""
    c, smallest = point.coefficients, limits[0]
    G, K, n = point.G, c[5], c[6]
    # Both are upper bounds of Δp: all overstress relaxed elastically, or kept for the whole step.
    y = math.log(over / (3 * G))
    if K > 0:
        y = min(y, point.log_dt + n * math.log(over / K))
    if y < smallest:
        return -np.inf
    left = over - K * math.exp((y - point.log_dt) / n)
    y = min(y, math.log(max(left, 0.05 * over) / (3 * G + c[7 : 7 + point.num_back].sum())))
    low, high = -np.inf, np.inf
    for _ in range(limits[1]):
        F, slope, _ = terms(point, y, Z, Zp)
        if F < 0:
            low = y
        elif F > 0:
            high = y
        following = y - F / (math.exp(y) * slope)
        good = low <= following <= high and slope > 0 and math.isfinite(following)
        if not good:
            middle = (low + high) / 2
            following = middle if math.isfinite(middle) else (y - 5 if math.isfinite(high) else y + 1)
        if abs(following - y) <= (1e-6 if good else 1e-10):
            return following
        y = following
    return np.nan


def correct(
    i: int, point: Point, y: float, Z: np.ndarray, Zp: np.ndarray, stress: np.ndarray, new: np.ndarray,
    tangent: np.ndarray,
) -> None:  # fmt: skip
    """Return point i's stress to the flow surface, advance the state and make the tangent consistent, in place."""
    c, G, dp = point.coefficients, point.G, math.exp(y)
    _, slope, J = terms(point, y, Z, Zp)
    m, mz = Z, 0.0
    for a in range(6):
        m[a] *= 1.5 / J
        mz += m[a] * Zp[a] * CONTRACTION[a]
        stress[i, a] -= 2 * G * dp * m[a]
        new[i, a] += dp * m[a] * CONTRACTION[a]
    new[i, 6] += dp
    alpha, num_back = point.alpha, point.num_back
    for k in range(num_back):
        theta = 1 / (1 + c[7 + num_back + k] * dp)
        for a in range(6):
            new[i, 7 + 6 * k + a] = theta * (alpha[k, a] + dp * m[a]) * CONTRACTION[a]
    for b in range(6):
        w, along = 2 * G / slope * m[b], 2 * G * (1 + mz / slope) * m[b]
        for a in range(6):
            project = (-1 / 3 if a < 3 and b < 3 else 0.0) + (TENSOR[a] if a == b else 0.0)
            spin = 2 * G * project + Zp[a] * w - 2 / 3 * m[a] * along
            tangent[i, a, b] -= 2 * G * (m[a] * w + 1.5 * dp / J * spin)
