"""Whole simulations: order in space and time, stable steps, failures, the sink's part."""

import numpy as np
import pytest

from headrace.solvers import Case, Dirichlet, Grid, MemorySink, Neumann, Periodic, Snapshot
from headrace.solvers.exponential import ETDRK4
from headrace.solvers.imex import SBDF2
from headrace.solvers.newton import DivergenceError
from headrace.solvers.scheme import ALL_SCHEMES, BDF2, CRANK_NICOLSON, RK4, SSPRK3
from headrace.solvers.simulate import simulate

from .problems import arithmetic, fisher, make_case, mixed_boundary, orders, run, serial_rhs

PI = np.pi


def solution(x, y, t):
    """u = 2 + e^-t sin(πx) cos(2πy), manufactured."""
    return 2 + np.exp(-t) * np.sin(PI * x) * np.cos(2 * PI * y)


def manufactured(u, d, p, t):
    """∂u/∂t = ∇·(u ∇u) + source, with the source that makes `solution` exact."""
    x, y = d.x
    e = np.exp(-t)
    w = e * np.sin(PI * x) * np.cos(2 * PI * y)
    wx, wy = PI * e * np.cos(PI * x) * np.cos(2 * PI * y), -2 * PI * e * np.sin(PI * x) * np.sin(2 * PI * y)
    return d.diffuse(u, u) - w + 5 * PI**2 * (2 + w) * w - wx * wx - wy * wy


def manufactured_case(n, steps, scheme):
    return make_case(
        grid=Grid(shape=(n, n), extent=(1.0, 1.0)), rhs=manufactured, scheme=scheme, parameters={}, duration=0.2,
        num_snapshots=1, steps_per_snapshot=steps, initial=lambda x, p, rng: solution(*x, 0.0),
        boundary={
            "x": (Dirichlet(2.0), Neumann(lambda x, p, t: -PI * np.exp(-t) * np.cos(2 * PI * x[1]))),
            "y": Dirichlet(lambda x, p, t: 2 + np.exp(-t) * np.sin(PI * x[0])),
        },
    )  # fmt: skip


def manufactured_error(n, steps, scheme=BDF2):
    case = manufactured_case(n, steps, scheme)
    x = np.meshgrid(*(case.grid.points(a, periodic=False) for a in (0, 1)), indexing="ij")
    return np.abs(run(case).values[-1, 0] - solution(*x, case.duration)).max()


@pytest.mark.parametrize("scheme", [BDF2, CRANK_NICOLSON], ids=lambda s: s.name)
def test_second_order_in_space_with_walls_of_every_kind(scheme):
    errors = [manufactured_error(n, 400 if n == 48 else 200, scheme) for n in (12, 24, 48)]
    observed = orders(errors)
    assert observed[-1] > 1.85, f"errors {errors}, orders {observed}"


@pytest.mark.parametrize("scheme", [scheme for scheme in ALL_SCHEMES if scheme.implicit], ids=lambda s: s.name)
def test_order_in_time(scheme):
    """Against many explicit steps on the same grid, so that the error in space cancels."""

    def forced(u, d, p, t):
        return 0.01 * d.laplacian(u) - u * u + np.cos(8 * t) * np.sin(2 * PI * d.x[0])

    def final(scheme, steps):
        case = make_case(rhs=forced, duration=1.0, num_snapshots=1, scheme=scheme, steps_per_snapshot=steps)
        return run(case).values[-1]

    reference = final(RK4, 200)
    errors = [np.abs(final(scheme, n) - reference).max() for n in (20, 40, 80)]
    observed = orders(errors)
    assert abs(observed[-1] - scheme.order) < 0.25, f"{scheme.name}: errors {errors}, orders {observed}"


@pytest.mark.parametrize("scheme", ALL_SCHEMES, ids=lambda s: s.name)
def test_the_residual_of_the_solvers_own_trajectory_vanishes(scheme):
    """In units of u / dt, below 1e-8; of a trajectory of another scheme it does not vanish."""
    steps = 5
    case = make_case(rhs=arithmetic, boundary=mixed_boundary(2), scheme=scheme, num_snapshots=steps, duration=0.01,
                     steps_per_snapshot=1)  # fmt: skip
    dt = case.duration / steps
    f = serial_rhs(case, case.accept({}), run(case).values[0])

    def worst(states):
        residuals = []
        for n in range(steps):
            old = states[max(0, n + 1 - scheme.num_old) : n + 1]
            residuals.append(np.abs(scheme.residual(list(old), states[n + 1], f, n * dt, dt)).max())
        return max(residuals) * dt / np.abs(states).max()

    assert worst(run(case).values) < 1e-8
    other = make_case(rhs=fisher, boundary=mixed_boundary(2), num_snapshots=steps, duration=0.01, steps_per_snapshot=1)
    assert worst(run(other).values) > 1e-5


def test_explicit_steps_are_stable_and_not_needlessly_small():
    """Heat with a step at the limit keeps the maximum principle; a step 1.5 times the chosen one does not."""
    counted = []

    def heat(u, d, p, t):
        counted.append(t)
        return d.laplacian(u)

    noisy = {"initial": lambda x, p, rng: rng.uniform(size=x[0].shape), "rhs": heat, "num_snapshots": 1}
    case = make_case(duration=0.05, **noisy)
    values = run(case).values
    assert values[1].min() >= values[0].min() and values[1].max() <= values[0].max()
    chosen = len({t for t in counted if t > 0}) / 2
    # The exact limit: 4 (1/hx² + 1/hy²) dt <= 2.51 for SSPRK3.
    needed = 0.05 * 4 * (20**2 + 20**2) / 2.51
    assert needed < chosen < 2.2 * needed
    wild = run(make_case(duration=0.05, scheme=SSPRK3, steps_per_snapshot=int(needed / 1.5), **noisy)).values
    assert np.abs(wild[1]).max() > 10


def test_advection_by_central_differences_is_stable_too():
    case = make_case(rhs=lambda u, d, p, t: -d.advect((1.0, 0.7), u), duration=1.0, num_snapshots=5, scheme=RK4)
    values = run(case).values
    assert np.isfinite(values).all() and np.abs(values).max() < 1.5 * np.abs(values[0]).max()


def test_snapshots_come_at_their_times():
    case = make_case(num_snapshots=3)
    sink = run(case)
    np.testing.assert_allclose(sink.times, [0, 0.1 / 3, 0.2 / 3, 0.1])
    assert sink.values.shape == (4, 1, 20, 14) and sink.values.dtype == np.float64


def test_random_initial_states_are_keyed_by_study_and_simulation():
    case = make_case(initial=lambda x, p, rng: rng.normal(size=x[0].shape), num_snapshots=1, duration=1e-6)
    first, again, other, another = (
        run(case, study_seed=s, simulation=n).values[0] for s, n in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    np.testing.assert_array_equal(first, again)
    assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.2
    assert abs(np.corrcoef(first.ravel(), another.ravel())[0, 1]) < 0.2


class Recorder(MemorySink):
    """A sink that stops, or breaks, at a step."""

    def __init__(self, stop_at=None, break_at=None):
        super().__init__()
        self.stop_at, self.break_at, self.closed = stop_at, break_at, []

    def write(self, snapshot):
        super().write(snapshot)
        if snapshot.step == self.break_at:
            raise OSError("the sink broke")
        return snapshot.step != self.stop_at

    def close(self, *, failure=None):
        self.closed.append(failure)


def test_a_sink_can_stop_a_simulation():
    sink = Recorder(stop_at=2)
    simulate(make_case(), make_case().accept({}), sink)
    assert len(sink.times) == 3 and sink.closed == [None]


def test_a_sink_that_breaks_is_closed_once_and_its_error_comes_out():
    sink = Recorder(break_at=1)
    with pytest.raises(OSError, match="the sink broke"):
        simulate(make_case(), make_case().accept({}), sink)
    assert sink.closed == ["OSError: the sink broke"]


@pytest.mark.parametrize("scheme", [None, BDF2])
def test_divergence_names_time_field_and_parameters_and_is_not_written(scheme):
    blow_up = make_case(rhs=lambda u, d, p, t: 50 * u * u, duration=1.0, steps_per_snapshot=20, scheme=scheme)
    sink = Recorder()
    with pytest.raises(DivergenceError, match=r"case fisher diverged: (?=.*field u).* t = .*nu=0.03"):
        simulate(blow_up, blow_up.accept({"nu": 0.03}), sink)
    assert len(sink.closed) == 1 and "diverged" in sink.closed[0]
    assert np.isfinite(sink.values).all()


@pytest.mark.parametrize(
    ("rate", "message"),
    [(1.2, r"at t = 0\.9, where the largest value is \S+, SSPRK3 needs \S+ stable"), (1.175, "not finite at t = 1")],
)
def test_a_state_that_blew_up_between_snapshots_ends_without_steps_beyond_number(rate, message):
    """∂u/∂t = r u² from u = 1 is infinite at t = 1/r; what steps across that is finite and huge, or soon infinite."""
    blow_up = make_case(
        rhs=lambda u, d, p, t: rate * u * u, initial=lambda x, p, rng: np.ones(x[0].shape), boundary=Periodic(),
        duration=1.0, num_snapshots=10,
    )  # fmt: skip
    sink = Recorder()
    with pytest.raises(DivergenceError, match=message):
        simulate(blow_up, blow_up.accept({"nu": 0.03}), sink)
    assert "diverged" in sink.closed[0] and np.isfinite(sink.values).all()


@pytest.mark.parametrize(
    ("scheme", "message"),
    [(SSPRK3, "not finite at t = 1"), (ETDRK4, "not finite at t = 1"), (SBDF2, r"no longer finite at t = 0\.00")],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_state_that_blew_up_is_not_stepped_to_the_next_snapshot(scheme, message):
    """∂u/∂t = 1000 u² from u = 1 is infinite after a thousand of a million steps."""
    calls = []

    def square(u, d, p, t):
        calls.append(t)
        assert len(calls) < 20_000, "it goes on after the state has blown up"
        return 1000 * u * u

    blow_up = make_case(
        rhs=square, stiff=lambda u, d, p, t: 0 * u, initial=lambda x, p, rng: np.ones(x[0].shape), scheme=scheme,
        duration=1.0, num_snapshots=1, steps_per_snapshot=10**6,
    )  # fmt: skip
    with pytest.raises(DivergenceError, match=message):
        run(blow_up)
    assert len(calls) > 500


def test_where_a_jump_asks_for_small_steps_the_error_says_so():
    """A difference quotient across a jump grows without bound as its step shrinks."""
    jump = make_case(rhs=lambda u, d, p, t: d.laplacian(u) + np.where(u > 0, 1.0, 0.0), initial=lambda x, p, rng: 0.0)
    with pytest.raises(DivergenceError, match=r"the largest value is 0, .* smooth a jump of the right-hand side"):
        run(jump)


def test_a_case_may_bring_its_own_solver():
    def clock(case, p, comm, rng):
        for k, t in enumerate(case.times):
            values = np.full((1, *case.grid.shape), np.nan if p.nu > 0.09 and k == 2 else t)
            yield Snapshot(step=k, time=float(t), values=values, where=tuple(slice(0, n) for n in case.grid.shape))

    case = make_case(rhs=None, solver=clock)
    np.testing.assert_array_equal(run(case).values[:, 0, 0, 0], case.times)
    with pytest.raises(DivergenceError, match="not finite"):
        run(case, {"nu": 0.095})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheme": SBDF2}, "treats `stiff` apart, and the case declares none"),
        ({"scheme": ETDRK4, "boundary": Neumann()}, "needs a periodic grid"),
        ({"initial": lambda x, p, rng: np.ones(3)}, r"shape \(3,\) for field u"),
        ({"initial": lambda x, p, rng: (1.0, 2.0)}, "initial returned 2 fields"),
    ],
)
def test_what_cannot_be_solved_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        run(make_case(**changes))


def test_numbers_and_tuples_are_initial_states_and_results():
    case = Case(name="decay", fields=("a", "b"), grid=Grid(shape=(8,), extent=(1.0,)), boundary=Periodic(),
                initial=lambda x, p, rng: (1.0, x[0]), rhs=lambda u, d, p, t: (-u[0], 0.0), duration=1.0,
                num_snapshots=2, steps_per_snapshot=50)  # fmt: skip
    values = run(case).values
    np.testing.assert_allclose(values[-1, 0], np.exp(-1), rtol=1e-6)
    np.testing.assert_array_equal(values[-1, 1], values[0, 1])
