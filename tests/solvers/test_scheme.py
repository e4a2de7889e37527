"""Every scheme has its order, and its residual vanishes on what it steps to."""

import math

import numpy as np
import pytest

from headrace.solvers.scheme import ALL_SCHEMES, BDF2, CRANK_NICOLSON, IMPLICIT_EULER, SDIRK2, LinearMultistep

from .problems import orders

IDS = [scheme.name for scheme in ALL_SCHEMES]


def f(u, t):
    """u' = -u² + cos t + sin² t, solved by sin t + where u(0) = 0."""
    return math.cos(t) + math.sin(t) ** 2 - u * u


def solve(sigma, beta, known, t, guess):
    """Newton's method for the scalar equation, to rounding."""
    u = guess
    for _ in range(50):
        u = u - (sigma * u - beta * f(u, t) + known) / (sigma + 2 * beta * u)
    return u


def march(scheme, steps, duration=1.0):
    dt = duration / steps
    states = [np.array([0.0])]
    for n in range(steps):
        states.append(scheme.step(states[-max(scheme.num_old, 1) :], f, n * dt, dt, solve))
    return states, dt


@pytest.mark.parametrize("scheme", ALL_SCHEMES, ids=IDS)
def test_observed_order(scheme):
    errors = [abs(march(scheme, steps)[0][-1][0] - math.sin(1.0)) for steps in (20, 40, 80)]
    observed = orders(errors)
    assert abs(observed[-1] - scheme.order) < 0.15, f"{scheme.name}: errors {errors}, orders {observed}"


@pytest.mark.parametrize("scheme", ALL_SCHEMES, ids=IDS)
@pytest.mark.parametrize("tensors", [False, True])
def test_the_residual_of_its_own_steps_vanishes_and_of_others_does_not(scheme, tensors):
    states, dt = march(scheme, 10)
    other, _ = march(IMPLICIT_EULER if scheme is not IMPLICIT_EULER else CRANK_NICOLSON, 10)
    if tensors:
        torch = pytest.importorskip("torch")
        states, other = ([torch.from_numpy(u) for u in run] for run in (states, other))
    for run, check in ((states, lambda r: r < 1e-12), (other, lambda r: r > 1e-4)):
        residuals = []
        for n in range(1, 10):
            old = run[max(0, n + 1 - scheme.num_old) : n + 1]
            residuals.append(abs(scheme.residual(old, run[n + 1], f, n * dt, dt)).item())
        assert check(max(residuals)), f"{scheme.name}: {residuals}"


def test_bdf2_starts_with_implicit_euler():
    u0, u1 = np.array([0.0]), np.array([0.3])
    assert BDF2.residual([u0], u1, f, 0.0, 0.1) == IMPLICIT_EULER.residual([u0], u1, f, 0.0, 0.1)


def test_l_stable_schemes_damp_what_is_stiff_and_crank_nicolson_does_not():
    stiff = -1e6

    def step(scheme, old):
        return scheme.step(
            old, lambda u, t: stiff * u, 0.0, 1.0, lambda sigma, beta, known, t, guess: -known / (sigma - beta * stiff)
        )

    assert abs(step(IMPLICIT_EULER, [1.0])) < 1e-5
    assert abs(step(BDF2, [1.0, 1.0])) < 1e-5
    assert abs(step(SDIRK2, [1.0])) < 1e-5
    assert step(CRANK_NICOLSON, [1.0]) == pytest.approx(-1.0, abs=1e-5)


def test_misuse_is_named():
    lonely = LinearMultistep(name="lonely", order=2, a=BDF2.a, b=BDF2.b)
    with pytest.raises(ValueError, match="needs 2 earlier states, got 1"):
        lonely.residual([1.0], 1.0, f, 0.0, 0.1)
    with pytest.raises(ValueError, match="needs a solver"):
        BDF2.step([1.0], f, 0.0, 0.1)
