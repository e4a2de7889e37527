"""The heat case against its series solution, its symmetries and its bounds."""

from dataclasses import replace

import numpy as np
import pytest

from headrace.cases.heat2d import case
from headrace.solvers import MemorySink, Neumann
from headrace.solvers.scheme import IMPLICIT_EULER
from headrace.solvers.simulate import simulate

COLD = {"t0": 500, "t_left": 100, "t_right": 100, "t_bottom": 100, "t_top": 100}


def solve(n, parameters, **changes):
    """Return the trajectory of T, (snapshots, n, n)."""
    sink = MemorySink()
    resized = replace(case.resized((n, n)), **changes)
    simulate(resized, resized.accept(parameters), sink)
    return sink.values[:, 0]


def series(n, t):
    """T of a plate at 500 K with walls at 100 K and k = 1: products of one-dimensional sine series."""
    x = (np.arange(n) + 0.5) / n
    odd = np.arange(1, 400, 2)[:, None]
    line = np.sum(4 / (np.pi * odd) * np.sin(odd * np.pi * x) * np.exp(-((odd * np.pi) ** 2) * t), axis=0)
    return 100 + 400 * np.outer(line, line)


def test_fourier_series_for_constant_conductivity():
    """Second order in space and time together, away from the jump at t = 0."""
    errors = []
    for n, steps in ((16, 4), (32, 8), (64, 16)):
        found = solve(n, {**COLD, "beta": 0}, duration=0.1, num_snapshots=10, steps_per_snapshot=steps)
        errors.append(np.abs(found[5] - series(n, 0.05)).max())
    observed = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 0.5 and observed[-1] > 1.85, f"errors {errors} K, orders {observed}"


def test_the_case_as_it_stands_is_within_two_kelvin_of_the_series():
    found = solve(64, {**COLD, "beta": 0})
    errors = [np.abs(found[k] - series(64, case.times[k])).max() for k in (10, 30, 100)]
    assert max(errors) < 2.0, errors


def test_the_steady_state_with_variable_conductivity_follows_kirchhoff():
    """k(T) = 1 + (T - 100)/200 between walls at 100 and 500 K: the integral of k is linear in x."""
    values = solve(32, {"t0": 300, "t_left": 100, "t_right": 500, "beta": 2.0},
                   boundary={"x": case.boundary["x"], "y": Neumann(0.0)}, duration=4.0, num_snapshots=40)  # fmt: skip
    s = values[-1] - 100
    x = (np.arange(32) + 0.5) / 32
    np.testing.assert_allclose(s + s**2 / 400, np.broadcast_to((400 + 400**2 / 400) * x[:, None], s.shape), atol=0.5)
    np.testing.assert_allclose(s, s[:, :1] * np.ones(32), atol=1e-5)


def test_temperatures_stay_between_the_coldest_and_the_hottest():
    """Exactly so for implicit Euler; the case's scheme may undershoot by half a per cent of the jump in one step."""
    parameters = {**COLD, "t_top": 300, "beta": 2.0}
    exact = solve(32, parameters, scheme=IMPLICIT_EULER)
    assert exact.min() >= 100 - 1e-5 and exact.max() <= 500 + 1e-5
    found = solve(64, parameters)
    assert found.min() > 100 - 0.005 * 400 - 0.1 and found.max() <= 500 + 1e-5
    # No ringing: from a jump down, the mean only falls, and no wall cell comes back up by more than the undershoot.
    assert (np.diff(found.mean(axis=(1, 2))) < 0).all()
    assert np.diff(found[3:, 0, 32]).max() < 0.5


def test_exchanging_the_walls_transposes_the_solution():
    p = {"t0": 200, "t_left": 100, "t_right": 450, "t_bottom": 330, "t_top": 500, "beta": 1.5}
    q = {**p, "t_left": 330, "t_right": 500, "t_bottom": 100, "t_top": 450}
    found = solve(16, p)
    np.testing.assert_allclose(solve(16, q), found.transpose(0, 2, 1), atol=1e-5)
    mirrored = {**p, "t_left": 450, "t_right": 100}
    np.testing.assert_allclose(solve(16, mirrored), found[:, ::-1], atol=1e-5)
    assert np.abs(found - found.transpose(0, 2, 1)).max() > 50


def test_isolated_walls_keep_the_heat():
    def warm(x, p, rng):
        return 100 + 400 * x[0] * x[1] ** 2

    values = solve(16, {"beta": 2.0}, boundary=Neumann(0.0), initial=warm)
    np.testing.assert_allclose(values.mean(axis=(1, 2)), values[0].mean(), rtol=1e-9)
    assert np.ptp(values[-1]) < 0.8 * np.ptp(values[0])


def test_the_case_verifies_and_refuses_what_is_out_of_range():
    case.verify()
    with pytest.raises(ValueError, match=r"t0 = 600 .* in \[100, 500\]"):
        case.accept({"t0": 600})
    with pytest.raises(ValueError, match="no parameter 'T0'"):
        case.accept({"T0": 300})


def test_the_loss_on_tensors_vanishes_on_the_solvers_trajectory():
    """Solver and loss share one discretisation: its residual, relative to u / dt, is at the solver's tolerance."""
    torch = pytest.importorskip("torch")
    from headrace.solvers.right_hand_side import TensorRightHandSide

    small = case.resized((16, 16))
    p = small.accept({**COLD, "t_top": 350, "beta": 1.5})
    states = torch.from_numpy(solve(16, dict(p)))[:, None, None]
    f = TensorRightHandSide(small, torch.tensor([list(p.values())], dtype=torch.float64))
    dt = small.duration / small.num_snapshots
    for k in (0, 1, 40):
        old = list(states[max(0, k - 1) : k + 1])
        residual = small.scheme.residual(old, states[k + 1], f, k * dt, dt) * dt / states[k + 1].abs().max()
        assert residual.abs().max() < 1e-9, f"step {k}: {residual.abs().max():.3g}"
    shifted = small.scheme.residual(list(states[39:41]), states[42], f, 40 * dt, dt) * dt / states[42].abs().max()
    assert shifted.abs().max() > 1e-4
