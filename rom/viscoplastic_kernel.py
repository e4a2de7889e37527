"""The step of `NortonChaboche` as one loop over points, for machine code by numba; equations and names are those there.

numpy spends most of a step at a hundred points on calling itself; this loop takes a microsecond per point.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

COEFFICIENTS = ("young", "poisson", "stretch", "yield_stress", "linear_hardening", "viscosity", "exponent")
"""Rows of the kernel's table; after them the moduli and recalls of the back-stresses, then saturations and rates."""


@functools.lru_cache(maxsize=1)
def machine_code() -> Callable[..., int]:
    """Return `integrate` as machine code: some seconds for the first time on a machine, then read from numba's cache.

    Raises
    ------
    ImportError : numba is not installed.
    """
    import numba

    # Divisions as numpy's: infinite where the divisor is zero.
    return numba.njit(error_model="numpy", nogil=True, cache=True)(integrate)


def integrate(  # noqa: C901, PLR0913  one loop without calls: a function of numba cannot be written before numba is there
    table: np.ndarray,
    num_back: int,
    curve: np.ndarray,
    strain: np.ndarray,
    state: np.ndarray,
    dt: float,
    smallest_log: float,
    max_iterations: int,
    stress: np.ndarray,
    new: np.ndarray,
    tangent: np.ndarray,
) -> int:
    """Integrate one backward Euler step in place of stress, new and tangent; return how many points failed.

    table : see `COEFFICIENTS`, (rows, points). curve : points of the curve of hardening, (2, any). strain : at the end
    of the step, (points, 6).
    """
    failed = 0
    num_voce = (len(table) - 7 - 2 * num_back) // 2
    alpha, theta = np.empty((num_back, 6)), np.empty(num_back)
    elastic, deviator = np.empty(6), np.empty(6)
    Z, Zp, m, w, along = np.empty(6), np.empty(6), np.empty(6), np.empty(6), np.empty(6)
    for i in range(len(strain)):
        E, nu, stretch = table[0, i], table[1, i], table[2, i]
        bulk, G = E / (3 * (1 - 2 * nu)), E / (2 * (1 + nu))
        K, n = table[5, i], table[6, i]
        p0 = state[i, 6]
        for a in range(6):
            elastic[a] = strain[i, a] - state[i, a]
            if a < 3:
                elastic[a] -= stretch
        trace = elastic[0] + elastic[1] + elastic[2]
        finite = True
        for a in range(6):
            deviator[a] = 2 * G * (elastic[a] - trace / 3) if a < 3 else G * elastic[a]
            stress[i, a] = deviator[a] + bulk * trace if a < 3 else deviator[a]
            finite = finite and math.isfinite(stress[i, a])
            for b in range(6):
                both = (bulk - 2 * G / 3) if a < 3 and b < 3 else 0.0
                if a == b:
                    both += 2 * G if a < 3 else G
                tangent[i, a, b] = both
        for v in range(state.shape[1]):
            new[i, v] = state[i, v]
        if not finite:
            failed += 1
            continue
        modulus_sum, square = 0.0, 0.0
        for k in range(num_back):
            modulus_sum += table[7 + k, i]
            for a in range(6):
                alpha[k, a] = state[i, 7 + 6 * k + a] * (1.0 if a < 3 else 0.5)
        for a in range(6):
            one = deviator[a]
            for k in range(num_back):
                one -= 2 / 3 * table[7 + k, i] * alpha[k, a]
            square += one * one * (1.0 if a < 3 else 2.0)
        # From here on the first pass of the loop below is at the start of the step, where it finds the overstress.
        J = math.sqrt(1.5 * square)
        viscous = K * math.exp((smallest_log - math.log(dt if dt > 0 else 1.0)) / n)
        radius = table[3, i] + table[4, i] * p0
        for v in range(num_voce):
            radius += table[7 + 2 * num_back + v, i] * (1 - math.exp(-table[7 + 2 * num_back + num_voce + v, i] * p0))
        at = np.searchsorted(curve[0], p0, side="right")
        radius += curve[1, at - 1]
        if at < curve.shape[1]:
            radius += (curve[1, at] - curve[1, at - 1]) / (curve[0, at] - curve[0, at - 1]) * (p0 - curve[0, at - 1])
        over = J - radius - viscous
        if not over > 0 or not (dt > 0 or K == 0):
            continue
        # Both are upper bounds of Δp: all overstress relaxed elastically, or kept for the whole step.
        y = math.log(over / (3 * G))
        if K > 0:
            y = min(y, math.log(dt) + n * math.log(over / K))
        if y < smallest_log:
            continue
        left = over - K * math.exp((y - math.log(dt if dt > 0 else 1.0)) / n)
        y = min(y, math.log(max(left, 0.05 * over) / (3 * G + modulus_sum)))
        low, high, last = -np.inf, np.inf, False
        dp = slope = 0.0
        for _ in range(max_iterations + 1):
            dp = math.exp(y)
            p = p0 + dp
            hard, radius, slope = 3 * G, table[3, i] + table[4, i] * p, 3 * G + table[4, i]
            for v in range(num_voce):
                Q, rate = table[7 + 2 * num_back + v, i], table[7 + 2 * num_back + num_voce + v, i]
                rest = math.exp(-rate * p)
                radius += Q * (1 - rest)
                slope += Q * rate * rest
            at = np.searchsorted(curve[0], p, side="right")
            radius += curve[1, at - 1]
            if at < curve.shape[1]:
                rise = (curve[1, at] - curve[1, at - 1]) / (curve[0, at] - curve[0, at - 1])
                radius += rise * (p - curve[0, at - 1])
                slope += rise
            for a in range(6):
                Z[a], Zp[a] = deviator[a], 0.0
            for k in range(num_back):
                C, D = table[7 + k, i], table[7 + num_back + k, i]
                theta[k] = 1 / (1 + D * dp)
                hard += C * theta[k]
                slope += C * theta[k] * theta[k]
                for a in range(6):
                    pull = 2 / 3 * C * theta[k] * alpha[k, a]
                    Z[a] -= pull
                    Zp[a] += pull * theta[k] * D
            square, cross = 0.0, 0.0
            for a in range(6):
                square += Z[a] * Z[a] * (1.0 if a < 3 else 2.0)
                cross += Z[a] * Zp[a] * (1.0 if a < 3 else 2.0)
            J = math.sqrt(1.5 * square)
            viscous = K * math.exp((y - math.log(dt)) / n) if K > 0 else 0.0
            slope += viscous / (n * dp) - 1.5 * cross / J
            if last:
                break
            F = dp * hard + radius + viscous - J
            if F < 0:
                low = y
            elif F > 0:
                high = y
            newton = y - F / (dp * slope)
            good = low <= newton <= high and slope > 0 and math.isfinite(newton)
            following = newton
            if not good:
                middle = (low + high) / 2
                following = middle if math.isfinite(middle) else (y - 5 if math.isfinite(high) else y + 1)
            last = abs(following - y) <= (1e-6 if good else 1e-10)
            y = following
        if not last:
            failed += 1
            continue
        turn, mz = 1.5 * dp / J, 0.0
        for a in range(6):
            m[a] = 1.5 * Z[a] / J
            w[a] = 2 * G / slope * m[a]
            mz += m[a] * Zp[a] * (1.0 if a < 3 else 2.0)
        for a in range(6):
            factor = 1.0 if a < 3 else 2.0
            along[a] = 2 * G * m[a] + mz * w[a]
            stress[i, a] -= 2 * G * dp * m[a]
            new[i, a] += dp * m[a] * factor
            for k in range(num_back):
                new[i, 7 + 6 * k + a] = theta[k] * (alpha[k, a] + dp * m[a]) * factor
        new[i, 6] += dp
        for a in range(6):
            for b in range(6):
                project = (-1 / 3 if a < 3 and b < 3 else 0.0) + ((1.0 if a < 3 else 0.5) if a == b else 0.0)
                spin = 2 * G * project + Zp[a] * w[b] - 2 / 3 * m[a] * along[b]
                tangent[i, a, b] -= 2 * G * (m[a] * w[b] + turn * spin)
    return failed
