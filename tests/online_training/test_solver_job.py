"""A solver job under a real mpirun, against a real intake: what arrives is what a serial solver computes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from headrace.online_training.intake import Assignment
from headrace.online_training.launcher import Job
from headrace.online_training.layout import StreamLayout
from headrace.online_training.ledger import read_records
from headrace.online_training.local_launcher import LocalLauncher
from headrace.online_training.supervisor import SupervisorProcess
from headrace.solvers import MemorySink, Parameters
from headrace.solvers.case_file import CaseReference
from headrace.solvers.simulate import simulate
from tests.mpi_run import run_mpi

from .intake_setup import running_intake, wait_until

CASE = '''
import atexit, os, signal, sys
from pathlib import Path
import numpy as np
from headrace.solvers import Case, Grid, Periodic, Uniform

HERE = Path(__file__).parent

def diffusion(u, d, p, t):
    """∂u/∂t = ν ∇²u."""
    return p.nu * d.laplacian(u)

def initial(x, p, rng):
    noise = rng.normal(size=x[0].shape)
    if p.fault == 1:
        raise ArithmeticError("no such state")
    if p.fault == 2:
        return np.full(x[0].shape, np.nan)
    if p.fault >= 3:
        from mpi4py import MPI
        first = not (HERE / "seen").exists()
        MPI.COMM_WORLD.Barrier()
        if MPI.COMM_WORLD.rank == 1 and p.fault == 3:
            sys.modules["__main__"]._AGREEMENT_SECONDS = 0.5  # the other never comes, however long
            raise ArithmeticError("rank 1 only")
        if MPI.COMM_WORLD.rank == 1 and p.fault == 4 and first:
            (HERE / "seen").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return np.sin(2 * np.pi * x[0]) + noise

@atexit.register
def note_modules():
    (HERE / f"modules-{os.getpid()}").write_text("\\n".join(sys.modules))

case = Case(
    name="faulty", fields=("u",), grid=Grid(shape=(12, 10), extent=(1.0, 1.0)), boundary=Periodic(),
    parameters={"nu": Uniform(0.0, 1.0), "fault": Uniform(0.0, 4.0)},
    initial=initial, rhs=diffusion, duration=0.01, num_snapshots=4,
)
'''


class Bench:
    """A case on disk, an intake that writes held-out simulations into `states`, and the command of a job."""

    def __init__(self, tmp_path, intake, states):
        self.intake, self.states, self.folder = intake, states, tmp_path
        self.reference = CaseReference.of(tmp_path / "faulty.py")
        path = tmp_path / "case.json"
        path.write_text(json.dumps(self.reference.to_dict()))
        self.command = [sys.executable, "-m", "headrace.online_training.solver_job", str(path)]
        self.environment = {name: text for name, text in intake.environment.items() if name != "HEADRACE_JOB"}

    def plan(self, *faults):
        self.assignments = [
            Assignment(simulation=s, parameters={"nu": 0.1 * (s + 1), "fault": float(fault)}, seed=7, held_out=True)
            for s, fault in enumerate(faults)
        ]
        self.intake.plan(self.assignments)
        self.intake.all_planned()

    def run(self, ranks=2):
        """Run one job to its end; return its exit code and its log."""
        launcher = LocalLauncher()
        log = self.folder / "job.log"
        launcher.start(
            Job(name="a", command=self.command, ranks=ranks,
                environment={**self.environment, "HEADRACE_JOB": "a"}, log=log)
        )  # fmt: skip
        try:
            ended = wait_until(launcher.poll)
        finally:
            launcher.stop_all()
        return ended["a"], log.read_text()

    def serial(self, assignment):
        """What one process computes for an assignment, (snapshots, fields, *grid) float32."""
        sink = MemorySink()
        case, parameters = self.reference.load(), Parameters(assignment.parameters)
        simulate(case, parameters, sink, study_seed=assignment.seed, simulation=assignment.simulation)
        return sink.values.astype(np.float32)

    def written(self, count):
        wait_until(lambda: len(self.states) >= count)
        return sorted(self.states)


@pytest.fixture
def bench(tmp_path):
    states = {}

    def write_held_out(simulation, parameters, times, values):
        states[simulation] = (np.array(times), np.array(values))

    (tmp_path / "faulty.py").write_text(CASE)
    layout = StreamLayout(fields=("u",), shape=(12, 10), num_steps=5, window=2, parameters=("nu", "fault"))
    with running_intake(tmp_path, layout, write_held_out=write_held_out) as intake:
        yield Bench(tmp_path, intake, states)


@pytest.mark.mpi
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_job_streams_what_a_serial_solver_computes(bench, ranks):
    bench.plan(0, 0, 0)
    code, log = bench.run(ranks)
    assert code == 0, log
    assert bench.written(3) == [0, 1, 2]
    for assignment in bench.assignments:
        times, values = bench.states[assignment.simulation]
        np.testing.assert_allclose(times, bench.reference.load().times, rtol=1e-14)
        np.testing.assert_array_equal(values, bench.serial(assignment))
    # Random initial states differ between simulations, though one job ran them all.
    assert not np.array_equal(bench.states[0][1][0], bench.states[1][1][0])
    modules = [set(path.read_text().split()) for path in bench.folder.glob("modules-*")]
    assert len(modules) == ranks
    for loaded in modules:
        assert "headrace.solvers.simulate" in loaded
        assert not {"torch", "ray", "scipy.stats", "pandas", "pydantic", "typer", "matplotlib"} & loaded


@pytest.mark.mpi
def test_failed_simulations_go_into_quarantine_and_the_job_goes_on(bench):
    bench.plan(0, 1, 2, 0)
    code, log = bench.run()
    assert code == 0, log
    assert bench.written(2) == [0, 3]
    np.testing.assert_array_equal(bench.states[3][1], bench.serial(bench.assignments[3]))
    assert "Simulation 1, attempt 1, failed" in log and "no such state" in log
    bench.intake.close()
    quarantined = {
        record["s"]: record["reason"]
        for record in read_records(bench.folder / "ledger" / "intake-1.log") if record["e"] == "quarantined"
    }  # fmt: skip
    assert quarantined[1] == "ArithmeticError: no such state"
    assert "120 values of field u are not finite" in quarantined[2]


@pytest.mark.mpi
def test_a_failure_on_one_rank_ends_the_job_instead_of_hanging_it(bench):
    bench.plan(3)
    code, log = bench.run()
    assert code != 0
    assert "rank 1 only" in log and "RanksDisagree" in log
    assert bench.intake.job_ended("a", code) == [0]


STALLED_MPIRUN = """
import subprocess, sys
import psutil
from mpi4py import MPI
from headrace.online_training import solver_job

solver_job._FORWARDING_SECONDS = 0.0
comm = MPI.COMM_WORLD
comm.Barrier()
if comm.rank == 1:
    above = [one.pid for one in psutil.Process().parents()[:2] if "mpi" in one.name() or "hydra" in one.name()]
    goes_on = "; ".join(f"sleep 1; kill -CONT {pid}" for pid in above)
    subprocess.run(["sh", "-c", f"kill -STOP {' '.join(map(str, above))}; ({goes_on}) > /dev/null 2>&1 &"],
                   start_new_session=True, check=True)
    print("the only words", file=sys.stderr)
    solver_job.abort(comm, 3)
comm.Barrier()
"""


@pytest.mark.mpi
def test_the_last_words_of_a_rank_are_read_before_it_ends_the_others_however_busy_mpirun_is():
    done = run_mpi(2, ["-c", STALLED_MPIRUN])
    assert done.returncode != 0 and "the only words" in done.stderr


@pytest.mark.mpi
def test_a_killed_rank_costs_one_attempt(bench):
    bench.plan(0, 4, 0)
    supervisor = SupervisorProcess(
        command=bench.command, ranks=2, environment=bench.environment, log_dir=str(bench.folder / "logs"), session=1
    )
    events, again = [], []
    try:
        supervisor.start()
        supervisor.set_jobs(1)

        def finished():
            for event in supervisor.events():
                events.append(event)
                if event["event"] == "exited":
                    again.extend(bench.intake.job_ended(event["job"], event["code"]))
            return events and events[-1]["event"] == "exited" and events[-1]["code"] == 0

        wait_until(finished)
    finally:
        supervisor.stop()
    assert again == [1]
    assert [event["event"] for event in events] == ["started", "exited", "started", "exited"]
    assert events[1]["code"] != 0
    assert bench.written(3) == [0, 1, 2]
    for assignment in bench.assignments:
        np.testing.assert_array_equal(bench.states[assignment.simulation][1], bench.serial(assignment))


def run_alone(bench, environment):
    return subprocess.run(
        bench.command, env={**environment, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.mpi
def test_a_job_without_a_study_says_what_to_do(bench):
    ended = run_alone(bench, {})
    assert ended.returncode != 0 and "use headrace solve" in ended.stderr


@pytest.mark.mpi
def test_ranks_that_do_not_know_of_one_another_are_named(bench):
    """As where mpirun is of another MPI than mpi4py's library: each believes to be alone."""
    ended = run_alone(bench, {**bench.environment, "HEADRACE_JOB": "a", "HEADRACE_RANKS": "2"})
    assert ended.returncode != 0 and "this job has 1 ranks, but 2 were started" in ended.stderr


@pytest.mark.mpi
def test_a_case_that_changed_since_the_study_began_is_refused(bench):
    (bench.folder / "faulty.py").write_text(CASE + "\n# another\n")
    ended = run_alone(bench, {**bench.environment, "HEADRACE_JOB": "a"})
    assert ended.returncode != 0 and "has changed" in ended.stderr
    assert not list((bench.folder / "ledger").glob("solver-*"))  # it did not even connect
