"""`headrace submit`: the script that runs a study in one Slurm allocation."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from headrace.cases.command_line import build_app
from headrace.online_training.step_launcher import step_flags


def submit(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), ["submit", *arguments])
    return result.exit_code, result.output


def test_a_dry_run_prints_a_whole_script_and_submits_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, script = submit(
        "heat2d", "--shape", "16x16", "--model", "fno", "--architecture", "modes=4", "--nodes", "3", "--cores", "8",
        "--minutes", "90", "--notice", "300", "--directive", "--partition=gpu", "--ranks", "4", "--statistics",
        "--scheduler-options", "--mpi=pmix", "--scheduler", "slurm", "--dry-run",
    )  # fmt: skip
    assert code == 0
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    lines = script.splitlines()
    for line in (
        "#SBATCH --nodes=3", "#SBATCH --ntasks-per-node=8", "#SBATCH --time=90", "#SBATCH --signal=B:USR1@300",
        "#SBATCH --requeue", "#SBATCH --open-mode=append", "#SBATCH --partition=gpu",
    ):  # fmt: skip
        assert line in lines
    command = next(line for line in lines if " train " in line)
    assert command.startswith(sys.executable) and command.endswith("&")
    for words in (
        "heat2d.py:case", "--shape 16x16", "--model fno", "--architecture modes=4", "--ranks 4", "--statistics",
        "--scheduler-options --mpi=pmix", "--resume", "--scheduler slurm-steps", "--interface auto",
        "--ray-address slurm-nodes",
    ):  # fmt: skip
        assert words in command
    assert "--scheduler slurm " not in command
    assert "unset http_proxy" in script
    assert not list(tmp_path.iterdir())


def test_solver_jobs_may_be_apart_and_one_node_needs_no_further_ray() -> None:
    code, script = submit("heat2d", "--ranks", "64", "--jobs-apart", "--interface", "ib0", "--dry-run")
    assert code == 0
    command = next(line for line in script.splitlines() if " train " in line)
    assert "--scheduler slurm " in command and "--interface ib0" in command
    assert "slurm-steps" not in command and "--ray-address" not in command
    assert "batch jobs of their own" in script


def test_a_job_larger_than_the_allocation_is_named() -> None:
    code, output = submit("heat2d", "--ranks", "9", "--nodes", "2", "--cores", "4", "--dry-run")
    assert code == 2 and "9 ranks" in output


def test_a_notice_as_long_as_the_job_is_refused() -> None:
    code, output = submit("heat2d", "--minutes", "2", "--notice", "120", "--dry-run")
    assert code == 2 and "--notice 120" in output and "--minutes" in output


@pytest.mark.parametrize("scheduler", ["pbs", "local"])
def test_other_schedulers_are_refused(scheduler: str) -> None:
    code, output = submit("heat2d", "--scheduler", scheduler, "--dry-run")
    assert code == 2 and "slurm" in output


def test_steps_share_cores_only_where_the_study_is_a_step_itself() -> None:
    with pytest.raises(RuntimeError, match="sbatch or salloc"):
        step_flags({}, [])
    batch = step_flags({"SLURM_JOB_ID": "7"}, ["--mpi=pmix"])
    assert "--exact" in batch and "--overlap" not in batch
    assert "--mpi=pmix" in batch and "--mpi=pmi2" not in batch
    nodes = step_flags({"SLURM_JOB_ID": "7"}, ["--nodes=2"], whole_nodes=True)
    assert {"--overlap", "--mem=0", "--nodes=2"} <= set(nodes) and "--cpus-per-task=1" not in nodes
    step = step_flags({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, [])
    assert "--overlap" in step and "--exact" not in step and "--mpi=pmi2" in step
