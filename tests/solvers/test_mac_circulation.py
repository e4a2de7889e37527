"""The staggered scheme for its potential alone: one discretisation with the solver, and errors in units of velocity."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from headrace.solvers import Parameters
from headrace.solvers.mac import MAC_MIDPOINT
from headrace.solvers.mac_circulation import CirculationResidual

from .mac_cases import driven_box, make_case, run

NONE = Parameters({})
CASE = driven_box(scheme=MAC_MIDPOINT, num_snapshots=3, steps_per_snapshot=1, duration=0.3)


def potentials(states, case):
    """(snapshots, 1, nx, ny) with u = ∂a/∂y."""
    return np.cumsum(states[:, 0], axis=-1)[:, None] * case.grid.spacing[1]


def test_a_trajectory_of_the_solver_makes_the_circulation_vanish():
    equation, fields = CirculationResidual(CASE, viscosity=0.01, p=NONE), potentials(run(CASE), CASE)
    found = [np.abs(equation(a, b, 0.1 * k, 0.1)).max() for k, (a, b) in enumerate(pairwise(fields))]
    assert max(found) <= 1e-8
    assert np.abs(equation(fields[0], fields[2], 0.0, 0.1)).max() > 1e-2
    tensors = torch.tensor(fields)
    on_tensors = equation(tensors[:-1], 2 * tensors[1:], 0.0, 0.1).numpy()
    np.testing.assert_allclose(on_tensors, equation(fields[:-1], 2 * fields[1:], 0.0, 0.1), atol=1e-11)


@pytest.mark.parametrize(("viscosity", "dt", "within"), [(0.001, 1e-3, 0.05), (0.1, 1e-3, 0.05), (1.0, 0.05, 0.9)])
def test_the_correction_is_the_error_of_the_velocity_for_short_steps(viscosity, dt, within):
    """And of its size where diffusion rules a step: the walls of the inverse let no vorticity through, those of the
    scheme no flow along them.
    """
    equation = CirculationResidual(CASE, viscosity=viscosity, p=NONE)
    state = torch.tensor(potentials(run(CASE), CASE)[-1:])
    x, y = (torch.arange(1, n + 1) / n for n in (12, 10))
    error = 1e-6 * torch.outer(torch.sin(2 * torch.pi * x), torch.sin(3 * torch.pi * y))[None, None]
    without = equation.correction(state, state, 0.0, dt)
    found = equation.correction(state, state + error, 0.0, dt) - without
    wanted = equation.velocity(error).movedim(0, 1)
    assert float((found - wanted).norm() / wanted.norm()) < within
    assert float(equation.size(state).std()) == 0 and equation.size(state).shape == (1, 2, 12, 10)


def test_sides_that_are_not_walls_are_refused():
    with pytest.raises(ValueError, match="four walls"):
        CirculationResidual(make_case((8, 8), (1.0, 1.0)), viscosity=0.1, p=NONE)
