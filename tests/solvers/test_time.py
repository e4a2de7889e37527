"""Schemes that split off a stiff part, and adaptive steps: order, residual, stability, any number of ranks."""

from dataclasses import replace

import numpy as np
import pytest

from headrace.solvers import Dirichlet, Grid, Neumann, Parameters, Periodic
from headrace.solvers.exponential import ETDRK4, exponential_weights
from headrace.solvers.imex import ALL_IMEX, CNAB2, SBDF2
from headrace.solvers.newton import DivergenceError
from headrace.solvers.scheme import DORMAND_PRINCE, RK4

from .problems import make_case, orders, run, serial_rhs

SPLIT = (*ALL_IMEX, ETDRK4)
WALLS = {"x": (Dirichlet(0.3), Neumann(0.2)), "y": Periodic()}


def reaction(u, d, p, t):
    """∂u/∂t = ∇²u / 10 - u² + cos(8t) sin(2πx)."""
    return diffusion(u, d, p, t) - u * u + np.cos(8 * t) * np.sin(2 * np.pi * d.x[0])


def diffusion(u, d, p, t):
    """∇²u / 10."""
    return 0.1 * d.laplacian(u)


def split_case(**changes):
    given = dict(grid=Grid(shape=(12, 10), extent=(1.0, 0.7)), rhs=reaction, stiff=diffusion, duration=0.4,
                 num_snapshots=1, parameters={})  # fmt: skip
    return make_case(**{**given, **changes})


@pytest.mark.parametrize(
    ("scheme", "boundary"), [*((scheme, Periodic()) for scheme in SPLIT), *((scheme, WALLS) for scheme in ALL_IMEX)]
)
def test_order_in_time(scheme, boundary):
    """Against many explicit steps on the same grid, so that the error in space cancels."""

    def final(scheme, steps):
        return run(split_case(scheme=scheme, steps_per_snapshot=steps, boundary=boundary)).values[-1]

    reference = final(RK4, 400)
    errors = [np.abs(final(scheme, n) - reference).max() for n in (20, 40, 80)]
    observed = orders(errors)
    band = 0.25 if boundary == Periodic() else 0.4
    assert abs(observed[-1] - scheme.order) < band, f"{scheme.name}: errors {errors}, orders {observed}"


@pytest.mark.parametrize("scheme", SPLIT, ids=lambda s: s.name)
@pytest.mark.parametrize("tensors", [False, True], ids=["arrays", "tensors"])
def test_the_residual_of_the_solvers_own_trajectory_vanishes(scheme, tensors):
    """On arrays and on tensors, below 1e-8 in units of u / dt; of another trajectory it does not."""
    steps = 6
    case = split_case(scheme=scheme, num_snapshots=steps, steps_per_snapshot=1, duration=0.05,
                      boundary=Periodic() if scheme is ETDRK4 else WALLS)  # fmt: skip
    dt = case.duration / steps
    own = run(case).values
    other = run(replace(case, scheme=RK4, steps_per_snapshot=100)).values
    if tensors:
        torch = pytest.importorskip("torch")
        from headrace.solvers.right_hand_side import TensorRightHandSide

        f = TensorRightHandSide(case, torch.zeros((1, 0), dtype=torch.float64))
        own, other = (torch.from_numpy(states)[:, :, None] for states in (own, other))
    else:
        f = serial_rhs(case, Parameters({}), own[0])

    def worst(states):
        residuals = []
        for n in range(steps):
            old = list(states[max(0, n + 1 - scheme.num_old) : n + 1])
            residuals.append(float(abs(scheme.residual(old, states[n + 1], f, n * dt, dt)).max()))
        return max(residuals) * dt / float(abs(states).max())

    assert worst(own) < 1e-8
    assert worst(other) > (1e-10 if scheme is ETDRK4 else 1e-5)
    assert worst(other) > 20 * worst(own)


@pytest.mark.parametrize("scheme", [SBDF2, CNAB2, ETDRK4, None], ids=str)
def test_stiff_parts_do_not_shorten_steps(scheme):
    """Diffusion that would need 2000 explicit steps takes a handful; the chosen steps are stable."""
    calls = []

    def rhs(u, d, p, t):
        calls.append(t)
        return diffusion(u, d, p, t) - d.advect((1.0, 0.0), u)

    case = split_case(grid=Grid(shape=(48, 48), extent=(1.0, 1.0)), rhs=rhs, scheme=scheme, num_snapshots=4)
    values = run(case).values
    assert np.abs(values).max() <= np.abs(values[0]).max() * 1.001 and len(calls) < 600
    mode = np.abs(np.fft.fft2(values[:, 0])[:, 1, 0])
    # The wave sin(2πx) decays by exp(-0.1 (2π)² t) while it travels.
    assert mode[-1] / mode[0] == pytest.approx(np.exp(-0.1 * (2 * np.pi) ** 2 * 0.4), rel=0.02)


def test_exponential_weights_at_zero_and_far_from_it():
    E, E2, Q, f1, f2, f3 = exponential_weights(np.array([0.0, -1e-8, -3.0, -1e4]), 1.0)
    np.testing.assert_allclose(Q[:2], 0.5, rtol=1e-7)
    np.testing.assert_allclose([f1[0], f2[0], f3[0]], 1 / 6, rtol=1e-12)
    # Σ weights at L is φ1(L) = (e^L - 1) / L: exact for a constant N.
    L = np.array([-3.0, -1e4])
    np.testing.assert_allclose((f1 + 4 * f2 + f3)[2:], np.expm1(L) / L, rtol=1e-9)
    np.testing.assert_allclose(E2[2:] ** 2, E[2:])


@pytest.mark.parametrize(
    ("stiff", "message"),
    [
        (lambda u, d, p, t: (1 + 0.5 * np.sin(2 * np.pi * d.x[0])) * d.laplacian(u), "coefficients constant in space"),
        (lambda u, d, p, t: d.laplacian(u) + 1.0, "coefficients constant in space"),
    ],
)
def test_etdrk4_refuses_a_stiff_part_without_a_symbol(stiff, message):
    with pytest.raises(ValueError, match=message):
        run(split_case(stiff=stiff, scheme=ETDRK4))


def test_etdrk4_refuses_coupled_fields():
    def crossed(u, d, p, t):
        return d.laplacian(u[1]), d.laplacian(u[0])

    with pytest.raises(ValueError, match="couples fields"):
        run(split_case(fields=("a", "b"), initial=lambda x, p, rng: (x[0], x[1]), rhs=crossed, stiff=crossed,
                       scheme=ETDRK4))  # fmt: skip


@pytest.mark.filterwarnings("ignore:Case fisher")
def test_verify_asks_that_the_stiff_part_is_linear():
    split_case(boundary=WALLS).verify()
    with pytest.raises(ValueError, match="stiff is not linear in u"):
        split_case(stiff=lambda u, d, p, t: d.laplacian(u * u)).verify()


def pendulum(u, d, p, t):
    """x'' = (1 - x²) 20 x' - x: van der Pol, with stretches of very different speed."""
    x, v = u
    return v, 20 * (1 - x * x) * v - x


def clock_case(scheme):
    return make_case(fields=("x", "v"), grid=Grid(shape=(2,), extent=(1.0,)), rhs=pendulum, scheme=scheme,
                     initial=lambda x, p, rng: (2.0, 0.0), duration=30.0, num_snapshots=5, parameters={})  # fmt: skip


def test_adaptive_steps_keep_to_their_tolerance():
    solution = run(clock_case(replace(DORMAND_PRINCE, rtol=1e-11, atol=1e-12))).values
    errors = [
        np.abs(run(clock_case(replace(DORMAND_PRINCE, rtol=tolerance, atol=tolerance))).values - solution).max()
        for tolerance in (1e-5, 1e-7, 1e-9)
    ]
    assert errors[0] < 0.05 and errors[2] < 1e-5 and errors[0] > errors[1] > errors[2], errors


def test_adaptive_steps_follow_the_speed_of_the_solution():
    times = []

    def watched(u, d, p, t):
        times.append(t)
        return pendulum(u, d, p, t)

    run(replace(clock_case(DORMAND_PRINCE), rhs=watched))
    steps = np.diff(np.unique(times))
    assert len(times) < 20_000 and steps.max() > 30 * np.percentile(steps, 5)


def test_a_vanishing_step_is_a_divergence():
    case = make_case(rhs=lambda u, d, p, t: u * u, duration=10.0, scheme=DORMAND_PRINCE)
    with pytest.raises(DivergenceError, match=r"vanished at t = .*field u"):
        run(case)
