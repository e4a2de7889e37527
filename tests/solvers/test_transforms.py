"""Distributed transforms: inverse pairs, diagonalised differences, and the same bits on any number of ranks."""

import numpy as np
import pytest

from headrace.solvers.transforms import Ends, PoissonSolver, SlabTransform, slabs
from tests.mpi_run import run_mpi

from .mpi_transforms import LAYOUTS, compute, fields


@pytest.fixture(scope="module")
def serial():
    return compute(None)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_do_not_change_a_bit(ranks, serial, tmp_path):
    done = run_mpi(ranks, ["-m", "tests.solvers.mpi_transforms", str(tmp_path / "found.npz")])
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert set(found) == set(serial)
    for name, expected in serial.items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_inverse_undoes_forward(name, serial):
    np.testing.assert_allclose(serial[f"{name} back"], fields(LAYOUTS[name][0]), atol=1e-13)


def test_periodic_spectrum_is_the_discrete_fourier_transform(serial):
    np.testing.assert_allclose(serial["torus spectrum"], np.fft.rfft2(fields(LAYOUTS["torus"][0])), atol=1e-12)


def ghosted(u, ends):
    """Pad one layer on both sides of every axis according to the ends."""
    for axis, end in enumerate(ends):
        first, last = np.take(u, [0], axis), np.take(u, [-1], axis)
        low, high = {
            Ends.PERIODIC: (last, first), Ends.NEUMANN: (first, last), Ends.DIRICHLET: (-first, -last),
            Ends.NEUMANN_DIRICHLET: (first, -last), Ends.DIRICHLET_NEUMANN: (-first, last),
        }[end]  # fmt: skip
        u = np.concatenate([low, u, high], axis)
    return u


def laplacian(u, ends, spacing):
    padded = ghosted(u, ends)
    total = np.zeros_like(u)
    for axis, h in enumerate(spacing):
        inner = [slice(1, -1)] * u.ndim
        low, high = list(inner), list(inner)
        low[axis], high[axis] = slice(None, -2), slice(2, None)
        total += (padded[tuple(high)] - 2 * u + padded[tuple(low)]) / h**2
    return total


@pytest.mark.parametrize("name", LAYOUTS)
def test_poisson_solver_inverts_the_compact_laplacian(name, serial):
    shape, ends = LAYOUTS[name]
    f = fields(shape)[0]
    if all(end in (Ends.PERIODIC, Ends.NEUMANN) for end in ends):
        f = f - f.mean()
    found = laplacian(serial[f"{name} poisson"], ends, [1 / n for n in shape])
    np.testing.assert_allclose(found, f, atol=1e-11)


@pytest.mark.parametrize("name", LAYOUTS)
def test_second_differences_are_the_eigenvalues_of_the_laplacian(name):
    shape, ends = LAYOUTS[name]
    spacing = [0.7 / n for n in shape]
    transform = SlabTransform(slabs(shape, [e is Ends.PERIODIC for e in ends]), ends)
    u = fields(shape)[0]
    expected = transform.forward(laplacian(u, ends, spacing))
    found = transform.forward(u) * transform.second_differences(spacing)
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


def test_a_constant_right_hand_side_has_no_solution_and_is_left_out():
    solver = PoissonSolver(slabs((6, 6), (True, True)), (Ends.PERIODIC, Ends.PERIODIC), (0.1, 0.1))
    np.testing.assert_array_equal(solver.solve(np.ones((6, 6))), np.zeros((6, 6)))


def test_modes_that_are_not_kept_are_zero():
    blocks = slabs((6, 12), (True, True))
    u, part = fields((6, 12)), SlabTransform(blocks, (Ends.PERIODIC, Ends.PERIODIC), 4)
    whole = SlabTransform(blocks, (Ends.PERIODIC, Ends.PERIODIC))
    spectrum = whole.forward(u)
    np.testing.assert_array_equal(part.forward(u), spectrum[..., :4])
    spectrum[..., 4:] = 0
    np.testing.assert_array_equal(part.inverse(part.forward(u)), whole.inverse(spectrum))
    with pytest.raises(ValueError, match="modes = 8: from 1 to 7"):
        SlabTransform(blocks, (Ends.PERIODIC, Ends.PERIODIC), 8)


def test_too_many_ranks_are_named():
    class Comm:
        rank, size = 0, 9

    with pytest.raises(ValueError, match=r"\(16, 64\).*for 9 ranks.*at most 8 ranks"):
        slabs((16, 64), (True, True), Comm())
