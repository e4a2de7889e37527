"""Headrace's spectral solver on the common flow, one core."""

from collections.abc import Callable

import numpy as np
from flow import DURATION, VISCOSITY, initial, race

from headrace.solvers import Case, Grid, MemorySink, Parameters
from headrace.solvers.navier_stokes_spectral import solve_vorticity
from headrace.solvers.simulate import simulate


def prepare(points: int, steps: int) -> Callable[[], np.ndarray]:
    """Return the solver: ETDRK4, dealiased."""
    state = initial(points)
    case = Case(
        name="flow", fields=("w",), grid=Grid(shape=(points, points), extent=(2 * np.pi, 2 * np.pi)),
        initial=lambda x, p, rng: state, duration=DURATION, num_snapshots=1, steps_per_snapshot=steps,
        solver=lambda case, p, comm, rng: solve_vorticity(case, p, comm, rng, viscosity=VISCOSITY),
    )  # fmt: skip

    def solve() -> np.ndarray:
        sink = MemorySink()
        simulate(case, Parameters({}), sink)
        return sink.values[-1, 0]

    return solve


if __name__ == "__main__":
    race(prepare)
