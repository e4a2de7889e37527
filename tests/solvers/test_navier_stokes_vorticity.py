"""Vorticity by differences: exact decay, conservation, order in space and time, one residual for arrays and tensors."""

import math
from dataclasses import replace

import numpy as np
import pytest

from headrace.cases.navier_stokes2d import case as spectral
from headrace.cases.navier_stokes2d import differences, stirring
from headrace.solvers import Case, Grid, MemorySink, Neumann
from headrace.solvers.newton import DivergenceError
from headrace.solvers.simulate import simulate
from headrace.solvers.vorticity import (
    IMPLICIT_MIDPOINT,
    VORTICITY_SCHEMES,
    VorticityFlow,
    WholePlane,
    jacobian,
    solve_vorticity_by_differences,
)

EACH_SCHEME = pytest.mark.parametrize("scheme", VORTICITY_SCHEMES, ids=lambda s: type(s).__name__)


def run(case, values=None):
    sink = MemorySink()
    simulate(case, case.accept(values or {}), sink, simulation=4)
    return sink.values


def smooth(x, p, rng):
    x, y = 2 * np.pi * x[0], 2 * np.pi * x[1]
    return 8 * (np.cos(x) * np.sin(2 * y) + np.sin(2 * x + y) + 0.5 * np.cos(3 * y - x))


def make_case(*, n=24, scheme=None, steps=None, duration=0.5, snapshots=1, initial=smooth, **options):
    options = {"viscosity": 0.01, "forcing": stirring, **options}

    def flow(case, p, comm, rng):
        return solve_vorticity_by_differences(case, p, comm, rng, **options)

    return Case(
        name="flow", fields=("w",), grid=Grid(shape=(n, n), extent=(1.0, 1.0)), initial=initial, solver=flow,
        duration=duration, num_snapshots=snapshots, steps_per_snapshot=steps, scheme=scheme,
    )  # fmt: skip


def test_the_jacobian_conserves_and_is_antisymmetric():
    plane = WholePlane((12, 10), (0.1, 0.2))
    a, b = np.random.default_rng(0).normal(size=(2, 12, 10))
    found = jacobian(plane.padded(a), plane.padded(b), (0.1, 0.2))
    for weight in (1.0, a, b):
        assert abs((weight * found).mean()) < 1e-13 * np.abs(found).max()
    np.testing.assert_allclose(found, -jacobian(plane.padded(b), plane.padded(a), (0.1, 0.2)), atol=1e-11)


def test_the_jacobian_is_of_second_order():
    errors = []
    for n in (32, 64, 128):
        plane, x = WholePlane((n, n), (1 / n, 1 / n)), 2 * np.pi * np.arange(n) / n
        x, y = x[:, None], x[None, :]
        a, b = np.sin(x) * np.cos(2 * y), np.cos(x + y) + 0 * x
        exact = 4 * np.pi**2 * (
            np.cos(x) * np.cos(2 * y) * -np.sin(x + y) - -2 * np.sin(x) * np.sin(2 * y) * -np.sin(x + y)
        )
        errors.append(np.abs(jacobian(plane.padded(a), plane.padded(b), (1 / n, 1 / n)) - exact).max())
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all(np.abs(ratios - 4) < 0.3), (errors, ratios)


@EACH_SCHEME
def test_order_in_time(scheme):
    reference = run(make_case(steps=640))[1]
    errors = [np.abs(run(make_case(steps=n, scheme=scheme))[1] - reference).max() for n in (32, 64, 128)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(np.abs(orders - 2) < 0.25), (errors, orders)


def test_second_order_in_space_against_the_spectral_solution():
    """The whole solver, refined in space and time together."""
    def fine(x, p, rng):
        return smooth(x, p, rng) / 8

    changes = dict(initial=fine, duration=0.5, num_snapshots=1)
    errors = []
    for n in (24, 48, 96):
        grid = Grid(shape=(n, n), extent=(1.0, 1.0))
        exact = run(replace(spectral, **changes, grid=grid, steps_per_snapshot=64), {"nu": 1e-3})[1]
        found = run(replace(differences, **changes, grid=grid, steps_per_snapshot=n // 2), {"nu": 1e-3})[1]
        errors.append(np.sqrt(np.mean((found - exact) ** 2)))
    ratios = np.divide(errors[:-1], errors[1:])
    assert np.all(np.abs(ratios - 4) < 0.3), (errors, ratios)


def test_midpoint_steps_conserve_energy_and_enstrophy():
    def rough(x, p, rng):
        return rng.normal(size=x[0].shape)

    states = run(make_case(n=16, initial=rough, viscosity=0.0, forcing=None, duration=1.0, snapshots=4))[:, 0]
    states -= states.mean()
    plane = WholePlane((16, 16), (1 / 16, 1 / 16))
    enstrophy = [np.mean(w**2) for w in states]
    energy = [np.mean(w * plane.solve(0.0, 1.0, w)) for w in states]
    assert np.abs(states[-1] - states[0]).max() > 0.1
    np.testing.assert_allclose(enstrophy, enstrophy[0], rtol=1e-11)
    np.testing.assert_allclose(energy, energy[0], rtol=1e-11)


@EACH_SCHEME
def test_one_mode_decays_by_the_factor_of_crank_nicolson(scheme):
    def mode(x, p, rng):
        return np.sin(2 * np.pi * (2 * x[0] + x[1]))

    found = run(make_case(n=16, initial=mode, forcing=None, drag=0.2, steps=5, scheme=scheme))
    damping = 0.01 * 4 * 16**2 * (math.sin(np.pi * 2 / 16) ** 2 + math.sin(np.pi / 16) ** 2) + 0.2
    factor = (1 - 0.05 * damping) / (1 + 0.05 * damping)
    np.testing.assert_allclose(found[1], factor**5 * found[0], atol=1e-12)


@EACH_SCHEME
def test_the_trajectory_makes_the_residual_vanish(scheme):
    states = run(make_case(scheme=scheme, steps=1, duration=0.05, snapshots=10))
    x = np.arange(24) / 24
    plane = WholePlane((24, 24), (1 / 24, 1 / 24))
    flow = VorticityFlow(plane, (1 / 24, 1 / 24), viscosity=0.01, forcing=stirring((x[:, None], x[None, :])))
    for n in range(1, 10):
        defect = scheme.residual(list(states[n - 1 : n + 1]), states[n + 1], flow, 0.0, 0.005)
        assert np.abs(defect).max() < 1e-8
        wrong = scheme.residual(list(states[n - 1 : n + 1]), states[n] * 1.01, flow, 0.0, 0.005)
        assert np.abs(wrong).max() > 1


@EACH_SCHEME
def test_tensors_give_the_same_residual_and_gradients(scheme):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(2)
    old, older, new = rng.normal(size=(3, 1, 4, 10, 12))  # (states, fields, batch, nx, ny)
    flow = VorticityFlow(WholePlane((10, 12), (0.1, 0.1)), (0.1, 0.1), viscosity=0.02, drag=0.1)
    expected = scheme.residual([older, old], new, flow, 0.0, 0.01)
    tensor = torch.tensor(new, requires_grad=True)
    found = scheme.residual([torch.tensor(older), torch.tensor(old)], tensor, flow, 0.0, 0.01)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12, atol=1e-11)
    (found**2).mean().backward()
    direction, step = rng.normal(size=new.shape), 1e-6
    losses = [
        np.mean(scheme.residual([older, old], new + sign * step * direction, flow, 0.0, 0.01) ** 2) for sign in (1, -1)
    ]
    slope = float((tensor.grad.numpy() * direction).sum())
    assert slope == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)


def test_a_step_too_long_is_refused():
    with pytest.raises(DivergenceError, match=r"did not converge.*steps_per_snapshot"):
        run(make_case(initial=lambda x, p, rng: 1000 * smooth(x, p, rng), steps=1))


def test_another_geometry_is_refused():
    case = replace(make_case(), boundary={"x": Neumann(), "y": Neumann()})
    with pytest.raises(ValueError, match="takes one field on two periodic axes"):
        run(case)


def test_the_case_is_valid_and_uses_the_midpoint():
    differences.verify()
    assert differences.scheme is IMPLICIT_MIDPOINT
