"""Compiled right-hand sides give what the array path gives, and step back where they cannot be compiled."""

import logging
import sys
from dataclasses import replace

import numpy as np
import pytest

from headrace.cases import advection_diffusion, burgers, gray_scott, heat2d, mixed1d
from headrace.cases.catalogue import BUILT_IN, find_case
from headrace.solvers import Grid, Periodic
from headrace.solvers.blocks import Blocks
from headrace.solvers.compiled import Untraceable, traced
from headrace.solvers.right_hand_side import right_hand_side
from headrace.solvers.scheme import DORMAND_PRINCE, HEUN, RK4, SSPRK3
from tests.mpi_run import run_mpi

from . import problems
from .problems import make_case, mixed_boundary

numba = pytest.importorskip("numba", reason="numba is not installed: pip install headrace[fast]")


def both(case, values=None, time=0.37):
    """Return a right-hand side by arrays and compiled, on a rough state."""
    p = case.accept(values or {})
    state = 0.5 + 0.3 * np.random.default_rng(2).uniform(-1, 1, (len(case.fields), *case.grid.shape))
    results = []
    for wanted in (False, True):
        f = right_hand_side(replace(case, compiled=wanted), p, Blocks(case.grid.shape, case.periodic), state)
        assert f.compiled is wanted
        results.append(f(state, time))
    return results


def assert_equal(results):
    error = np.abs(results[0] - results[1]).max() / np.abs(results[0]).max()
    assert error < 1e-12, error


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("walls", [False, True])
def test_operators_in_every_dimension_with_any_walls(ndim, walls):
    grid = Grid(shape=(20, 14, 9)[:ndim], extent=(1.0, 0.8, 0.7)[:ndim])
    boundary = mixed_boundary(ndim) if walls else Periodic()

    def wide(u, d, p, t):
        wind = (d.x[0] + 0.3, -0.5, 0.2 * u)[:ndim]
        rest = d.derivative(u, 0, order=3) * 1e-3 - d.weno(wind, u) - d.weno_div((u * u,) * ndim, abs(2 * u), u)
        rest = rest + np.exp(-p.r * d.x[-1]) * np.clip(u, 0.4, 0.6) ** 3 - (u > 0.5) * t
        return problems.arithmetic(u, d, p, t) + rest

    assert_equal(both(make_case(grid=grid, boundary=boundary, rhs=wide)))


@pytest.mark.parametrize("accuracy", [2, 4])
def test_several_fields_and_fourth_order(accuracy):
    fields = {"fields": ("a", "b"), "initial": problems.two_bumps, "accuracy": accuracy}
    assert_equal(both(make_case(rhs=problems.gray_scott, **fields)))
    assert_equal(both(make_case(rhs=lambda u, d, p, t: d.laplacian(u) - u[0] * u, **fields)))
    assert_equal(both(make_case(rhs=lambda u, d, p, t: (0.0, d.div(d.grad(u[0])) / u[1]), **fields)))


def test_regions_and_conditions_that_count():
    assert_equal(both(make_case(rhs=problems.regions)))


def test_built_in_cases():
    for case in (advection_diffusion.case, burgers.case, gray_scott.case.resized((24, 20)), mixed1d.e3,
                 heat2d.case.resized((16, 18))):  # fmt: skip
        assert_equal(both(case))


def test_most_built_in_cases_can_be_compiled():
    found = {}
    for name in BUILT_IN:
        case = find_case(name).load()
        if case.rhs is not None:
            case = case.resized(tuple(min(n, 16) for n in case.grid.shape))
            try:
                found[name] = traced(case, case.rhs, case.grid.shape, 4)
            except Untraceable as reason:
                found[name] = reason
    refused = {name: str(reason) for name, reason in found.items() if not isinstance(reason, str)}
    assert len(found) > 10 and len(refused) <= 3, refused


@pytest.mark.parametrize(
    ("rhs", "reason"),
    [
        (lambda u, d, p, t: d.laplacian(u) - d.mean(u), "d.mean looks at the whole grid"),
        (lambda u, d, p, t: float(p.nu) * d.laplacian(u), "TypeError"),
    ],
    ids=["nonlocal", "a parameter's value"],
)
def test_what_cannot_be_compiled_runs_as_arrays(rhs, reason, caplog):
    case = make_case(rhs=rhs, compiled=True)
    with caplog.at_level(logging.WARNING, "headrace.solvers.right_hand_side"):
        found = problems.run(case).values
    assert "rhs stays uncompiled" in caplog.text and reason in caplog.text
    assert np.array_equal(found, problems.run(replace(case, compiled=False)).values)


def test_without_numba_it_runs_as_arrays(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "numba", None)
    case = make_case(rhs=lambda u, d, p, t: 0.31 * p.nu * d.laplacian(u), compiled=True)
    with caplog.at_level(logging.WARNING, "headrace.solvers.right_hand_side"):
        found = problems.run(case).values
    assert "pip install headrace[fast]" in caplog.text
    assert np.array_equal(found, problems.run(replace(case, compiled=False)).values)


@pytest.mark.parametrize("scheme", [HEUN, SSPRK3, RK4, DORMAND_PRINCE], ids=lambda one: one.name)
def test_stages_are_combined_in_one_pass_with_the_same_bits(scheme):
    case = make_case(rhs=problems.arithmetic, boundary=mixed_boundary(2), duration=0.01, num_snapshots=2, scheme=scheme,
                     steps_per_snapshot=3)  # fmt: skip
    by_arrays = problems.run(case, {"nu": 0.02}).values
    case = replace(case, compiled=True)
    by_kernel = problems.run(case, {"nu": 0.02}).values
    assert np.abs(by_arrays - by_kernel).max() < 1e-12 * np.abs(by_arrays).max()
    f = right_hand_side(case, case.accept({}), Blocks(case.grid.shape, case.periodic), by_arrays[0])
    u, *slopes = np.random.default_rng(0).normal(size=(5, 1, 20, 14))
    weights = (0.3, 0.0, -1.7, 1 / 3)
    expected = u + (0.1 * 0.3) * slopes[0] + (0.1 * -1.7) * slopes[2] + (0.1 / 3) * slopes[3]
    np.testing.assert_array_equal(f.combined(u, 0.1, weights, slopes)[0], expected[0])


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_the_bits_of_one_block_with_messages_under_way(ranks, tmp_path):
    done = run_mpi(ranks, ["-m", "tests.solvers.mpi_compiled"], timeout=240)
    assert done.returncode == 0 and done.stdout.count("equal") == 4, done.stdout + done.stderr
