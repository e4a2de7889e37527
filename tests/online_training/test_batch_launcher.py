"""Solver jobs through batch schedulers: a real Slurm of two nodes, and scripts and answers of the others."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.online_training.batch_launcher import LOST, BatchLauncher
from headrace.online_training.launcher import Job
from headrace.online_training.scheduler import Scheduler, SchedulerError, submission_environment
from headrace.online_training.settings import StudySettings
from headrace.online_training.step_launcher import short_addresses
from tests.online_training import slurm_cluster
from tests.online_training.intake_setup import MPI_PROGRAM, make_layout, plan, running_intake, wait_until
from tests.online_training.slurm_cluster import SlurmCluster, processes_with
from tests.online_training.test_launcher import ranks_in

RANK = str(Path(__file__).with_name("job_rank.py"))
with_slurm = pytest.mark.skipif(not slurm_cluster.available(), reason=f"needs {slurm_cluster.INSTALL}")
BUILT_IN = ("slurm", "pbs", "lsf", "flux", "oar")


def make_job(tmp_path: Path, name: str = "1-0001", *command: str, ranks: int = 2, **environment: str) -> Job:
    command = command or ("true",)
    return Job(name=name, command=command, ranks=ranks, environment=environment, log=tmp_path / f"job-{name}.log")


# Scripts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", BUILT_IN)
def test_every_script_is_a_shell_program_that_carries_the_job(tmp_path: Path, scheduler: str) -> None:
    launcher = BatchLauncher(scheduler, options=["--one=1"], launch="run -n {ranks}")
    job = make_job(tmp_path, "2-0003", "solver", "with space", ranks=7, HEADRACE_TOKEN_FILE="/the path/token")
    script = launcher.script_of(job)
    assert script.startswith("#!/bin/bash\n")
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "export HEADRACE_TOKEN_FILE='/the path/token'" in script
    assert "run -n 7 solver 'with space' &" in script
    assert "hr-2-0003" in script and str(job.log) in script and "--one=1" in script


def test_a_program_with_its_own_mpirun_is_started_as_it_is(tmp_path: Path) -> None:
    job = replace(make_job(tmp_path, "1-0001", "mpirun.own", "-n", "3", "./heat"), own_mpirun=True)
    script = BatchLauncher("slurm", launch="site-mpirun -n {ranks}").script_of(job)
    assert "\n mpirun.own -n 3 ./heat &\n" in script and "site-mpirun" not in script


def test_directives_of_pbs_professional_are_those_of_its_reference_guide(tmp_path: Path) -> None:
    launcher = BatchLauncher("pbs", options=["-q workq", "-l walltime=00:30:00"], launch="mpiexec -n {ranks}")
    lines = launcher.script_of(make_job(tmp_path, ranks=4)).splitlines()
    directives = [line for line in lines if line.startswith("#PBS")]
    assert directives == [
        "#PBS -N hr-1-0001", "#PBS -l select=1:ncpus=4:mpiprocs=4", "#PBS -j oe",
        f"#PBS -o {tmp_path}/job-1-0001.log", "#PBS -r n", "#PBS -q workq", "#PBS -l walltime=00:30:00",
    ]  # fmt: skip
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#PBS") for line in lines[first_command:])  # PBS stops reading there


def test_an_array_is_one_script_in_which_each_job_finds_its_own(tmp_path: Path) -> None:
    jobs = [make_job(tmp_path, f"1-000{n}", "solver", HEADRACE_JOB=f"1-000{n}", SHARED="x y") for n in (1, 2, 3)]
    script = BatchLauncher("slurm", launch="echo {ranks} $HEADRACE_JOB $SHARED").script_of(*jobs)
    assert "#SBATCH --array=0-2" in script.splitlines()
    for index, job in enumerate(jobs):
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index)}
        assert subprocess.run(["bash"], input=script, text=True, env=environment, check=False).returncode == 0
        assert job.log.read_text() == f"2 {job.name} x y solver\n"
        assert job.log.with_suffix(".exit").read_text() == "0\n" and job.log.with_suffix(".begun").exists()


def test_schedulers_without_arrays_get_one_script_for_each_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_commands(tmp_path, monkeypatch, qsub=f"echo x >> {tmp_path}/n; wc -l < {tmp_path}/n")
    launcher = BatchLauncher("pbs", launch="run -n {ranks}")
    assert launcher.start_many([make_job(tmp_path, f"1-{n}") for n in range(3)]) == [1, 2, 3]


QSTAT = """
pbs: 
                                                            Req'd  Req'd   Elap
Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time
--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----
1001.pbs        ada      workq    hr-1-0001   12345   1   4    --  00:30 R 00:01
1002.pbs        ada      workq    hr-1-0002     --    1   4    --  00:30 Q   -- 
1003.pbs        ada      workq    hr-1-0003   12399   1   4    --  00:30 F 00:02
1004[].pbs      ada      workq    hr-1-0004     --    1   4    --  00:30 B   -- 
"""  # noqa: W291


def fake_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """Put shell scripts with these bodies before everything else on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_answers_of_pbs_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "answer").write_text(QSTAT)
    fake_commands(
        tmp_path, monkeypatch, qsub="echo 1001.pbs", qstat=f"cat {tmp_path}/answer", qdel=f"echo $1 > {tmp_path}/gone"
    )
    scheduler = Scheduler.load("pbs")
    assert scheduler.submit_script(tmp_path / "x.sh") == "1001.pbs"
    assert scheduler.list_states() == {"1001.pbs": "R", "1002.pbs": "Q", "1003.pbs": "F", "1004[].pbs": "B"}
    scheduler.cancel_job("1001.pbs")
    assert (tmp_path / "gone").read_text().strip() == "1001.pbs"


def test_a_user_s_own_scheduler_is_a_file(tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    folder = Path(Scheduler.load.__func__.__globals__["_FOLDER"])
    own.write_text((folder / "pbs.toml").read_text().replace("#PBS -r n", "#PBS -A {{ acount }}"))
    with pytest.raises(ValueError, match="acount"):
        BatchLauncher(str(own)).script_of(make_job(tmp_path))
    own.write_text("submit = []\nsubmitt = []\n")
    with pytest.raises(ValueError, match="submitt"):
        Scheduler.load(str(own))
    own.write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"mine\.toml is no TOML"):
        Scheduler.load(str(own))
    with pytest.raises(ValueError, match="there are flux, lsf, oar, pbs, slurm"):
        StudySettings(scheduler="sllurm")


def test_commands_see_nothing_of_a_surrounding_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_MEM_PER_CPU", "PMI_RANK", "PMIX_RANK", "PBS_JOBID", "RAY_JOB_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    names = set(submission_environment())
    assert "SLURM_CONF" in names
    assert not names & {"SLURM_MEM_PER_CPU", "PMI_RANK", "PMIX_RANK", "PBS_JOBID", "RAY_JOB_ID"}


def test_addresses_of_the_mpich_wheel_are_short_where_pmi2_carries_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv("MPIR_CVAR_CH4_NETMOD", raising=False)
    assert short_addresses(["srun", "--mpi=pmi2"], os.environ) == {}  # a site's MPI knows its network
    (tmp_path / "mpichversion").touch()
    assert short_addresses(["srun", "--mpi=pmix"], os.environ) == {}
    script = BatchLauncher("slurm", launch="srun --mpi=pmi2 -n {ranks}").script_of(make_job(tmp_path))
    assert "export MPIR_CVAR_CH4_NETMOD=ofi" in script.splitlines()
    monkeypatch.setenv("MPIR_CVAR_CH4_NETMOD", "ucx")
    script = BatchLauncher("slurm", launch="srun --mpi=pmi2 -n {ranks}").script_of(make_job(tmp_path))
    assert "export MPIR_CVAR_CH4_NETMOD=ucx" in script.splitlines()


# A scheduler that lies ----------------------------------------------------------------------------------------------


def test_exit_files_are_believed_over_the_scheduler_and_silence_is_no_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    fake_commands(tmp_path, monkeypatch, qsub="echo 7.pbs", qstat="echo unreachable >&2; exit 1", qdel="exit 0")
    launcher = BatchLauncher("pbs", launch="run -n {ranks}", clock=lambda: now[0])
    assert launcher.start(make_job(tmp_path)) == 7 and launcher.waits("1-0001")
    (tmp_path / "job-1-0001.begun").touch()
    for _ in range(100):  # the scheduler is down for hours
        now[0] += 100.0
        assert launcher.poll() == {} and not launcher.waits("1-0001")
    fake_commands(tmp_path, monkeypatch, qstat="true")  # and when it comes back it has forgotten the job
    now[0] += 100.0
    assert launcher.poll() == {}
    (tmp_path / "job-1-0001.exit").write_text("3\n")  # but the job's own word arrives in time
    now[0] += 1.5
    assert launcher.poll() == {"1-0001": 3}
    launcher.start(make_job(tmp_path, "1-0002"))
    now[0] += 100.0
    assert launcher.poll() == {}
    now[0] += 100.0
    assert launcher.poll() == {"1-0002": LOST}


def test_a_refusal_has_the_scheduler_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_commands(tmp_path, monkeypatch, qsub="echo 'qsub: Unknown queue' >&2; exit 1")
    with pytest.raises(SchedulerError, match="Unknown queue"):
        BatchLauncher("pbs").start(make_job(tmp_path))


# The real one -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory):
    with SlurmCluster(shared=(tmp_path_factory.getbasetemp(),)) as cluster:
        yield cluster


@pytest.fixture
def slurm(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch):
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    launcher = BatchLauncher("slurm", poll_seconds=0.5, options=["--time=5"])
    yield launcher
    launcher.stop_all()


def ends(launcher: BatchLauncher, count: int) -> dict[str, int]:
    codes: dict[str, int] = {}
    wait_until(lambda: codes.update(launcher.poll()) or len(codes) >= count)
    return codes


@with_slurm
def test_jobs_run_at_once_and_their_exit_codes_arrive(slurm: BatchLauncher, tmp_path: Path) -> None:
    for number, code in enumerate((0, 5, 0)):
        slurm.start(
            make_job(tmp_path, f"1-{number}", sys.executable, RANK, "1", str(code), str(tmp_path / f"{number}"))
        )
    for number in range(3):
        assert len(ranks_in(tmp_path / f"{number}", 2)) == 2
    codes = ends(slurm, 3)
    assert codes["1-0"] == codes["1-2"] == 0 and codes["1-1"] == 5


@with_slurm
def test_jobs_of_an_array_are_watched_and_stopped_one_by_one(
    slurm: BatchLauncher, cluster: SlurmCluster, tmp_path: Path
) -> None:
    jobs = [make_job(tmp_path, f"6-{n}", sys.executable, RANK, "300", "0", str(tmp_path / "pids")) for n in range(3)]
    slurm.start_many(jobs)
    ranks_in(tmp_path / "pids", 6)
    elements = cluster.run("squeue", "-h", "-r", "-o", "%i").split()
    assert len(elements) == 3 and len({one.partition("_")[0] for one in elements}) == 1
    slurm.stop("6-1")
    wait_until(lambda: len(cluster.run("squeue", "-h", "-r", "-o", "%i").split()) == 2)
    cluster.run("scancel", *cluster.run("squeue", "-h", "-r", "-o", "%i").split())
    codes = ends(slurm, 3)
    assert set(codes) == {"6-0", "6-1", "6-2"} and all(codes.values())


@with_slurm
def test_a_stopped_job_leaves_no_rank(slurm: BatchLauncher, tmp_path: Path) -> None:
    slurm.start(make_job(tmp_path, "2-1", sys.executable, RANK, "300", "0", str(tmp_path / "pids")))
    ranks_in(tmp_path / "pids", 2)
    assert len(processes_with(tmp_path / "pids")) >= 2
    slurm.stop("2-1")
    wait_until(lambda: not processes_with(tmp_path / "pids"))
    assert slurm.poll().get("2-1", LOST) != 0


@with_slurm
def test_a_job_that_its_scheduler_cancels_is_noticed(
    slurm: BatchLauncher, cluster: SlurmCluster, tmp_path: Path
) -> None:
    number = slurm.start(make_job(tmp_path, "3-1", sys.executable, RANK, "300", "0", str(tmp_path / "pids")))
    ranks_in(tmp_path / "pids", 2)
    cluster.run("scancel", "--signal=KILL", str(number))
    cluster.run("scancel", str(number))
    assert ends(slurm, 1)["3-1"] != 0


@with_slurm
@pytest.mark.parametrize("launch", [None, "srun --mpi=pmi2 -n {ranks}"])
def test_two_jobs_each_on_two_nodes_stream_into_one_intake(
    slurm: BatchLauncher, cluster: SlurmCluster, tmp_path: Path, launch: str | None
) -> None:
    launcher = BatchLauncher(
        "slurm", poll_seconds=0.5, options=["--time=5", "--nodes=2", "--ntasks-per-node=1"], launch=launch
    )
    layout = make_layout(shape=(8, 6))
    settings = {"shape": layout.shape, "fields": layout.fields, "steps": layout.num_steps, "cut": [2, 1]}
    with running_intake(tmp_path, layout, slots=64, transport="tcp", interface=cluster.address) as intake:
        plan(intake, 6)
        for name in ("4-1", "4-2"):
            environment = {**intake.environment, "HEADRACE_JOB": name}
            command = (sys.executable, MPI_PROGRAM, json.dumps(settings))
            job = make_job(tmp_path, name, *command, ranks=2, **environment)
            launcher.start(job)
        assert ends(launcher, 2) == {"4-1": 0, "4-2": 0}
        assert len(intake.settings.buffer.slots) == 6 * layout.num_steps


@with_slurm
def test_a_controller_that_dies_is_no_death_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SlurmCluster(shared=(tmp_path,)) as own:
        monkeypatch.setenv("SLURM_CONF", own.environment["SLURM_CONF"])
        launcher = BatchLauncher("slurm", poll_seconds=600)  # asks once
        wait = f"echo $$ >> {tmp_path}/pids; until [ -e {tmp_path}/end ]; do sleep 0.1; done"
        launcher.start(make_job(tmp_path, "5-1", "sh", "-c", wait))
        ranks_in(tmp_path / "pids", 2)
        own.kill_controller()
        assert launcher.poll() == {}
        (tmp_path / "end").touch()
        assert ends(launcher, 1) == {"5-1": 0}
        own.restart_controller()
