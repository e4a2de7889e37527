"""The Gray-Scott model: two chemicals that form spots, stripes and waves (Pearson 1993).

    mpirun -n 2 headrace solve gray_scott --set feed=0.03 --set kill=0.06 --output one.h5
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headrace.solvers import Case, Grid, Uniform
from headrace.solvers.parameters import Seed

DIFFUSION_A, DIFFUSION_B = 2e-5, 1e-5


def gray_scott(u: Any, d: Any, p: Any, t: Any) -> Any:
    """∂a/∂t = 2e-5 ∇²a - a b² + F (1 - a),  ∂b/∂t = 1e-5 ∇²b + a b² - (F + k) b."""
    a, b = u
    eaten = a * b * b
    return (
        DIFFUSION_A * d.laplacian(a) - eaten + p.feed * (1 - a),
        DIFFUSION_B * d.laplacian(b) + eaten - (p.feed + p.kill) * b,
    )


def drops(x: tuple[np.ndarray, ...], p: Any, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """a = 1, b = 0, but for six drops at random places where a = 1/2 and b = 1/4."""
    inside = np.zeros(x[0].shape)
    for centre in rng.uniform(0, SIDE, size=(6, 2)):
        # The nearest periodic image.
        distance = sum(np.minimum(abs(c - m), SIDE - abs(c - m)) ** 2 for c, m in zip(x, centre, strict=True))
        inside = np.maximum(inside, np.exp(-distance / (2 * 0.05**2)))
    return 1 - 0.5 * inside, 0.25 * inside


SIDE = 1.25

case = Case(
    name="gray_scott",
    fields=("a", "b"),
    grid=Grid(shape=(128, 128), extent=(SIDE, SIDE)),
    parameters={"feed": Uniform(0.02, 0.045), "kill": Uniform(0.055, 0.065), "drops": Seed()},
    initial=drops,
    rhs=gray_scott,
    duration=1000.0,
    num_snapshots=50,
    accuracy=4,
    description="Patterns of two reacting chemicals, random drops, feed and kill rates; fourth order, SSPRK3 "
    "(Pearson 1993). Cost: about 7 s on one core.",
)
