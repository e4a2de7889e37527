"""The lid-driven cavity of Ghia, Ghia and Shin (1982): extremes of the centre lines, and how far a flow is from them.

A module, not a benchmark: flows.py and neuralstagger.py use it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

GHIA = {100: (-0.21090, 0.17527, -0.24533), 400: (-0.32726, 0.30203, -0.44993), 1000: (-0.38289, 0.37095, -0.51550)}
"""Smallest u on x = 1/2, largest and smallest v on y = 1/2, tables 1 and 2."""


def from_ghia(velocity: np.ndarray, reynolds: int) -> Iterator[tuple[str, float, float, float]]:
    """Yield name, relative distance, found and published value of each extreme, of (2, n, n) at the upper faces."""
    u, v = velocity
    middle = len(u) // 2 - 1
    found = (u[middle].min(), v[:, middle].max(), v[:, middle].min())
    for name, value, published in zip(("u_min", "v_max", "v_min"), found, GHIA[reynolds], strict=True):
        yield name, abs(value / published - 1), float(value), published
