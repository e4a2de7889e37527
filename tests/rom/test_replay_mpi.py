"""The replay on 2 and 4 real ranks gives the solver's own stress and p, and its store opens on any number."""

from pathlib import Path

import numpy as np
import pytest

from headrace.rom.communicator import run_threads
from headrace.rom.replay import Replay
from headrace.rom.store import Store
from tests.mpi_run import run_mpi
from tests.rom.mpi_replay import series
from tests.rom.test_calculix import TIMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [2, 4])
def test_replay_on_ranks_gives_the_solvers_fields(ranks, tmp_path):
    done = run_mpi(ranks, ["-m", "tests.rom.mpi_replay", str(tmp_path / "s")], cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    problem, full, _ = series()
    with Store(tmp_path / "s") as store:
        assert store.attributes["replay"]["equilibrium"] < 1e-7
        for k in range(len(TIMES)):
            for name in ("stress", "p"):
                expected = full.point_field(name, k)
                np.testing.assert_allclose(
                    store.point_field(name, k), expected, atol=1e-11 * (1 + np.abs(expected).max())
                )

    def again(comm):
        """From the store, on another number of ranks, its own stress as the check."""
        replay = Replay(Store(tmp_path / "s", comm), problem)
        for _ in replay.run():
            pass
        return replay.report.worst()

    for worst in run_threads(3, again):
        assert worst["stress"] < 1e-12 and worst["p"] < 1e-12 and worst["equilibrium"] < 1e-7, worst
