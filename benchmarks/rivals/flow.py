"""The flow on which two-dimensional Navier-Stokes solvers are compared: a decaying vorticity on a torus.

    ∂ω/∂t + u·∇ω = ν ∇²ω on [0, 2π]², ν = 1/200, from four waves, until t = 4.

A rival is a script, called as `python NAME.py POINTS STEPS FILE`: it solves once to warm up, then for a second, once at
least and ten times at most, saves the last vorticity, (points, points) with x first, and prints the processor seconds
of the fastest run.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

VISCOSITY, DURATION = 5e-3, 4.0


def initial(points: int) -> np.ndarray:
    """Return ω at t = 0."""
    x, y = np.meshgrid(*[2 * np.pi / points * np.arange(points)] * 2, indexing="ij")
    return np.sin(x) * np.cos(2 * y) + 0.8 * np.cos(3 * x + y) + 0.6 * np.sin(2 * x - 3 * y) + 0.4 * np.cos(y)


def race(prepare: Callable[[int, int], Callable[[], np.ndarray]]) -> None:
    """Run a script's solver; prepare : (points, steps) -> function without arguments that returns the last state."""
    points, steps, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    solve = prepare(points, steps)
    solve()
    times: list[float] = []
    while not times or (len(times) < 10 and sum(times) < 1.0):
        start = time.process_time()
        last = solve()
        times.append(time.process_time() - start)
    np.save(file, last)
    print(min(times))
