"""The heat solver of heat.c as the solver of a case; the environment says where it was compiled."""

import os

import numpy as np

from headrace.solvers import Case, Grid, Periodic, Uniform
from headrace.solvers.streaming import StreamingProgram


def start(x, p, rng):
    """u = sin 2πx cos 4πy + xy n / 100, as in heat.c."""
    return np.sin(2 * np.pi * x[0]) * np.cos(4 * np.pi * x[1]) + 0.13 * x[0] * x[1]


case = Case(
    name="streaming_heat", fields=("u",), grid=Grid(shape=(13, 13), extent=(1.0, 1.0)), boundary=Periodic(),
    parameters={"nu": Uniform(0.1, 0.9)}, initial=start, duration=0.5, num_snapshots=5,
    solver=StreamingProgram(
        equation="u(k+1) = u(k) + ν/5 (sum of the four neighbours - 4 u(k)).",
        command=(
            os.environ.get("TEST_MPIRUN", "mpirun"), *os.environ.get("TEST_MPI_FLAGS", "").split(), "-n", "{ranks}",
            os.environ.get("TEST_HEAT", "heat_c"), "{nx}", "6", os.environ.get("TEST_FOLDER", "."), "once",
        ),
    ),
)  # fmt: skip
