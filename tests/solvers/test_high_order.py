"""Operators of fourth order, spectral and WENO, curl and the inverse Laplacian, on grids and tensors."""

import numpy as np
import pytest

from headrace.solvers import Dirichlet, Grid, Neumann, Parameters, Periodic

from .problems import make_case, orders, run, serial_rhs, transport

A, B = 2 * np.pi, 4 * np.pi


def fields_of(case):
    """u = 1.2 + sin(ax) cos(by)/2 on the points of a case, and the coordinates."""
    x, y = np.meshgrid(*(case.grid.points(a, periodic=case.periodic[a]) for a in (0, 1)), indexing="ij")
    return x, y, 1.2 + np.sin(A * x) * np.cos(B * y) / 2


def square(n, rhs, **more):
    return make_case(grid=Grid(shape=(n, n), extent=(1.0, 1.0)), rhs=rhs, parameters={}, **more)


def applied(case, u=None):
    x, y, smooth = fields_of(case)
    u = smooth[None] if u is None else u
    return x, y, serial_rhs(case, Parameters({}), u)(u, 0.0)[0]


def exact_derivative(x, y, axis, order):
    """∂^order u / ∂x_axis^order."""
    along, k = ((A * x, A), (B * y, B))[axis]
    wave = np.sin(along + order * np.pi / 2) if axis == 0 else np.cos(along + order * np.pi / 2)
    other = np.cos(B * y) if axis == 0 else np.sin(A * x)
    return k**order * wave * other / 2


@pytest.mark.parametrize("accuracy", [2, 4])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_derivatives_have_their_order(accuracy, order, axis):
    errors = []
    for n in (32, 64, 128):
        x, y, found = applied(square(n, lambda u, d, p, t: d.derivative(u, axis, order), accuracy=accuracy))
        errors.append(np.abs(found - exact_derivative(x, y, axis, order)).max())
    observed = orders(errors)
    assert abs(observed[-1] - accuracy) < 0.15, f"errors {errors}, orders {observed}"


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_spectral_derivatives_are_exact_for_resolved_waves(order):
    for axis, n in ((0, 16), (1, 15)):
        x, y, found = applied(square(n, lambda u, d, p, t, a=axis: d.derivative(u, a, order), accuracy="spectral"))
        expected = exact_derivative(x, y, axis, order)
        assert np.abs(found - expected).max() < 1e-11 * np.abs(expected).max()


def test_fourth_order_of_diffusion_and_laplacian():
    rhs = {
        "diffuse": lambda u, d, p, t: d.diffuse(1 + u * u, u),
        "laplacian": lambda u, d, p, t: d.laplacian(u),
    }
    for name, function in rhs.items():
        errors = []
        for n in (32, 64, 128):
            x, y, found = applied(square(n, function, accuracy=4))
            u = fields_of(square(n, function))[2]
            ux, uy = (exact_derivative(x, y, axis, 1) for axis in (0, 1))
            laplacian = exact_derivative(x, y, 0, 2) + exact_derivative(x, y, 1, 2)
            exact = (1 + u * u) * laplacian + 2 * u * (ux**2 + uy**2) if name == "diffuse" else laplacian
            errors.append(np.abs(found - exact).max())
        assert abs(orders(errors)[-1] - 4) < 0.15, f"{name}: errors {errors}, orders {orders(errors)}"


def test_fourth_order_diffusion_conserves_and_sees_a_checkerboard():
    case = make_case(grid=Grid(shape=(20, 14), extent=(20.0, 14.0)), accuracy=4,
                     rhs=lambda u, d, p, t: d.diffuse(2 + 0 * u, u))  # fmt: skip
    checkerboard = (-1.0) ** np.add.outer(np.arange(20), np.arange(14))[None]
    change = serial_rhs(case, case.accept({}), checkerboard)(checkerboard, 0.0)
    np.testing.assert_allclose(change, change[0, 0, 0] * checkerboard)
    assert change[0, 0, 0] < -16
    noise = np.random.default_rng(0).normal(size=(1, 20, 14))
    change = serial_rhs(case, case.accept({}), noise)(noise, 0.0)
    assert abs(change.sum()) < 1e-12 * np.abs(change).sum()


@pytest.mark.parametrize("kind", ["dirichlet", "neumann"])
def test_fourth_order_between_walls(kind):
    """u_t = u_xx + source with the exact solution e^-t cos(3x + 1): the solution has order 4 up to the walls."""

    def solution(x, t):
        return np.exp(-t) * np.cos(3 * x + 1)

    def rhs(u, d, p, t):
        return d.laplacian(u) + (9 - 1) * np.exp(-t) * np.cos(3 * d.x[0] + 1)

    sides = {
        "dirichlet": Dirichlet(lambda x, p, t: solution(x[0], t)),
        "neumann": tuple(Neumann(lambda x, p, t, s=s: -3 * s * np.exp(-t) * np.sin(3 * x[0] + 1)) for s in (-1, 1)),
    }
    errors = []
    for n in (16, 32, 64):
        case = make_case(grid=Grid(shape=(n,), extent=(1.0,)), boundary={"x": sides[kind]}, rhs=rhs, parameters={},
                         initial=lambda x, p, rng: solution(x[0], 0.0), duration=0.2, num_snapshots=1,
                         accuracy=4)  # fmt: skip
        exact = solution(case.grid.points(0, periodic=False), 0.2)
        errors.append(np.abs(run(case).values[-1, 0] - exact).max())
    observed = orders(errors)
    assert observed[-1] > 3.7, f"errors {errors}, orders {observed}"


@pytest.mark.parametrize(
    "rhs", [lambda u, d, p, t: d.weno((u, -1.5), u), lambda u, d, p, t: d.weno_div((u * u / 2, -1.5 * u), (u, 1.5), u)]
)
def test_weno_has_order_five_where_the_solution_is_smooth(rhs):
    errors = []
    for n in (48, 96, 192):
        case = square(n, rhs)
        x, y, found = applied(case)
        u = fields_of(case)[2]
        errors.append(np.abs(found - u * exact_derivative(x, y, 0, 1) + 1.5 * exact_derivative(x, y, 1, 1)).mean())
    observed = orders(errors)
    assert 4.6 < observed[-1] < 5.6, f"errors {errors}, orders {observed}"


def test_weno_carries_a_jump_without_overshoot_and_at_the_right_speed():
    """Burgers with a shock from 2 to 0: it travels at speed 1; what the interval holds is conserved."""
    case = make_case(
        grid=Grid(shape=(100,), extent=(1.0,)), parameters={}, duration=0.3, num_snapshots=1, steps_per_snapshot=120,
        rhs=lambda u, d, p, t: -d.weno_div(u * u / 2, abs(u), u),
        initial=lambda x, p, rng: np.where((x[0] > 0.2) & (x[0] < 0.5), 2.0, 0.0),
    )
    first, last = run(case).values[:, 0]
    assert last.min() > -0.01 and last.max() < 2.01
    assert last.sum() == pytest.approx(first.sum(), rel=1e-12)
    x = case.grid.points(0, periodic=True)
    front = x[np.nonzero(last > 1.0)[0].max()]
    assert abs(front - 0.8) < 2 / 100


def test_curl():
    u = np.random.default_rng(0).normal(size=(1, 20, 14))
    case = make_case(rhs=lambda u, d, p, t: d.div(d.curl(u[0])))
    assert np.abs(serial_rhs(case, case.accept({}), u)(u, 0.0)).max() < 1e-11, "div curl is not zero"
    grid = Grid(shape=(8, 9, 10), extent=(1.0, 1.1, 1.2))
    case = make_case(grid=grid, fields=("a", "b", "c"), rhs=lambda u, d, p, t: d.curl(d.grad(u[0])))
    v = np.random.default_rng(0).normal(size=(3, 8, 9, 10))
    assert np.abs(serial_rhs(case, case.accept({}), v)(v, 0.0)).max() < 1e-10, "curl grad is not zero"
    turning = make_case(fields=("a", "b"), boundary=Neumann(), rhs=lambda u, d, p, t: (d.curl((-d.x[1], d.x[0])), 0.0))
    w = np.zeros((2, 20, 14))
    np.testing.assert_allclose(serial_rhs(turning, case.accept({}), w)(w, 0.0)[0], 2.0)


WALLS = {
    "periodic": Periodic(),
    "dirichlet": Dirichlet(0.0),
    "neumann": Neumann(0.0),
    "mixed": {"x": (Dirichlet(0.0), Neumann(0.0)), "y": Periodic()},
    "mixed the other way": {"x": (Neumann(0.0), Dirichlet(0.0)), "y": (Dirichlet(0.0), Dirichlet(0.0))},
}


def inverse_problem(boundary, accuracy=2):
    return make_case(boundary=boundary, accuracy=accuracy, rhs=lambda u, d, p, t: d.laplacian(d.inverse_laplacian(u)))


@pytest.mark.parametrize(
    ("boundary", "accuracy"), [*((name, order) for name in WALLS for order in (2, 4)), ("periodic", "spectral")]
)
def test_the_laplacian_of_the_inverse_laplacian_is_the_field(boundary, accuracy):
    case = inverse_problem(WALLS[boundary], accuracy)
    f = np.random.default_rng(0).normal(size=(1, 20, 14))
    if boundary in ("periodic", "neumann"):
        f -= f.mean()
    if accuracy == "spectral":
        f[:] = fields_of(make_case(grid=Grid(shape=(20, 14), extent=(1.0, 1.0))))[2] - 1.2
    found = serial_rhs(case, case.accept({}), f)(f, 0.0)
    if boundary == "neumann" and accuracy == 4:
        # What of f has no solution is not quite its mean: the closure at walls of fourth order is not symmetric.
        found = found + (f - found).mean()
    assert np.abs(found - f).max() < 1e-10


@pytest.mark.parametrize("kind", ["dirichlet", "neumann", "mixed"])
def test_the_inverse_laplacian_of_fourth_order_between_walls(kind):
    """ψ = sin or cos of whole or half waves, whose Laplacian is known."""
    lines = {
        "dirichlet": (Dirichlet(0.0), lambda x: np.sin(np.pi * x), 1.0),
        "neumann": (Neumann(0.0), lambda x: np.cos(np.pi * x), 1.0),
        "mixed": ((Dirichlet(0.0), Neumann(0.0)), lambda x: np.sin(np.pi / 2 * x), 0.25),
    }
    side, wave, squared = lines[kind]
    errors = []
    for n in (8, 16, 32):
        case = make_case(grid=Grid(shape=(n, n + 2), extent=(1.0, 1.0)), boundary={"x": side, "y": Neumann(0.0)},
                         accuracy=4, rhs=lambda u, d, p, t: d.inverse_laplacian(u))  # fmt: skip
        x, y = (case.grid.points(axis, periodic=False) for axis in (0, 1))
        exact = wave(x)[:, None] * np.cos(2 * np.pi * y)[None]
        f = -(np.pi**2) * (squared + 4) * exact[None]
        errors.append(np.abs(serial_rhs(case, case.accept({}), f)(f, 0.0)[0] - exact).max())
    assert orders(errors)[-1] > 3.6, f"errors {errors}, orders {orders(errors)}"


def test_walls_of_a_potential_must_be_homogeneous():
    case = make_case(boundary=Neumann(0.0), rhs=lambda u, d, p, t: d.inverse_laplacian(u, Dirichlet(1.0)))
    with pytest.raises(ValueError, match="takes walls with value 0"):
        serial_rhs(case, case.accept({}), np.ones((1, 20, 14)))


@pytest.mark.filterwarnings("ignore:Case fisher")
def test_verify_accepts_nonlocal_and_wide_operators():
    for accuracy in (2, 4, "spectral"):
        make_case(rhs=transport, accuracy=accuracy).verify()
    make_case(rhs=transport, boundary=WALLS["mixed the other way"]).verify()


@pytest.mark.parametrize(
    ("boundary", "accuracy"), [*((name, order) for name in WALLS for order in (2, 4)), ("periodic", "spectral")]
)
def test_tensors_give_what_blocks_give(boundary, accuracy):
    torch = pytest.importorskip("torch")
    from headrace.solvers.right_hand_side import TensorRightHandSide

    case = make_case(rhs=transport, boundary=WALLS[boundary], accuracy=accuracy)
    p = case.accept({"nu": 0.02})
    u = np.random.default_rng(0).normal(size=(2, 1, 20, 14))
    f = TensorRightHandSide(case, torch.tensor([[p.nu, p.r]] * 2, dtype=torch.float64))
    result = f(torch.from_numpy(u).movedim(1, 0), 0.3).movedim(0, 1).numpy()
    for sample in range(2):
        expected = serial_rhs(case, p, u[sample])(u[sample], 0.3)
        assert np.abs(result[sample] - expected).max() <= 1e-12 * np.abs(expected).max()


def test_tensors_refuse_a_grid_that_is_narrower_than_its_stencils():
    torch = pytest.importorskip("torch")
    from headrace.solvers.right_hand_side import TensorRightHandSide

    case = make_case(grid=Grid(shape=(2, 14), extent=(1, 1)), rhs=lambda u, d, p, t: d.weno((1, 1), u))
    with pytest.raises(ValueError, match=r"deeper than 2 ghost layers reach on \(2, 14\)"):
        TensorRightHandSide(case, torch.tensor([[0.02, 1.0]]))(torch.zeros(1, 1, 2, 14), 0.0)


def test_tensors_between_walls_of_fourth_order():
    torch = pytest.importorskip("torch")
    from headrace.solvers.right_hand_side import TensorRightHandSide

    high = Dirichlet(lambda x, p, t: x[0])
    sides = {"x": (Dirichlet(0.3), Neumann(0.2)), "y": (Neumann(lambda x, p, t: x[0] * t), high)}
    case = make_case(boundary=sides, accuracy=4, rhs=lambda u, d, p, t: d.laplacian(u) + d.diffuse(u, u))
    u = np.random.default_rng(0).uniform(1, 2, (1, 20, 14))
    f = TensorRightHandSide(case, torch.tensor([[0.02, 1.0]], dtype=torch.float64))
    expected = serial_rhs(case, case.accept({}), u)(u, 0.3)
    result = f(torch.from_numpy(u)[:, None], 0.3)[:, 0].numpy()
    assert np.abs(result - expected).max() <= 1e-12 * np.abs(expected).max()


def test_misplaced_accuracy_is_refused():
    with pytest.raises(ValueError, match="'spectral' needs periodic axes"):
        make_case(accuracy="spectral", boundary=Neumann())
    with pytest.raises(ValueError, match="accuracy 3 is not possible"):
        make_case(accuracy=3)
    with pytest.raises(ValueError, match="needs 4 points between walls"):
        make_case(accuracy=4, boundary=Neumann(), grid=Grid(shape=(3, 9), extent=(1.0, 1.0)))
