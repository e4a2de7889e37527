"""The vorticity solvers against exponax, an independent spectral code, on stored solutions."""

from pathlib import Path

import numpy as np
import pytest

from headrace.cases.kolmogorov import DRAG, sine_wave
from headrace.solvers import Case, Grid, MemorySink, Parameters
from headrace.solvers.navier_stokes_spectral import solve_vorticity
from headrace.solvers.simulate import simulate
from headrace.solvers.vorticity import solve_vorticity_by_differences

from .exponax_flows import DURATION, VISCOSITY, initial

OPTIONS = {"decaying": {}, "kolmogorov": {"drag": DRAG, "forcing": sine_wave}}
EACH_FLOW = pytest.mark.parametrize("name", OPTIONS)


@pytest.fixture(scope="module")
def stored():
    return np.load(Path(__file__).with_name("exponax_flows.npz"))


def error(stored, name, solver, points, steps):
    def flow(case, p, comm, rng):
        return solver(case, p, comm, rng, viscosity=VISCOSITY, **OPTIONS[name])

    case = Case(
        name="flow", fields=("w",), grid=Grid(shape=(points, points), extent=(2 * np.pi, 2 * np.pi)), solver=flow,
        initial=lambda x, p, rng: initial(*x), duration=DURATION, num_snapshots=1, steps_per_snapshot=steps,
    )  # fmt: skip
    sink = MemorySink()
    simulate(case, Parameters({}), sink)
    apart = sink.values[1, 0][:: points // 32, :: points // 32] - stored[name]
    return np.abs(apart).max() / np.abs(stored[name]).max()


@EACH_FLOW
def test_the_spectral_solver_agrees_to_nine_digits(name, stored):
    assert error(stored, name, solve_vorticity, 96, 100) < 1e-9


@EACH_FLOW
def test_the_difference_solver_approaches_it_with_second_order(name, stored):
    errors = [error(stored, name, solve_vorticity_by_differences, n, n // 2) for n in (32, 64)]
    assert errors[1] < 0.02 and abs(errors[0] / errors[1] - 4) < 0.6, errors
