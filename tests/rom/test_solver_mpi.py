"""The embedded solver under mpirun gives the serial answer, and fails together."""

from pathlib import Path

import numpy as np
import pytest

from tests.mpi_run import run_mpi
from tests.rom.test_solver import cyclic_problem, outcome

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_do_not_change_the_answer(ranks, tmp_path):
    out = tmp_path / "answer.npz"
    done = run_mpi(ranks, ["-m", "tests.rom.mpi_solver", str(out)], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = np.load(out)
    u, p, _ = outcome(cyclic_problem("hex8"))
    assert np.abs(answer["u"] - u).max() <= 1e-8 * np.abs(u).max()
    assert np.abs(answer["p"] - p).max() <= 1e-8 * p.max()
    assert len(answer["pieces"]) == ranks and answer["pieces"].min() >= 27 // ranks - 1
    assert all("strain increment beyond the limit" in message for message in answer["messages"]), answer["messages"]
