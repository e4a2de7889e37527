"""The pressure equation with obstacles: three solvers, one dense reference."""

import numpy as np
import pytest

from headrace.solvers import Parameters
from headrace.solvers.mac import SlabFlow
from headrace.solvers.mac_grid import MacGrid
from headrace.solvers.mac_operators import divergence, gradient, laplacian
from headrace.solvers.mac_pressure import (
    BoxPressure,
    CapacitancePressure,
    ConjugateGradientPressure,
    PressureLayer,
    pressure_solver,
)
from headrace.solvers.newton import DivergenceError
from headrace.solvers.transforms import slabs

from .mac_cases import cylinder, driven_box, duct, street


def two_blocks(x):
    """Return two obstacles, one in a corner and one that leaves a pocket of fluid enclosed."""
    ring = (np.maximum(abs(x[0] - 0.6), abs(x[1] - 0.45)) < 0.2) & (np.maximum(abs(x[0] - 0.6), abs(x[1] - 0.45)) > 0.1)
    return ring | ((x[0] < 0.2) & (x[1] < 0.2))


PROBLEMS = {
    "walls": (driven_box((14, 12)), two_blocks),
    "outflow": (street((24, 12)), cylinder),
    "periodic": (duct((8, 9, 7)), lambda x: (abs(x[0] - 0.9) < 0.25) & (x[1] < 0.4) & (abs(x[2] - 0.4) < 0.2)),
}


def setting(name):
    case, solid = PROBLEMS[name]
    blocks = slabs(case.grid.shape, case.periodic)
    grid = MacGrid(case, blocks.where, solid)
    return grid, PressureLayer(grid, blocks)


def source(grid, layer):
    """Return the divergence of a random velocity that is at rest where it must be, and ∇·(free ∇φ) as a function."""
    u = np.zeros((grid.ndim, *(n + 2 for n in grid.shape)))
    inner = (slice(None), *[slice(1, -1)] * grid.ndim)

    def of_faces(faces):
        u[inner] = grid.free * faces
        for axis in range(grid.ndim):
            if not grid.at_side(axis, 0):
                lead = (slice(None),) * (1 + axis)
                u[(*lead, 0)] = u[(*lead, -2)]
        return divergence(u, grid.spacing)

    f = of_faces(np.random.default_rng(4).normal(size=(grid.ndim, *grid.shape)))
    return f, lambda phi: of_faces(gradient(layer.padded(phi), grid.spacing))


@pytest.mark.parametrize("most", [10_000, 0], ids=["capacitance", "conjugate gradients"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_velocity_is_projected_exactly(name, most):
    grid, layer = setting(name)
    solver = pressure_solver(grid, layer, most_cut_faces=most)
    assert isinstance(solver, CapacitancePressure if most else ConjugateGradientPressure)
    f, operator = source(grid, layer)
    assert np.abs(f).max() > 1 and not f[grid.solid].any()
    phi = solver.solve(f)
    np.testing.assert_allclose(operator(phi), f, atol=2e-11)
    # A second call starts elsewhere, and its result is its own.
    again = solver.solve(0.5 * f)
    np.testing.assert_allclose(operator(again), 0.5 * f, atol=2e-11)
    np.testing.assert_allclose(operator(phi), f, atol=2e-11)


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_solvers_give_the_same_gradient_as_a_dense_one(name):
    grid, layer = setting(name)
    f, operator = source(grid, layer)
    cells = int(np.prod(grid.shape))
    dense = np.stack([operator(column.reshape(grid.shape)).ravel() for column in np.eye(cells)], axis=1)
    expected = np.linalg.lstsq(dense, f.ravel(), rcond=1e-12)[0].reshape(grid.shape)
    wanted = grid.free * gradient(layer.padded(expected), grid.spacing)
    for most in (10_000, 0):
        phi = pressure_solver(grid, layer, most_cut_faces=most).solve(f)
        found = grid.free * gradient(layer.padded(phi), grid.spacing)
        np.testing.assert_allclose(found, wanted, atol=1e-9 * np.abs(wanted).max())


def test_without_obstacles_the_box_is_solved():
    case = driven_box()
    blocks = slabs(case.grid.shape, case.periodic)
    grid = MacGrid(case, blocks.where, lambda x: x[0] > 99)
    layer = PressureLayer(grid, blocks)
    solver = pressure_solver(grid, layer)
    assert isinstance(solver, BoxPressure)
    f = np.random.default_rng(0).normal(size=blocks.shape)
    f -= f.mean()
    np.testing.assert_allclose(laplacian(layer.padded(solver.solve(f)), grid.spacing), f, atol=1e-11)


def test_many_cut_faces_do_not_slow_conjugate_gradients_down():
    grid, layer = setting("outflow")
    solver = pressure_solver(grid, layer, most_cut_faces=0)
    solver.solve(source(grid, layer)[0])
    assert 0 < solver.iterations < 40


def test_no_convergence_is_reported():
    grid, layer = setting("walls")
    solver = pressure_solver(grid, layer, most_cut_faces=0)
    f, _ = source(grid, layer)
    with pytest.raises(DivergenceError, match="not finite"):
        solver.solve(f * np.nan)
    with pytest.raises(DivergenceError, match="did not converge in 500 iterations"):
        solver.solve(f + 1.0)  # no solution: more flows in than out


def test_a_projection_done_twice_changes_nothing():
    case = duct()
    solid = PROBLEMS["periodic"][1]
    flow = SlabFlow(case, Parameters({}), slabs(case.grid.shape, case.periodic), viscosity=0.1, force=None, solid=solid)
    u, phi = flow.projected(np.random.default_rng(0).normal(size=(3, *case.grid.shape)), 0.0)
    again, nothing = flow.projected(u, 0.0)
    assert np.abs(phi).max() > 0.01
    np.testing.assert_allclose(again, u, atol=1e-13)
    np.testing.assert_allclose(nothing, 0, atol=1e-13)
