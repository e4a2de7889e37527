"""The flow solvers give the same bits on any number of ranks."""

import numpy as np
import pytest

from tests.mpi_run import run_mpi

from .mac_cases import street
from .mpi_flows import cases, divergent, solve, solve_by_conjugate_gradients


@pytest.fixture(scope="module")
def serial():
    return {name: solve(case, values, None) for name, (case, values) in cases().items()}


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_do_not_change_a_bit(ranks, serial, tmp_path):
    done = run_mpi(ranks, ["-m", "tests.solvers.mpi_flows", str(tmp_path / "found.npz")])
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "found.npz")
    assert set(found) == {*serial, "krylov", "diverged"}
    for case, message in zip(divergent(), found["diverged"], strict=True):
        assert f"case {case.name} diverged: " in message and f"field {case.fields[0]}" in message and "t = " in message
    for name, expected in serial.items():
        assert not np.array_equal(expected[0], expected[-1]), f"{name} does not move"
        np.testing.assert_array_equal(found[name], expected, err_msg=name)
    # Ten times the tolerance of conjugate gradients, in the units of the velocity after ten steps.
    np.testing.assert_allclose(found["krylov"][:, :2], solve_by_conjugate_gradients(None)[:, :2], atol=1e-11)


def test_conjugate_gradients_and_the_capacitance_matrix_give_one_flow():
    direct = solve(street((28, 12), steps_per_snapshot=5), {}, None)
    np.testing.assert_allclose(solve_by_conjugate_gradients(None)[:, :2], direct[:, :2], atol=1e-11)
