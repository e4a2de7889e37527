"""Implicit steps are solved to their tolerance, and the preconditioner is exact where it claims to be."""

import numpy as np
import pytest
import scipy.sparse.linalg

from headrace.solvers import Dirichlet, Grid, Neumann, Periodic
from headrace.solvers.blocks import Blocks
from headrace.solvers.krylov import Gmres
from headrace.solvers.newton import DivergenceError, NewtonKrylov
from headrace.solvers.preconditioner import DiffusionPreconditioner, eigenpairs

from .problems import make_case, serial_rhs

BOUNDARIES = {
    "periodic": Periodic(), "dirichlet": Dirichlet(0.0), "neumann": Neumann(0.0),
    "mixed": {"x": (Dirichlet(0.0), Neumann(0.0)), "y": Periodic()},
}  # fmt: skip


def diffusion(u, d, p, t):
    return d.diffuse(p.nu, u)


def test_gmres_solves_a_nonsymmetric_system_in_as_many_iterations_as_it_has_distinct_eigenvalues():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    A = basis @ np.diag(np.repeat([1.0, 2.0, -3.0, 10.0], 10)) @ basis.T
    b = rng.normal(size=40)
    x, iterations = Gmres(Blocks((40,), (True,)), 40, 30).solve(
        lambda v: A @ v, lambda v: v, b, norm_b=np.linalg.norm(b), relative=1e-10
    )
    assert iterations == 4
    np.testing.assert_allclose(A @ x, b, atol=1e-9)


def test_a_perfect_preconditioner_needs_one_iteration():
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(20, 20)) + 10 * np.eye(20), rng.normal(size=20)
    inverse = np.linalg.inv(A)
    x, iterations = Gmres(Blocks((20,), (True,)), 20, 10).solve(
        lambda v: A @ v, lambda v: inverse @ v, b, norm_b=np.linalg.norm(b), relative=1e-10
    )
    assert iterations == 1
    np.testing.assert_allclose(A @ x, b, atol=1e-12)


def test_on_one_rank_gmres_is_that_of_scipy():
    rng = np.random.default_rng(1)
    A, b = rng.normal(size=(60, 60)) + 12 * np.eye(60), rng.normal(size=60)
    x, iterations = Gmres(Blocks((60,), (True,)), 60, 60).solve(
        lambda v: A @ v, lambda v: v, b, norm_b=np.linalg.norm(b), relative=1e-8
    )
    residuals = []
    y, _ = scipy.sparse.linalg.gmres(A, b, rtol=1e-8, restart=60, callback=residuals.append, callback_type="pr_norm")
    assert iterations == next(n for n, residual in enumerate(residuals, start=1) if residual <= 1e-8)
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-8 * np.abs(y).max())


def test_gmres_of_zero_is_zero():
    x, iterations = Gmres(Blocks((4,), (True,)), 4, 5).solve(
        lambda v: 2 * v, lambda v: v, np.zeros(4), norm_b=0.0, relative=1e-3
    )
    assert iterations == 0 and not x.any()


@pytest.mark.parametrize("low", ["periodic", "dirichlet", "neumann"])
def test_eigenpairs_diagonalise_the_second_difference(low):
    Q, values = eigenpairs(9, low, low, 0.5)
    np.testing.assert_allclose(Q @ Q.T, np.eye(9), atol=1e-13)
    assert (values[0] < 1e-12) == (low != "dirichlet")


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("shape", [(11,), (12, 9), (6, 5, 8)])
def test_the_preconditioner_inverts_constant_diffusion(boundary, shape):
    sides = BOUNDARIES[boundary]
    ndim = len(shape)
    if isinstance(sides, dict):
        sides = {axis: sides["x" if axis == "x" else "y"] for axis in "xyz"[:ndim]}
    case = make_case(grid=Grid(shape=shape, extent=(1.0,) * ndim), boundary=sides, rhs=diffusion)
    u = np.random.default_rng(0).normal(size=(1, *shape))
    f = serial_rhs(case, case.accept({"nu": 0.05}), u)
    sigma, beta = 3.0, 0.7
    preconditioner = DiffusionPreconditioner(case, f.blocks)
    preconditioner.refresh(lambda v: f(v, 0.0), sigma, beta, u.shape)
    np.testing.assert_allclose(preconditioner(sigma * u - beta * f(u, 0.0), sigma), u, atol=1e-9)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_newton_reaches_its_tolerance_with_few_iterations_on_any_grid(boundary):
    """The preconditioned iterations do not grow with the grid."""
    counts = []
    for n in (16, 32, 64):
        case = make_case(grid=Grid(shape=(n, n), extent=(1.0, 1.0)), boundary=BOUNDARIES[boundary],
                         rhs=lambda u, d, p, t: d.diffuse(1 + 2 * u, u) - p.r * u * u)  # fmt: skip
        x = case.grid.points(0, periodic=False)
        known = -100 * (0.5 + 0.4 * np.sin(7 * x)[:, None] * np.cos(3 * x))[None]
        f = serial_rhs(case, case.accept({}), -known / 100)
        newton = NewtonKrylov(case, f, f.blocks)
        u = newton.solve(100.0, 1.0, known, 0.0, -known / 100)
        assert np.linalg.norm(100 * u - f(u, 0.0) + known) <= 1e-10 * 100 * np.linalg.norm(u)
        counts.append(newton.krylov_iterations)
    assert counts[-1] <= 1.5 * counts[0] + 3 and max(counts) <= 60, counts


def test_an_equation_without_solution_is_reported():
    """sigma·u - (u² + 1) has no real root for sigma = 1."""
    case = make_case(rhs=lambda u, d, p, t: u * u + 1)
    u = np.full((1, 20, 14), 0.3)
    f = serial_rhs(case, case.accept({}), u)
    with pytest.raises(DivergenceError, match=r"did not converge at t = 0\.5"):
        NewtonKrylov(case, f, f.blocks).solve(1.0, 1.0, np.zeros_like(u), 0.5, u)
