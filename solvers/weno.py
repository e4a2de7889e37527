"""Fifth-order weighted essentially non-oscillatory differences, for transport with steep fronts.

Jiang and Shu 1996 for the stencils, Borges et al. 2008 (WENO-Z) for the weights, Jiang and Peng 2000 for the
advective form. Letters follow them: b the smoothness indicators, a the weights before normalisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .field import for_operands
from .stencils import along

REACH = 3
"""Ghost layers that both forms take."""

_TINY = 1e-10
"""Keeps the weights finite on constants, in float32 too."""

_maximum = for_operands(np.maximum, "maximum")


def biased(u: Any, ndim: int, axis: int, spacing: float) -> tuple[Any, Any]:
    """Return ∂u/∂x from the left and from the right, three layers inside."""
    steps = along(ndim, axis, 1, None, REACH), along(ndim, axis, None, -1, REACH)
    v = _shifts((u[steps[0]] - u[steps[1]]) * (1 / spacing), ndim, axis, 0)
    return reconstructed(*v[:5]), reconstructed(*v[:0:-1])


def flux_difference(f: Any, speed: Any, u: Any, ndim: int, axis: int, spacing: float) -> Any:
    """Return ∂f/∂x in conservative form, three layers inside.

    Local Lax-Friedrichs splitting f± = (f ± α u) / 2, α the largest speed among the six points around a face.

    f, speed, u : arrays of one shape; speed bounds |∂f/∂u|; it may be a number.
    """
    fs, us = (_shifts(array, ndim, axis, REACH) for array in (f, u))
    alpha = speed
    if getattr(speed, "ndim", 0):
        speeds = _shifts(speed, ndim, axis, REACH)
        alpha = speeds[0]
        for other in speeds[1:]:
            alpha = _maximum(alpha, other)
    plus = [0.5 * (a + alpha * b) for a, b in zip(fs[:5], us[:5], strict=True)]
    minus = [0.5 * (a - alpha * b) for a, b in zip(fs[:0:-1], us[:0:-1], strict=True)]
    face = reconstructed(*plus) + reconstructed(*minus)
    return (face[along(ndim, axis, 1, None, 0)] - face[along(ndim, axis, None, -1, 0)]) * (1 / spacing)


def reconstructed(a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Return the value at the face right of c from five cell means, without oscillation where they jump."""
    b0 = 13 / 12 * (a - 2 * b + c) ** 2 + 0.25 * (a - 4 * b + 3 * c) ** 2
    b1 = 13 / 12 * (b - 2 * c + d) ** 2 + 0.25 * (b - d) ** 2
    b2 = 13 / 12 * (c - 2 * d + e) ** 2 + 0.25 * (3 * c - 4 * d + e) ** 2
    tau = abs(b0 - b2)
    a0 = 0.1 * (1 + (tau / (b0 + _TINY)) ** 2)
    a1 = 0.6 * (1 + (tau / (b1 + _TINY)) ** 2)
    a2 = 0.3 * (1 + (tau / (b2 + _TINY)) ** 2)
    total = a0 * (2 * a - 7 * b + 11 * c) + a1 * (-b + 5 * c + 2 * d) + a2 * (2 * c + 5 * d - e)
    return total / (6 * (a0 + a1 + a2))


def _shifts(a: Any, ndim: int, axis: int, reach: int) -> list[Any]:
    """Return six neighbouring points at a time along an axis, five fewer of each; others `reach` layers inside."""
    return [a[along(ndim, axis, s, s - 5 or None, reach)] for s in range(6)]
