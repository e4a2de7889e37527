"""Whole studies on a real Slurm of two nodes: solver jobs by sbatch, and as steps of one submitted allocation."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.online_training import slurm_cluster
from tests.online_training.slurm_cluster import SlurmCluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not slurm_cluster.available(), reason=f"needs {slurm_cluster.INSTALL}"),
]
HEADRACE = [sys.executable, "-m", "headrace.cases"]
STUDY = ["heat2d", "--shape", "16x16", "--model", "mlp", "--simulations", "6", "--held-out", "1", "--ranks", "2"]
STUDY += ["--jobs", "2", "--views", "1"]


@pytest.fixture(scope="module")
def cluster():
    with SlurmCluster() as cluster:
        yield cluster


def headrace(cluster: SlurmCluster, *arguments: str) -> str:
    done = subprocess.run(
        [*HEADRACE, *arguments], env={**os.environ, **cluster.environment}, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_solver_jobs_by_sbatch(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    headrace(cluster, "train", *STUDY, "--run-dir", str(run), "--scheduler", "slurm", "--plain")
    assert {path.read_text().strip() for path in (run / "logs").glob("job-*.exit")} == {"0"}
    assert "audit clean" in headrace(cluster, "audit", str(run))
    assert cluster.run("squeue", "--noheader").strip() == ""


def test_a_submitted_study_runs_its_solvers_as_steps(cluster: SlurmCluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    headrace(cluster, "submit", *STUDY, "--run-dir", str(run), "--nodes", "2", "--cores", "4", "--minutes", "10")
    deadline, steps = time.monotonic() + 240, set()
    while cluster.run("squeue", "--noheader").strip():
        steps.update(cluster.run("squeue", "--steps", "--noheader", "--format=%i").split())
        assert time.monotonic() < deadline, (tmp_path / "run.log").read_text()
        time.sleep(0.3)
    assert (run / "report.html").exists(), (tmp_path / "run.log").read_text()
    assert any(step.split(".")[1].isdigit() for step in steps)
    assert "audit clean" in headrace(cluster, "audit", str(run))
