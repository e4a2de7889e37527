"""The problems on which networks that solve an equation are compared, and the course of their errors.

    burgers     ∂u/∂t + u ∂u/∂x = 0.01/π ∂²u/∂x² on [-1, 1],  u = -sin πx at t = 0
    transport   ∂u/∂t - x ∂u/∂x = 0.05 ∂²u/∂x² on [-4, 4],    u = exp(-2x²) at t = 0

both until t = 1, with u = 0 at the ends. A rival is a script, called as

    python NAME_pinn.py PROBLEM SECONDS SEED DEVICE FILE

FILE holds the exact u (times, points) at t and x. It trains for so many seconds, evaluations not counted,
compilation counted, and prints one JSON line: the errors over seconds, and in words how it was set up.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

VISCOSITY = {"burgers": 0.01 / np.pi, "transport": 0.05}
HALF = {"burgers": 1.0, "transport": 4.0}


def given() -> tuple[str, float, int, str, str]:
    """Return problem, seconds, seed, device and file of the call."""
    problem, seconds, seed, device, file = sys.argv[1:6]
    return problem, float(seconds), int(seed), device, file


class Course:
    """Relative L2 errors in space and time against the seconds of training."""

    def __init__(self, file: str, seconds: float) -> None:
        with np.load(file) as exact:
            self._truth, times, x = exact["u"], exact["t"], exact["x"]
        self.points = np.stack([np.tile(x, len(times)), np.repeat(times, len(x))], 1)
        self._seconds, self._judged, self._next = seconds, 0.0, 0.5
        self.curve: list[tuple[float, float]] = []
        self._began = time.perf_counter()

    def over(self, predict: Callable[[np.ndarray], np.ndarray]) -> bool:
        """Return whether time is up, and judge where it is due; predict : places and times (points, 2) -> u."""
        now = time.perf_counter() - self._began - self._judged
        if now >= self._next or now > self._seconds:
            start = time.perf_counter()
            self.add(now, predict(self.points))
            self._judged += time.perf_counter() - start
            self._next = now * 1.2 + 0.5
        return now > self._seconds

    def add(self, seconds: float, found: np.ndarray) -> None:
        """Add the error of u at the points, as of so many seconds of training."""
        difference = np.asarray(found, dtype=np.float64).reshape(self._truth.shape) - self._truth
        self.curve.append((round(seconds, 2), float(np.linalg.norm(difference) / np.linalg.norm(self._truth))))

    def left(self) -> float:
        """Return the seconds left."""
        return self._seconds - (time.perf_counter() - self._began - self._judged)

    def report(self, setup: str) -> None:
        """Print the line."""
        print(json.dumps({"curve": self.curve, "setup": setup}), flush=True)
