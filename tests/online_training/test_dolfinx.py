"""A solver that is somebody else's altogether: dolfinx, in the system's Python, under its own MPI."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training import client
from headrace.online_training.intake import Assignment
from tests.online_training.intake_setup import make_layout, running_intake, wait_until

SOLVER = Path(__file__).parent / "foreign" / "heat_dolfinx.py"
MPIRUN = "/usr/bin/mpirun.openmpi"
N, STEPS, INTERVAL = 17, 5, 0.02


def _has_dolfinx() -> bool:
    command = ["/usr/bin/python3", "-c", "import dolfinx, zmq"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return os.access(MPIRUN, os.X_OK) and subprocess.run(command, env=clean, capture_output=True).returncode == 0


pytestmark = [
    pytest.mark.mpi,
    pytest.mark.timeout(400),
    pytest.mark.skipif(
        shutil.which("/usr/bin/python3") is None or not _has_dolfinx(),
        reason="needs apt-get install -y --no-install-recommends python3-dolfinx-real python3-zmq (a minute or two)",
    ),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the solver and the client beside it, as somebody who has no Headrace would have them."""
    shutil.copy(SOLVER, tmp_path)
    shutil.copy(client.__file__, tmp_path / "headrace_client.py")
    return tmp_path


def solve(folder: Path, ranks: int, environment: dict[str, str]) -> dict:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [MPIRUN, "--oversubscribe", "-n", str(ranks), "/usr/bin/python3", str(folder / SOLVER.name), str(N), str(STEPS),
         str(INTERVAL)],
        env={**clean, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def exact(kappa: float, step: int) -> np.ndarray:
    x = np.sin(np.pi * np.arange(N) / (N - 1))
    return np.exp(-2 * np.pi**2 * kappa * INTERVAL * step) * np.outer(x, x)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_two_ranks_of_dolfinx_stream_into_a_study(folder: Path, transport: str) -> None:
    layout = make_layout(fields=("T",), shape=(N, N), num_steps=STEPS + 1, parameters=("kappa",))
    with running_intake(folder, layout, transport=transport) as intake:
        intake.plan([Assignment(simulation=i, parameters={"kappa": kappa}) for i, kappa in enumerate((0.1, 0.4))])
        intake.all_planned()
        reports = [solve(folder, 2, {**intake.environment, "HEADRACE_JOB": f"1-{i}"}) for i in range(2)]
        wait_until(lambda: intake.status()["done"] == 2)
        slots, memory = intake.settings.buffer.slots, intake.settings.memory.array
        assert sum(report["bytes"] for report in reports) == intake.status()["bytes_received"]
        assert intake.status()["bytes_received"] == 2 * (STEPS + 1) * layout.step_bytes
        assert len(slots) == 2 * (STEPS + 1) and not intake.status()["rejected"]
        for (simulation, step), slot in slots.items():
            wanted = exact((0.1, 0.4)[simulation], step)
            # Linear elements of width 1/16: the decay is wrong by about (π/16)²/12 of itself.
            np.testing.assert_allclose(memory[slot, 0], wanted, atol=0.012 * wanted.max() + 1e-7)
