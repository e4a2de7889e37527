"""The physics of the built-in cases that need no solver of their own: each against another source of its solution."""

import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from headrace.cases import (
    advection_diffusion,
    burgers,
    fisher_kpp,
    gray_scott,
    heat3d,
    kuramoto_sivashinsky,
    lorenz,
    mixed1d,
    wave1d,
)
from headrace.cases.catalogue import BUILT_IN, find_case
from headrace.solvers import Dirichlet, Grid, MemorySink, Neumann
from headrace.solvers.simulate import simulate

from .exact_solutions import cole_hopf, pulse_between_walls, spreading_bump


def solve(case, parameters=None, simulation=0):
    """Return the trajectory, (snapshots, fields, *grid)."""
    sink = MemorySink()
    simulate(case, case.accept(parameters or {}), sink, simulation=simulation)
    return sink.values


def points(case, axis=0):
    return case.grid.points(axis, periodic=case.periodic[axis])


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_case_keeps_its_contract(name):
    case = find_case(name).load()
    assert case.name == name
    assert re.search(r"Cost: about [\d.]+ (s|minutes|hours) on one core\.$", case.description)
    if name != "custom_case":
        assert re.search(r"\([^)]*(\d{4}|heat2d)[^)]*\)\. Cost", case.description), "the source is missing"
    assert (case.rhs or case.solver).__doc__, "the docstring is the equation"
    case.verify()


def test_heat3d_follows_its_fourier_series():
    """A cube at 500 K between walls at 100 K: the product of three series."""
    parameters = {"t0": 500, "beta": 0, **{f"walls_{i}": 100 for i in range(6)}}
    errors = []
    for n, steps in ((10, 2), (20, 4)):
        case = replace(heat3d.case.resized((n, n, n)), num_snapshots=10, steps_per_snapshot=steps)
        x, odd = points(case), np.arange(1, 200, 2)[:, None]
        line = np.sum(4 / (np.pi * odd) * np.sin(odd * np.pi * x) * np.exp(-((odd * np.pi) ** 2) * 0.05), axis=0)
        exact = 100 + 400 * line[:, None, None] * line[:, None] * line
        errors.append(np.abs(solve(case, parameters)[5, 0] - exact).max())
    assert errors[1] < 4.0 and errors[0] / errors[1] > 3.2, errors


@pytest.mark.parametrize("nu", [None, 1e-3])
def test_a_bump_is_carried_and_spreads(nu):
    case = advection_diffusion.convection_line if nu is None else advection_diffusion.line
    values = solve(case, {"c": 1.7, "x0": 0.3, **({} if nu is None else {"nu": nu})})
    for k in (0, 25, 50):
        width = advection_diffusion.WIDTH
        exact = spreading_bump(points(case), case.times[k], x0=0.3, c=1.7, nu=nu or 0.0, width=width)
        assert np.abs(values[k, 0] - exact).max() < 2e-3, f"off at t = {case.times[k]:g}"


@pytest.mark.parametrize("nu", [None, 2e-3])
def test_a_bump_is_carried_and_spreads_in_the_plane(nu):
    case = advection_diffusion.convection_in_plane if nu is None else advection_diffusion.plane
    values = solve(case, {"wind": (0.6, -0.8), "x0": (0.3, 0.6), **({} if nu is None else {"nu": nu})})
    lines = [
        spreading_bump(points(case, axis), 1.0, x0=x0, c=c, nu=nu or 0.0, width=advection_diffusion.WIDTH)
        for axis, (x0, c) in enumerate(((0.3, 0.6), (0.6, -0.8)))
    ]
    assert np.abs(values[-1, 0] - np.outer(*lines)).max() < (0.06 if nu is None else 0.01)
    assert values[-1].sum() == pytest.approx(values[0].sum(), rel=1e-12)


def test_burgers_is_cole_hopf():
    nu = 0.01
    case = replace(burgers.case, initial=lambda x, p, rng: np.sin(2 * np.pi * x[0]), num_snapshots=4)
    values = solve(case, {"nu": nu})
    for k in (1, 2, 4):
        exact = cole_hopf(points(case), case.times[k], nu, lambda y: -np.cos(2 * np.pi * y) / (2 * np.pi))
        assert np.abs(values[k, 0] - exact).max() < 2e-4, f"off at t = {case.times[k]:g}"


def test_burgers_conserves_momentum_and_loses_energy():
    values = solve(burgers.case, {"nu": 0.01}, simulation=5)[:, 0]
    momentum, energy = values.mean(axis=1), (values**2).mean(axis=1)
    assert np.abs(momentum - momentum[0]).max() < 1e-6
    assert np.all(np.diff(energy) < 0)
    # Different simulations start from different states; one simulation always from the same.
    first = solve(replace(burgers.case, duration=0.01, num_snapshots=1), simulation=1)[0]
    assert np.array_equal(first, solve(replace(burgers.case, duration=0.01, num_snapshots=1), simulation=1)[0])
    assert not np.array_equal(first, values[:1])


def test_burgers_in_the_plane_along_the_diagonal_is_burgers_on_a_line():
    """With u = v = w(x + y) the equation is W_t + W W_s = 2ν W_ss for W = 2w."""
    nu = 0.02

    def diagonal(x, p, rng):
        w = 0.25 * np.sin(2 * np.pi * (x[0] + x[1]))
        return w, w

    case = replace(burgers.plane, initial=diagonal, num_snapshots=2)
    u, v = solve(case, {"nu": nu})[-1]
    np.testing.assert_allclose(u, v, atol=1e-12)
    x = points(case)
    exact = cole_hopf(x, 0.5, 2 * nu, lambda s: -0.5 * np.cos(2 * np.pi * s) / (2 * np.pi)) / 2
    assert np.abs(u[:, 0] - exact).max() < 2e-4


@pytest.mark.parametrize(("mean", "height"), [(0.4, 1.0), (-0.3, 0.6)])
def test_the_shock_of_inviscid_burgers_is_where_it_should_be(mean, height):
    """By symmetry it stands at 1/2 in the frame of the mean; beside it characteristics tell the state."""
    case = burgers.inviscid
    values = solve(case, {"mean": mean, "height": height})[:, 0]
    x, t, n = points(case), case.duration, case.grid.shape[0]
    last = values[-1]
    steepest = np.argmin(np.roll(last, -1) - np.roll(last, 1))
    distance = (x[steepest] - 0.5 - mean * t + 0.5) % 1.0 - 0.5
    assert abs(distance) < 2 / n, f"the shock is {distance * n:.1f} cells off"
    start = np.linspace(0, 1, 200_001)
    arrived = start + (mean + height * np.sin(2 * np.pi * start)) * t
    # Of several characteristics that arrive at one point, those beyond the shock have died in it.
    alive = (start < 0.5) == (arrived < 0.5 + mean * t)
    exact = np.interp(x, arrived[alive], mean + height * np.sin(2 * np.pi * start[alive]), period=1.0)
    smooth = np.abs((x - 0.5 - mean * t + 0.5) % 1.0 - 0.5) > 4 / n
    assert np.abs(last - exact)[smooth].max() < 2e-3 * height
    assert last.max() < mean + height + 1e-6 and last.min() > mean - height - 1e-6
    np.testing.assert_allclose(values.mean(axis=1), mean, atol=1e-13)


WAVES = {"amplitude": (0.3, 0.2, 0.5, 0.1, 0.4), "omega": (0.1, -0.3, 0.4, 0.2, -0.1), "waves": (1, 2, 1, 2, 2),
         "phase": (0.1, 2.0, 3.0, 4.0, 5.0)}  # fmt: skip


def test_the_mixed_family_without_transport_is_linear():
    """α = 0: every Fourier mode obeys an ordinary differential equation of its own."""
    case = replace(mixed1d.e3, num_snapshots=50)
    p = case.accept({"alpha": 0, "beta": 0.3, "gamma": 0.7, **WAVES})
    values = solve(case, dict(p))[:, 0]
    x = points(case)
    for mode in (1, 2):
        k = 2 * np.pi * mode / mixed1d.LENGTH

        def source(t, mode=mode):
            return np.fft.fft(mixed1d.forcing(x, p, t))[mode] / len(x)

        def change(t, u, k=k, source=source):
            return (-p.beta * k**2 + 1j * p.gamma * k**3) * u + source(t)

        exact = solve_ivp(change, (0, 2), [source(0.0)], rtol=1e-10, atol=1e-12).y[0, -1]
        assert abs(np.fft.fft(values[-1])[mode] / len(x) - exact) < 1e-5


def test_the_mixed_family_agrees_with_a_spectral_solution_and_with_itself():
    """E3 against a dealiased pseudo-spectral solution; with α = 1, β, γ = 0 the three equations are one."""
    case = replace(mixed1d.e3, num_snapshots=20, steps_per_snapshot=15, duration=1.0)
    p = case.accept({"alpha": 2.0, "beta": 0.3, "gamma": 0.2, **WAVES})
    n, x = 200, points(case)
    k = 2 * np.pi / mixed1d.LENGTH * np.fft.rfftfreq(n, 1 / n)
    kept = np.arange(len(k)) < n / 3

    def change(t, v):
        u = np.fft.irfft(v * kept, n)
        flux = 1j * k * np.fft.rfft(p.alpha * u * u / 2) * kept
        return (-p.beta * k**2 + 1j * p.gamma * k**3) * v - flux + np.fft.rfft(mixed1d.forcing(x, p, t))

    start = np.fft.rfft(mixed1d.forcing(x, p, 0.0))
    exact = np.fft.irfft(solve_ivp(change, (0, 1), start, rtol=1e-8, atol=1e-8).y[:, -1], n)
    assert np.abs(solve(case, dict(p))[-1, 0] - exact).max() < 1e-4

    short = {"duration": 0.5, "num_snapshots": 5, "steps_per_snapshot": 12}
    runs = [
        solve(replace(mixed1d.e1, **short), WAVES),
        solve(replace(mixed1d.e2, **short), {"beta": 0, **WAVES}),
    ]
    np.testing.assert_allclose(runs[0], runs[1], atol=1e-5)
    np.testing.assert_allclose(runs[0].mean(axis=-1), 0, atol=1e-13)


DRAWN = [("we3", (2 * left - 1, 2 * right - 1)) for left in (0, 1) for right in (0, 1)]


@pytest.mark.parametrize(("name", "signs"), [("we1", (-1, -1)), ("we2", (1, 1)), *DRAWN])
def test_a_pulse_is_reflected_as_dalembert_says(name, signs):
    case = replace(getattr(wave1d, name), duration=25.0, num_snapshots=62)
    kinds = {"bc_left": (signs[0] + 1) // 2, "bc_right": (signs[1] + 1) // 2} if name == "we3" else {}
    values = solve(case, {"x0": 1.3, **kinds})
    x = points(case)
    for k in (0, 20, 62):
        exact = pulse_between_walls(x, case.times[k], 1.3, speed=wave1d.SPEED, low=-8.0, high=8.0, signs=signs)
        assert np.abs(values[k, 0] - exact).max() < 2e-3, f"off at t = {case.times[k]:g}"


def test_kuramoto_sivashinsky_against_a_stiff_integrator():
    """The same spectral equation by another route: an implicit method of variable order on the Fourier modes."""
    case = replace(kuramoto_sivashinsky.case.resized((96,)), duration=10.0, num_snapshots=10, steps_per_snapshot=20)
    values = solve(case, {"nu": 1.1}, simulation=3)[:, 0]
    n = 96
    k = 2 * np.pi / kuramoto_sivashinsky.LENGTH * np.fft.rfftfreq(n, 1 / n)

    def change(t, u):
        v = np.fft.rfft(u)
        # The derivative of the highest mode is not a real function on the grid.
        slope = np.where(np.arange(len(k)) < n // 2, 1j * k, 0.0)
        return np.fft.irfft((k**2 - 1.1 * k**4) * v - 0.5 * slope * np.fft.rfft(u * u), n)

    exact = solve_ivp(change, (0, 10), values[0], method="LSODA", rtol=1e-8, atol=1e-9).y[:, -1]
    assert np.abs(values[-1] - exact).max() < 1e-4 * np.abs(exact).max()
    np.testing.assert_allclose(values.mean(axis=1), values[0].mean(), atol=1e-12)


def test_small_waves_of_kuramoto_sivashinsky_grow_as_linear_theory_says():
    mode, k = 5, 2 * np.pi * 5 / kuramoto_sivashinsky.LENGTH
    case = replace(kuramoto_sivashinsky.case, duration=5.0, num_snapshots=1, steps_per_snapshot=20,
                   initial=lambda x, p, rng: 1e-6 * np.sin(k * x[0]))  # fmt: skip
    first, last = np.abs(np.fft.fft(solve(case, {"nu": 0.9})[:, 0]))[:, mode]
    assert np.log(last / first) / 5.0 == pytest.approx(k**2 - 0.9 * k**4, rel=1e-4)


def test_gray_scott_without_space_is_its_reaction():
    case = replace(gray_scott.case.resized((6, 6)), initial=lambda x, p, rng: (0.5, 0.3), duration=100.0,
                   num_snapshots=5, steps_per_snapshot=20)  # fmt: skip
    values = solve(case, {"feed": 0.03, "kill": 0.06})

    def change(t, u):
        eaten = u[0] * u[1] ** 2
        return -eaten + 0.03 * (1 - u[0]), eaten - 0.09 * u[1]

    exact = solve_ivp(change, (0, 100), (0.5, 0.3), rtol=1e-10, atol=1e-12).y[:, -1]
    np.testing.assert_allclose(values[-1, :, 0, 0], exact, atol=1e-4)
    assert np.ptp(values[-1], axis=(1, 2)).max() < 1e-13


def test_gray_scott_feeds_what_it_loses():
    """d/dt mean(a + b) = F (1 - mean a) - (F + k) mean b, and drops do not fade everywhere."""
    case = replace(gray_scott.case.resized((96, 96)), duration=200.0, num_snapshots=100)
    values = solve(case, {"feed": 0.035, "kill": 0.06}, simulation=2)
    a, b = values.mean(axis=(2, 3)).T
    gain = 0.035 * (1 - a) - 0.095 * b
    grown = np.sum((gain[1:] + gain[:-1]) / 2) * case.duration / case.num_snapshots
    assert (a + b)[-1] - (a + b)[0] == pytest.approx(grown, abs=1e-4)
    assert values.min() > -1e-9 and values.max() < 1 + 1e-9 and values[-1, 1].std() > 0.02


def test_fisher_fronts_are_those_of_ablowitz_and_zeppetella():
    """u = (1 + exp(√(r / 6ν) x - 5/6 r t))^-2 solves the equation on a line and travels with speed 5 √(r ν / 6)."""
    nu, r = 2e-3, 8.0
    errors = []
    for n in (100, 200):
        def front(x, t):
            return (1 + np.exp(np.sqrt(r / (6 * nu)) * (x - 0.2) - 5 / 6 * r * t)) ** -2

        case = replace(
            fisher_kpp.case, grid=Grid(shape=(n,), extent=(1.0,)), initial=lambda x, p, rng, f=front: f(x[0], 0.0),
            boundary={"x": (Dirichlet(lambda x, p, t, f=front: f(0.0, t)), Neumann(0.0))}, num_snapshots=2,
        )  # fmt: skip
        errors.append(np.abs(solve(case, {"nu": nu, "r": r})[-1, 0] - front(points(case), 1.0)).max())
    assert errors[1] < 5e-3 and errors[0] / errors[1] > 3.5, errors


def test_lorenz_members_are_trajectories_of_their_own():
    case = replace(lorenz.case.resized((5,)), duration=2.0, num_snapshots=20)
    values = solve(case, {"rho": 28}, simulation=4)

    def change(t, u):
        x, y, z = u
        return 10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z

    for member in (0, 4):
        exact = solve_ivp(change, (0, 2), values[0, :, member], method="DOP853", rtol=1e-11, atol=1e-11).y[:, -1]
        np.testing.assert_allclose(values[-1, :, member], exact, atol=1e-4)


def test_lorenz_volumes_shrink_and_states_settle_below_the_onset_of_chaos():
    """Volumes contract by exp(-(10 + 1 + 8/3) t), whatever the state."""
    corner = np.array([5.0, -3.0, 20.0])
    edges = 1e-4 * np.vstack([np.zeros(3), np.eye(3)]).T
    case = replace(lorenz.case.resized((4,)), duration=0.2, num_snapshots=1,
                   initial=lambda x, p, rng: tuple(corner[:, None] + edges))  # fmt: skip
    first, last = (abs(np.linalg.det(state[:, 1:] - state[:, :1])) for state in solve(case, {"rho": 28}))
    assert last / first == pytest.approx(np.exp(-(10 + 1 + 8 / 3) * 0.2), rel=1e-3)
    settled = replace(lorenz.case.resized((2,)), duration=60.0, num_snapshots=2)
    state = solve(settled, {"rho": 20})[-1, :, 0]
    np.testing.assert_allclose([abs(state[0]), state[2]], [np.sqrt(8 / 3 * 19), 19], atol=0.02)
