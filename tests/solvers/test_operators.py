"""Every operator has its order, on periodic grids and at walls, and one formula serves arrays and tensors."""

from dataclasses import replace

import numpy as np
import pytest

from headrace.solvers import Dirichlet, Grid, Neumann, Parameters, Periodic

from .problems import everything, gray_scott, make_case, mixed_boundary, orders, serial_rhs, walls_of_each_field

OPERATORS = {
    "derivative x": (lambda u, d, p, t: d.derivative(u, 0), 2),
    "second derivative y": (lambda u, d, p, t: d.derivative(u, 1, order=2), 2),
    "laplacian": (lambda u, d, p, t: d.laplacian(u), 2),
    "div grad": (lambda u, d, p, t: d.div(d.grad(u)), 2),
    "diffuse": (lambda u, d, p, t: d.diffuse(1 + u**2, u), 2),
    "diffuse a constant": (lambda u, d, p, t: d.diffuse(2.0, u), 2),
    "diffuse by place": (lambda u, d, p, t: d.diffuse(2 + np.sin(2 * np.pi * d.x[0]), u), 2),
    "div": (lambda u, d, p, t: d.div((u, u * u)), 2),
    "curl": (lambda u, d, p, t: d.curl((u, u * u)), 2),
    "curl of a potential": (lambda u, d, p, t: sum(d.curl(u[0])), 2),
    "advect": (lambda u, d, p, t: d.advect((u, 2.0), u), 2),
    "upwind": (lambda u, d, p, t: d.upwind((u, -2.0), u), 1),
}
A, B = 2 * np.pi, 4 * np.pi


def analytic(x, y):
    """u = 1.2 + sin(ax) cos(by)/2 with its derivatives."""
    s, c, S, C = np.sin(A * x), np.cos(A * x), np.sin(B * y), np.cos(B * y)
    u, ux, uy = 1.2 + s * C / 2, A * c * C / 2, -B * s * S / 2
    return u, ux, uy, -(A**2) * s * C / 2, -(B**2) * s * C / 2


def exact(name, x, y):
    u, ux, uy, uxx, uyy = analytic(x, y)
    return {
        "derivative x": ux, "second derivative y": uyy, "laplacian": uxx + uyy, "div grad": uxx + uyy,
        "diffuse": (1 + u**2) * (uxx + uyy) + 2 * u * (ux**2 + uy**2), "diffuse a constant": 2 * (uxx + uyy),
        "diffuse by place": (2 + np.sin(A * x)) * (uxx + uyy) + A * np.cos(A * x) * ux,
        "div": ux + 2 * u * uy, "curl": 2 * u * ux - uy, "curl of a potential": uy - ux,
        "advect": u * ux + 2 * uy, "upwind": u * ux - 2 * uy,
    }[name]  # fmt: skip


def wall_value(x, p, t):
    return 1.2 + 0.5 * np.sin(A * x[0]) * np.cos(B * x[1])


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("boundary", ["periodic", "dirichlet", "neumann"])
def test_observed_order(name, boundary):
    operator, order = OPERATORS[name]
    sides = {
        "periodic": Periodic(), "dirichlet": Dirichlet(wall_value),
        # ∂u/∂n: along x it is ∓A/2 cos(by) at the walls, along y it vanishes.
        "neumann": {
            "x": tuple(Neumann(lambda x, p, t, sign=sign: sign * A / 2 * np.cos(B * x[1])) for sign in (-1, 1)),
            "y": Neumann(),
        },
    }[boundary]  # fmt: skip
    errors = []
    for n in (32, 64, 128):
        case = make_case(grid=Grid(shape=(n, n), extent=(1.0, 1.0)), boundary=sides, rhs=operator, parameters={})
        x, y = np.meshgrid(*(case.grid.points(a, periodic=case.periodic[a]) for a in (0, 1)), indexing="ij")
        u = analytic(x, y)[0][None]
        error = serial_rhs(case, Parameters({}), u)(u, 0.0)[0] - exact(name, x, y)
        # At walls the ghost layers make the truncation error one or two orders larger in the outermost cells; the
        # solution keeps its order (tests of the heat case), the operator only inside.
        inside = slice(None) if boundary == "periodic" else slice(2, -2)
        errors.append(np.abs(error[inside, inside]).max())
    observed = orders(errors)
    assert observed[-1] > order - 0.15, f"{name}, {boundary}: errors {errors}, orders {observed}, expected {order}"


def test_constants_are_differentiated_to_exactly_zero():
    case = make_case(rhs=lambda u, d, p, t: d.laplacian(u) + d.diffuse(u, u) + d.derivative(u, 1))
    u = np.full((1, 20, 14), 0.1)
    assert not serial_rhs(case, case.accept({}), u)(u, 0.0).any()


@pytest.mark.parametrize("operator", ["diffuse", "laplacian"])
def test_diffusion_conserves_where_nothing_leaves(operator):
    rhs = OPERATORS[operator][0]
    u = np.random.default_rng(0).uniform(0, 1, (1, 20, 14))
    for boundary in (Periodic(), Neumann(0.0)):
        f = serial_rhs(make_case(boundary=boundary, rhs=rhs), make_case().accept({}), u)
        change = f(u, 0.0)
        assert abs(change.sum()) < 1e-12 * np.abs(change).sum()


def test_compact_diffusion_sees_a_checkerboard():
    u = (-1.0) ** np.add.outer(np.arange(20), np.arange(14))[None]
    case = make_case(grid=Grid(shape=(20, 14), extent=(20.0, 14.0)), rhs=lambda u, d, p, t: d.diffuse(2 + 0 * u, u))
    np.testing.assert_allclose(serial_rhs(case, case.accept({}), u)(u, 0.0), -16 * u, rtol=1e-13)


def test_the_mean_is_over_the_grid_for_every_field():
    case = make_case(fields=("a", "b"), initial=None, rhs=lambda u, d, p, t: u - d.mean(u))
    u = np.random.default_rng(0).normal(size=(2, 20, 14))
    means = serial_rhs(case, case.accept({}), u)(u, 0.0).mean(axis=(1, 2))
    np.testing.assert_allclose(means, 0, atol=1e-15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda u, d, p, t: d.hessian(u), "d has no operator 'hessian'; it has d.x, d.grad"),
        (lambda u, d, p, t: d.inverse_laplacian(u, Dirichlet(0.0)), "periodic for u are so for its result"),
        (lambda u, d, p, t: d.weno_div((u, u), (1.0, 1.0, 1.0), u), "one speed, or 2"),
        (lambda u, d, p, t: d.derivative(u, 2), "axes 0 to 1"),
        (lambda u, d, p, t: d.derivative(u, 0, order=5), "1, 2, 3 or 4 is allowed"),
        (lambda u, d, p, t: d.laplacian(p.nu), "takes a field"),
        (lambda u, d, p, t: d.advect((1.0,), u), "2 components"),
        (lambda u, d, p, t: d.weno((1.0, 0.0), d.weno((1.0, 0.0), d.laplacian(u))), "nested deeper than 6"),
    ],
)
def test_misuse_is_named(call, message):
    u = np.ones((1, 20, 14))
    with pytest.raises((AttributeError, ValueError, TypeError), match=message):
        serial_rhs(make_case(rhs=call), make_case().accept({}), u)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("walls", [False, True])
def test_tensors_give_what_blocks_give(ndim, walls):
    """The same right-hand side on torch tensors, in a batch with parameters of its own for every sample."""
    torch = pytest.importorskip("torch")
    from headrace.solvers.right_hand_side import TensorRightHandSide

    shape = (9, 8, 7)[:ndim]
    case = make_case(grid=Grid(shape=shape, extent=(1.0, 0.8, 0.7)[:ndim]), rhs=everything,
                     boundary=mixed_boundary(ndim) if walls else Periodic())  # fmt: skip
    samples = [case.accept({"nu": 0.02, "r": 2.0}), case.accept({"nu": 0.05, "r": 3.0})]
    u = np.random.default_rng(0).uniform(0, 1, (2, 1, *shape))
    parameters = torch.tensor([[p.nu, p.r] for p in samples], dtype=torch.float64)
    f = TensorRightHandSide(case, parameters)
    result = f(torch.from_numpy(u).movedim(1, 0), 0.3).movedim(0, 1).numpy()
    for sample, p in enumerate(samples):
        expected = serial_rhs(case, p, u[sample])(u[sample], 0.3)
        assert np.abs(result[sample] - expected).max() <= 1e-12 * np.abs(expected).max()


def test_tensors_give_what_blocks_give_with_walls_of_each_field():
    torch = pytest.importorskip("torch")
    from headrace.solvers.right_hand_side import TensorRightHandSide

    for accuracy in (2, 4):
        case = make_case(fields=("a", "b"), rhs=gray_scott, boundary=walls_of_each_field(), accuracy=accuracy)
        p = case.accept({})
        u = np.random.default_rng(0).uniform(0, 1, (2, 20, 14))
        f = TensorRightHandSide(case, torch.tensor([[p.nu, p.r]], dtype=torch.float64))
        result, expected = f(torch.from_numpy(u)[:, None], 0.3)[:, 0].numpy(), serial_rhs(case, p, u)(u, 0.3)
        assert np.abs(result - expected).max() <= 1e-12 * np.abs(expected).max()


def test_tensors_keep_their_gradient_and_precision():
    torch = pytest.importorskip("torch")
    from headrace.solvers.right_hand_side import TensorRightHandSide

    case = make_case(rhs=everything)
    u = torch.rand((1, 3, 20, 14), requires_grad=True)
    p = torch.tensor([[0.02, 2.0]] * 3, requires_grad=True)
    result = TensorRightHandSide(case, p)(u, 0.0)
    assert result.dtype == torch.float32
    result.square().sum().backward()
    assert torch.isfinite(u.grad).all() and u.grad.abs().sum() > 0 and p.grad.abs().sum() > 0


def test_torch_functions_are_refused():
    torch = pytest.importorskip("torch")
    case = make_case(rhs=lambda u, d, p, t: torch.exp(u))
    with pytest.raises(TypeError, match=r"torch.exp.*np.exp"):
        serial_rhs(case, case.accept({}), np.ones((1, 20, 14)))


def test_one_and_three_dimensions():
    """The Laplacian of a quadratic is exact, whatever the number of axes."""
    for shape in ((16,), (6, 7, 8)):
        ndim = len(shape)
        grid = Grid(shape=shape, extent=(1.0,) * ndim)
        case = replace(make_case(), grid=grid, boundary=Dirichlet(0.0), rhs=lambda u, d, p, t: d.laplacian(u))
        x = np.meshgrid(*(grid.points(a, periodic=False) for a in range(ndim)), indexing="ij")
        u = sum(c**2 for c in x)[None]
        inner = serial_rhs(case, case.accept({}), u)(u, 0.0)[(0, *(slice(1, -1),) * ndim)]
        np.testing.assert_allclose(inner, 2 * ndim, rtol=1e-10)
