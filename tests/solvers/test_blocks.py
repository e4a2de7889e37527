"""Any number of ranks gives the solution of one."""

import math
from pathlib import Path

import numpy as np
import pytest

from headrace.solvers import blocks
from headrace.solvers.blocks import Blocks, check_split, choose_dims, split
from tests.mpi_run import run_mpi

from .mpi_blocks import cases, solve


@pytest.fixture(scope="module")
def serial():
    return {name: solve(case, values, None) for name, (case, values) in cases().items()}


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_give_the_solution_of_one_block(ranks, serial, tmp_path):
    """Explicit schemes in every bit, Krylov parts to ten times their tolerance, and not with a stale halo."""
    path = tmp_path / "results.npz"
    done = run_mpi(ranks, ["-m", "tests.solvers.mpi_blocks", str(path)], timeout=240)
    assert done.returncode == 0, done.stderr
    found = np.load(path)
    for name, expected in serial.items():
        error = np.abs(found[name] - expected).max() / np.abs(expected).max()
        allowed = {"exact": 0.0, "close": 1e-13, "krylov": 10 * 1e-10}[name.split()[0]]
        assert error <= allowed, f"{name}: {error:.3g} on {ranks} ranks, {allowed:g} allowed"
    periodic = serial["exact periodic 2"]
    assert np.abs(found["stale"] - periodic).max() > 1e-3 * np.abs(periodic).max()
    assert list(found["modules"]) == [], "a solver process loaded what it does not need"
    assert len(found["diverged"]) == 5
    for message in found["diverged"]:
        assert all(word in message for word in ("fisher diverged", "field u", "t = ", "nu=0.05")), message
    unsplit, one_rank = found["errors"]
    assert f"cannot be split over {ranks} ranks" in unsplit and f"works is {ranks - 1};" in unsplit
    assert "KeyError: 'on the last rank only'" in one_rank


@pytest.mark.parametrize(("shape", "ranks", "dims"), [
    ((64, 64), 1, (1, 1)), ((64, 64), 2, (2, 1)), ((64, 64), 4, (2, 2)), ((64, 256), 4, (1, 4)), ((100,), 7, (7,)),
    ((64, 64), 6, (3, 2)), ((32, 32, 32), 8, (2, 2, 2)), ((256, 2), 5, (5, 1)),
])  # fmt: skip
def test_blocks_have_the_least_halo(shape, ranks, dims):
    assert choose_dims(shape, ranks) == dims


@pytest.mark.parametrize(("points", "parts"), [(10, 3), (7, 7), (64, 5)])
def test_parts_cover_every_point_once(points, parts):
    pieces = [np.arange(points)[split(points, parts, i)] for i in range(parts)]
    np.testing.assert_array_equal(np.concatenate(pieces), np.arange(points))
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@pytest.mark.parametrize(("shape", "ranks", "allowed"), [((7,), 4, 3), ((4, 4), 5, 4), ((100, 7), 151, 150)])
def test_a_grid_that_cannot_be_split_is_named(shape, ranks, allowed):
    with pytest.raises(ValueError, match=rf"over {ranks} ranks.*works is {allowed};"):
        check_split(shape, ranks)
    assert math.prod(choose_dims(shape, allowed)) == allowed


def test_no_solver_takes_the_world_unasked():
    for file in Path(blocks.__file__).parent.glob("*.py"):
        assert "WORLD" not in file.read_text(), f"{file.name}: the communicator is the caller's"


def test_one_block_owns_everything_and_reduces_to_itself():
    blocks = Blocks((5, 6), (True, False))
    assert blocks.shape == (5, 6) and blocks.neighbour(0, 1) == 0 and blocks.at_wall(1, -1)
    assert blocks.dot(np.full(3, 2.0), np.ones(3)) == 6
    assert list(blocks.max(np.array([math.nan, 1.0]))) == [math.inf, 1.0]
