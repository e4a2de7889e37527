"""The flow solvers give the same bits on any number of ranks."""

import numpy as np
import pytest

from tests.mpi_run import run_mpi

from .mpi_flows import cases, solve


@pytest.fixture(scope="module")
def serial():
    return {name: solve(case, values, None) for name, (case, values) in cases().items()}


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_do_not_change_a_bit(ranks, serial, tmp_path):
    done = run_mpi(ranks, ["-m", "tests.solvers.mpi_flows", str(tmp_path / "found.npz")])
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert set(found) == set(serial)
    for name, expected in serial.items():
        assert not np.array_equal(expected[0], expected[-1]), f"{name} does not move"
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
