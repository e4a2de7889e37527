"""Launcher and supervisor, with real mpirun processes: nothing is orphaned, whatever is killed."""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from headrace.online_training import local_launcher
from headrace.online_training.greetings import Greetings
from headrace.online_training.launcher import Job, Launcher
from headrace.online_training.local_launcher import (
    LocalLauncher,
    clean_environment,
    cores_for,
    find_mpirun,
    thread_variables,
)
from headrace.online_training.mpi_segments import segments_of
from headrace.online_training.supervisor import Supervisor, SupervisorProcess, SupervisorSettings, cause_in, tail_of

from .intake_setup import PATIENCE, wait_until

RANK = str(Path(__file__).with_name("job_rank.py"))


def wait_for(condition, what, seconds=PATIENCE):
    return wait_until(condition, seconds, what)


def ranks_in(path, count):
    """Process ids of the ranks that wrote themselves down, once there are enough."""
    wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= count, f"{count} ranks")
    return [int(line.split()[0]) for line in path.read_text().splitlines()]


def alive(pids):
    found = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def gone(pids):
    wait_for(lambda: not alive(pids), f"processes {pids} to end")


OPEN_MPI = Path("/usr/bin/mpirun.openmpi")
INTEL = Path(os.environ.get("I_MPI_ROOT", "/nowhere"))
MPIS = [
    pytest.param(None, id="beside"),
    pytest.param(
        OPEN_MPI, id="openmpi", marks=pytest.mark.skipif(not OPEN_MPI.exists(), reason="apt-get install -y openmpi-bin")
    ),
    pytest.param(
        INTEL / "bin" / "mpirun", id="intel",
        marks=pytest.mark.skipif(not INTEL.exists(), reason="pip install impi-rt elsewhere, and I_MPI_ROOT says where"),
    ),
]  # fmt: skip
LIBRARIES = {OPEN_MPI: "libmpi.so.40", INTEL / "bin" / "mpirun": str(INTEL / "lib" / "libmpi.so.12")}


@pytest.fixture(params=MPIS)
def launcher(request, monkeypatch):
    """The MPI beside this Python, Intel's, and Debian's Open MPI, whose ranks would outlive a killed mpirun."""
    if request.param is not None:
        monkeypatch.setenv("MPI4PY_LIBMPI", LIBRARIES[request.param])
    launcher = LocalLauncher(mpirun=request.param)
    yield launcher
    launcher.stop_all()


def job(tmp_path, name, *arguments, ranks=2):
    return Job(
        name=name, command=[sys.executable, RANK, *map(str, arguments)], ranks=ranks,
        environment={"HEADRACE_JOB": name}, log=tmp_path / "logs" / f"{name}.log",
    )  # fmt: skip


def ends(launcher, count=1):
    collected = {}
    wait_for(lambda: collected.update(launcher.poll()) or len(collected) >= count, f"{count} jobs to end")
    return collected


@pytest.mark.mpi
def test_a_node_without_ssh_has_local_jobs_all_the_same(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_MCA_plm_rsh_agent", "/nowhere/ssh")
    launcher.start(job(tmp_path, "one", 0, 0, tmp_path / "pids", ranks=1))
    assert ends(launcher) == {"one": 0}


@pytest.mark.mpi
def test_exit_codes_logs_and_environment(launcher, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PMI_RANK", "3")  # as if this process were a rank itself
    pid = launcher.start(job(tmp_path, "good", 0, 0, tmp_path / "good"))
    assert psutil.pid_exists(pid)
    launcher.start(job(tmp_path, "bad", 0, 3, tmp_path / "bad"))
    assert ends(launcher, 2) == {"good": 0, "bad": 3}
    assert launcher.poll() == {}
    # mpirun may forward the two ranks' lines without the line feed between them.
    output = (tmp_path / "logs" / "good.log").read_text()
    assert [output.count(f"rank {rank} of 2 is here") for rank in (0, 1)] == [1, 1]
    lines = [line.split()[1:] for line in (tmp_path / "good").read_text().splitlines()]
    assert sorted(lines) == [["0", "good", "1"], ["1", "good", "1"]]


@pytest.mark.mpi
def test_stop_leaves_no_process_and_spares_the_other_job(launcher, tmp_path):
    for name in ("first", "second"):
        launcher.start(job(tmp_path, name, 60, 0, tmp_path / name))
    first, second = ranks_in(tmp_path / "first", 2), ranks_in(tmp_path / "second", 2)
    launcher.stop("first")
    assert alive(first) == [] and alive(second) == second
    assert list(launcher.poll()) == ["first"]
    launcher.stop("first")  # not there any more: nothing to do
    launcher.stop_all()
    assert alive(second) == []


@pytest.mark.mpi
def test_the_shared_memory_of_a_stopped_job_goes_with_it_and_that_of_another_stays(launcher, tmp_path):
    ranks = {}
    for name in ("first", "second"):
        launcher.start(job(tmp_path, name, 600, 0, tmp_path / name))
        ranks[name] = ranks_in(tmp_path / name, 2)
    first, second = ({path for rank in ranks[name] for path in segments_of(rank)} for name in ("first", "second"))
    if not first or not second:
        pytest.skip("the shared memory of this MPI has no name that is known")
    assert first.isdisjoint(second) and all(path.exists() for path in first | second)
    launcher.stop("first")
    assert not any(path.exists() for path in first) and all(path.exists() for path in second)
    launcher.stop_all()
    assert not any(path.exists() for path in second)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
@pytest.mark.parametrize("name", ["mpich_shm_", "vader_segment.", "sm_segment."])
def test_the_shared_memory_of_each_mpi_is_known_by_its_name(name):
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix=name) as file:
        file.truncate(1)
        with closing(mmap.mmap(file.fileno(), 1)):
            assert segments_of("self") >= {Path(file.name)}
        assert Path(file.name) not in segments_of("self")


@pytest.mark.mpi
def test_a_rank_that_ends_all_others_takes_their_shared_memory_along(launcher, tmp_path):
    ends_all = (
        "from mpi4py import MPI; from headrace.online_training.mpi_segments import segments_of\n"
        "from headrace.online_training.solver_job import abort\n"
        "if MPI.COMM_WORLD.allreduce(1) and MPI.COMM_WORLD.rank == 0:\n"
        f"    open({str(tmp_path / 'named')!r}, 'w').write(' '.join(map(str, segments_of('self'))))\n"
        "    abort(MPI.COMM_WORLD, 3)\n"
        "import time; time.sleep(600)\n"
    )
    command = [sys.executable, "-c", ends_all]
    launcher.start(Job(name="a", command=command, ranks=2, environment={}, log=tmp_path / "log"))
    assert ends(launcher)["a"] != 0
    named = [Path(name) for name in (tmp_path / "named").read_text().split()]
    if not named:
        pytest.skip("the shared memory of this MPI has no name that is known")
    assert not any(path.exists() for path in named)


@pytest.mark.mpi
def test_ranks_that_ignore_sigterm_are_killed(tmp_path):
    launcher = LocalLauncher(grace=0.3)
    stubborn = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(tmp_path / 'pids')!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    )
    launcher.start(
        Job(name="a", command=[sys.executable, "-c", stubborn], ranks=2, environment={}, log=tmp_path / "log")
    )
    pids = ranks_in(tmp_path / "pids", 2)
    launcher.stop("a")
    assert alive(pids) == []


@pytest.mark.mpi
def test_killed_mpirun_takes_its_ranks_along(launcher, tmp_path):
    mpirun = launcher.start(job(tmp_path, "a", 60, 0, tmp_path / "pids"))
    ranks = ranks_in(tmp_path / "pids", 2)
    os.kill(mpirun, signal.SIGKILL)
    assert ends(launcher) == {"a": 128 + signal.SIGKILL}
    gone(ranks)


@pytest.mark.mpi
def test_killed_rank_ends_the_job_with_a_failure(launcher, tmp_path):
    launcher.start(job(tmp_path, "a", 60, 0, tmp_path / "pids"))
    ranks = ranks_in(tmp_path / "pids", 2)
    os.kill(ranks[1], signal.SIGKILL)
    assert ends(launcher)["a"] != 0
    gone(ranks)


@pytest.mark.mpi
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
@pytest.mark.parametrize("mpirun", MPIS)
def test_ranks_and_jobs_beside_one_another_have_cores_of_their_own(tmp_path, mpirun):
    file, there = tmp_path / "cores", os.sched_getaffinity(0)
    file.touch()
    say = f"import os, time; open({str(file)!r}, 'a').write(f'{{os.sched_getaffinity(0)}}\\n'); time.sleep(60)"
    launcher = LocalLauncher(mpirun=mpirun, bind=1)

    def start(name, ranks):
        command = [sys.executable, "-c", say]
        launcher.start(Job(name=name, command=command, ranks=ranks, environment={}, log=tmp_path / "log"))

    try:
        start("a", 1)
        start("b", len(there) - 1)
        wait_for(lambda: len(file.read_text().splitlines()) == len(there), "all ranks")
        assert set(file.read_text().splitlines()) == {f"{{{core}}}" for core in there}
        with pytest.raises(RuntimeError, match="needs 1 cores to itself, and 0 are free"):
            start("c", 1)
        launcher.stop("a")
        start("d", 1)
    finally:
        launcher.stop_all()


def test_a_command_that_does_not_exist_is_named_in_the_log(launcher, tmp_path):
    launcher.start(Job(name="a", command=["no-such-solver"], ranks=1, environment={}, log=tmp_path / "log"))
    assert ends(launcher)["a"] != 0
    assert "Cannot run no-such-solver: No such file or directory" in (tmp_path / "log").read_text()


def test_missing_mpirun_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setattr(local_launcher.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"headrace\[mpich\].*site's MPI"):
        find_mpirun()


def test_a_rank_has_the_user_s_threads_unless_the_study_says_otherwise():
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    assert thread_variables(0, {}) == dict.fromkeys(names, "1")
    assert thread_variables(0, {"OMP_NUM_THREADS": "4"}) == dict.fromkeys(names, "4")
    own = {"OMP_NUM_THREADS": "4,2", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"}
    assert thread_variables(0, own) == own and cores_for(own) == 4
    assert thread_variables(3, own) == dict.fromkeys(names, "3")
    with pytest.raises(ValueError, match="OMP_NUM_THREADS is 'many'"):
        cores_for(thread_variables(0, {"OMP_NUM_THREADS": "many"}))


def test_environment_loses_leaks_and_keeps_settings():
    site = {"HOME": "/home/a", "OMPI_MCA_btl": "tcp", "HYDRA_IFACE": "ib0", "OMP_NUM_THREADS": "64"}
    leaks = {"SLURM_NTASKS": "4", "RAY_AUTH_TOKEN": "x", "PMIX_SERVER_URI": "a", "MPI_LOCALRANKID": "0", "HYDI_X": "1"}
    kept = clean_environment({**site, **leaks})
    assert not set(kept) & set(leaks)
    assert {**kept, "OMP_NUM_THREADS": "64"}.items() >= site.items() and kept["OMP_NUM_THREADS"] == "1"
    permitted = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    inside = clean_environment({**site, **permitted, "PMI_RANK": "0"})
    assert permitted.items() <= inside.items()
    assert not {"OMPI_MCA_btl", "HYDRA_IFACE", "PMI_RANK"} & set(inside)


# The supervisor's decisions, with a launcher and a clock of the test.


class FakeLauncher(Launcher):
    def __init__(self):
        self.running, self.ended = [], {}

    def start(self, job):
        self.running.append(job.name)
        return 1

    def poll(self):
        ended, self.ended = self.ended, {}
        return ended

    def finish(self, name, code):
        self.running.remove(name)
        self.ended[name] = code

    def stop(self, name):
        self.finish(name, 143)

    def stop_all(self):
        for name in list(self.running):
            self.stop(name)


class Bench:
    """A supervisor under test: `now` is its clock, `events` what it reported."""

    def __init__(self, tmp_path, max_failures=3):
        self.now, self.events, self.launcher = 0.0, [], FakeLauncher()
        settings = SupervisorSettings(
            command=["solver"], ranks=2, environment={}, log_dir=str(tmp_path), session=4, max_failures=max_failures
        )
        self.supervisor = Supervisor(settings, self.launcher, self.events.append, clock=lambda: self.now)

    def fail_once(self):
        """Let the running job live a second and fail; return the pause before its replacement."""
        self.now += 1.0
        self.launcher.finish(self.launcher.running[0], 1)
        self.supervisor.tick()
        begin = self.now
        while not self.launcher.running and self.now - begin < 100:
            self.now += 0.1
            self.supervisor.tick()
        return self.now - begin


def test_jobs_are_named_by_session_and_number_and_replaced_after_growing_pauses(tmp_path):
    bench = Bench(tmp_path, max_failures=6)
    bench.supervisor.set_jobs(1)
    bench.supervisor.tick()
    pauses = [bench.fail_once() for _ in range(5)]
    assert pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2], abs=0.11)
    started = [event["job"] for event in bench.events if event["event"] == "started"]
    assert started == [f"4-{n:04d}" for n in range(1, 7)]


def test_the_cause_is_found_before_what_a_launcher_says_of_it():
    log = """Traceback (most recent call last):
  File "solver_job.py", line 111, in _require_ranks
    raise RuntimeError(
RuntimeError: MPI says that this job has 1 ranks, but 2 were started.
--------
MPI_ABORT was invoked on rank 0 in communicator MPI_COMM_WORLD with errorcode 1."""
    assert cause_in(log) == "RuntimeError: MPI says that this job has 1 ranks, but 2 were started."
    assert cause_in("numpy.linalg.LinAlgError: Singular matrix\nbye") == "numpy.linalg.LinAlgError: Singular matrix"
    assert cause_in("Segmentation fault") == ""


def test_gives_up_after_too_many_failures_in_a_row_and_says_so_once(tmp_path):
    bench = Bench(tmp_path, max_failures=2)
    bench.supervisor.set_jobs(1)
    bench.supervisor.tick()
    (tmp_path / "job-4-0003.log").write_text("Traceback\nit broke\n")
    for _ in range(3):
        bench.fail_once()
    assert bench.launcher.running == []
    assert bench.events[-1] == {"event": "gave_up", "failures": 3, "tail": "Traceback\nit broke"}
    bench.supervisor.set_jobs(2)
    bench.supervisor.tick()
    assert bench.launcher.running == []


@pytest.mark.parametrize("remedy", ["progress", "long life"])
def test_progress_or_a_long_life_ends_the_row_of_failures(tmp_path, remedy):
    bench = Bench(tmp_path, max_failures=1)
    bench.supervisor.set_jobs(1)
    bench.supervisor.tick()
    for _ in range(5):
        assert bench.fail_once() < 0.5
        if remedy == "progress":
            bench.supervisor.note_progress()
        else:
            bench.now += 31
    assert all(event["event"] != "gave_up" for event in bench.events)


def test_a_finished_job_is_not_replaced_but_a_failed_one_beside_it_is(tmp_path):
    bench = Bench(tmp_path)
    bench.supervisor.set_jobs(2)
    bench.supervisor.tick()
    bench.launcher.finish("4-0001", 0)
    bench.launcher.finish("4-0002", 9)
    for _ in range(10):
        bench.now += 1
        bench.supervisor.tick()
    assert bench.launcher.running == ["4-0003"]


def test_fewer_jobs_stops_the_newest_and_counts_no_failure(tmp_path):
    bench = Bench(tmp_path, max_failures=0)
    bench.supervisor.set_jobs(3)
    bench.supervisor.tick()
    bench.supervisor.set_jobs(1)
    bench.supervisor.tick()
    assert bench.launcher.running == ["4-0001"]
    assert [(e["job"], e["stopped"]) for e in bench.events if e["event"] == "exited"] == [
        ("4-0002", True), ("4-0003", True),
    ]  # fmt: skip
    assert all(event["event"] != "gave_up" for event in bench.events)


def test_a_job_that_hangs_is_ended_and_counts_as_a_failure_however_long_it_lived(tmp_path):
    bench = Bench(tmp_path, max_failures=1)
    bench.supervisor.set_jobs(1)
    bench.supervisor.tick()
    bench.supervisor.end_job("4-0007", "no such job", failed=True)
    for _ in range(2):
        bench.now += 600
        bench.supervisor.end_job(bench.launcher.running[0], "no hello", failed=True)
        bench.supervisor.tick()
        bench.now += 1
        bench.supervisor.tick()
    assert [event["event"] for event in bench.events] == ["started", "exited"] * 2 + ["gave_up"]
    assert bench.events[1] == {"event": "exited", "job": "4-0001", "code": 143, "stopped": False, "tail": "no hello"}
    assert bench.events[-1]["tail"] == "no hello" and bench.launcher.running == []


def test_jobs_whose_simulations_hang_are_replaced_and_are_no_failures_in_a_row(tmp_path):
    bench = Bench(tmp_path, max_failures=0)
    bench.supervisor.set_jobs(1)
    bench.supervisor.tick()
    for number in range(5):
        assert bench.launcher.running == [f"4-{number + 1:04d}"]
        bench.now += 600
        bench.supervisor.end_job(bench.launcher.running[0], "it hangs", failed=False)
        bench.supervisor.tick()
    assert [event["event"] for event in bench.events] == ["started", "exited"] * 5 + ["started"]
    assert {(event["code"], event["tail"]) for event in bench.events[1::2]} == {(143, "it hangs")}
    bench.fail_once()
    assert bench.events[-1]["event"] == "gave_up", "a failure of the job itself counts"


def test_jobs_that_say_no_hello_are_told_of_and_given_up_after_the_limit():
    awaited = Greetings(ranks=3, limit=150.0)
    for name in ("1-1", "1-2", "1-3"):
        awaited.begin(name, now=10.0)
    assert awaited.look({"1-1": (3, 3), "1-2": (1, 3)}, now=20.0) == ([], {})
    awaited.end("1-3")
    assert awaited.look({"1-2": (1, 3)}, now=69.0) == ([], {})
    assert awaited.look({"1-2": (1, 3)}, now=70.0) == (["job 1-2: 1 of 3 ranks have said hello after 60 s"], {})
    assert awaited.look({"1-2": (2, 3)}, now=131.0) == (["job 1-2: 2 of 3 ranks have said hello after 121 s"], {})
    late, overdue = awaited.look({"1-2": (2, 3)}, now=160.0)
    assert late == [] and list(overdue) == ["1-2"] and "150 s (--start-limit)" in overdue["1-2"]
    assert awaited.look({}, now=1e6) == ([], {})
    awaited.begin("1-4", now=0.0)  # a program of somebody else's, which takes as many ranks as it likes
    assert awaited.look({"1-4": (1, 1)}, now=200.0) == ([], {})


def test_tail_is_the_end_of_the_log_and_bounded(tmp_path):
    log = tmp_path / "log"
    log.write_text("\n".join(f"line {n}" for n in range(1000)))
    assert tail_of(log).splitlines() == [f"line {n}" for n in range(980, 1000)]
    log.write_text("x" * 100_000)
    assert len(tail_of(log)) == 4096
    assert tail_of(tmp_path / "none") == ""


# The supervisor as a process.


@pytest.fixture
def process(tmp_path):
    """Starts a supervisor for a command; whatever happens, it is stopped."""
    started = []

    def start(*arguments, **settings):
        given = {"ranks": 2, "environment": {}, "log_dir": str(tmp_path / "logs"), "session": 1, **settings}
        supervisor = SupervisorProcess(command=[sys.executable, RANK, *map(str, arguments)], **given)
        supervisor.start()
        started.append(supervisor)
        return supervisor

    yield start
    for supervisor in started:
        supervisor.stop()


def collect(supervisor, condition):
    """Events until one of them fulfils the condition."""
    events = []
    wait_for(lambda: events.extend(supervisor.events()) or any(map(condition, events)), "an event")
    return events


def event_is(kind):
    return lambda event: event["event"] == kind


@pytest.mark.mpi
def test_a_killed_rank_is_reported_and_its_job_replaced(process, tmp_path):
    supervisor = process(60, 0, tmp_path / "pids")
    supervisor.set_jobs(1)
    ranks = ranks_in(tmp_path / "pids", 2)
    log = tmp_path / "logs" / "job-1-0001.log"  # mpirun drops words of a rank that it has not passed on when one dies
    wait_for(lambda: log.read_text().count("is here") == 2, "the words of both ranks")
    os.kill(ranks[0], signal.SIGKILL)
    (exited,) = [e for e in collect(supervisor, event_is("exited")) if e["event"] == "exited"]
    assert exited["job"] == "1-0001" and exited["code"] != 0 and not exited["stopped"]
    assert "is here" in exited["tail"]
    replaced = ranks_in(tmp_path / "pids", 4)[2:]
    gone(ranks)
    supervisor.stop()
    assert alive(replaced) == []


@pytest.mark.mpi
def test_killing_the_supervisor_leaves_no_rank(process, tmp_path):
    supervisor = process(60, 0, tmp_path / "pids")
    supervisor.set_jobs(2)
    ranks = ranks_in(tmp_path / "pids", 4)
    family = [p.pid for p in psutil.Process(supervisor.pid).children(recursive=True)]
    assert set(ranks) <= set(family)
    os.kill(supervisor.pid, signal.SIGKILL)
    gone([*family, *ranks])
    assert "ended with code -9" in collect(supervisor, event_is("gave_up"))[-1]["tail"]


@pytest.mark.mpi
def test_death_of_the_driver_stops_everything(tmp_path):
    driver = (
        "import sys, time; from headrace.online_training.supervisor import SupervisorProcess\n"
        f"s = SupervisorProcess(command=[sys.executable, {RANK!r}, '60', '0', {str(tmp_path / 'pids')!r}], ranks=2,\n"
        f"    environment={{}}, log_dir={str(tmp_path)!r}, session=1)\n"
        "s.start(); s.set_jobs(1); print(s.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", driver], stdout=subprocess.PIPE, text=True)
    supervisor = int(process.stdout.readline())
    ranks = ranks_in(tmp_path / "pids", 2)
    process.kill()
    process.wait()
    gone([supervisor, *ranks])
    assert (tmp_path / "supervisor-1.log").read_text() == ""


@pytest.mark.mpi
def test_jobs_that_keep_failing_are_given_up_with_their_last_words(process, tmp_path):
    supervisor = process(0, 5, max_failures=1)
    supervisor.set_jobs(1)
    events = collect(supervisor, event_is("gave_up"))
    assert [e["code"] for e in events if e["event"] == "exited"] == [5, 5]
    assert "is here" in events[-1]["tail"] and events[-1]["failures"] == 2


@pytest.mark.mpi
def test_twenty_quick_jobs_start_and_end_once_each(process):
    supervisor = process(0, 0, ranks=1)
    events = []
    for _ in range(4):
        supervisor.set_jobs(5)
        ended = 0
        while ended < 5:
            new = collect(supervisor, event_is("exited"))
            ended += sum(event_is("exited")(e) for e in new)
            events += new
    names = [f"1-{n:04d}" for n in range(1, 21)]
    assert sorted(e["job"] for e in events if e["event"] == "started") == names
    assert sorted((e["job"], e["code"]) for e in events if e["event"] == "exited") == [(name, 0) for name in names]


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment to imitate")
def test_a_supervisor_without_mpirun_gives_up_with_the_reason(process, monkeypatch, tmp_path):
    environment = tmp_path / "environment"  # the same packages, no mpirun
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    (environment / "lib").symlink_to(Path(sys.prefix) / "lib")
    (environment / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("headrace.online_training.supervisor.sys.executable", str(environment / "bin" / "python"))
    events = collect(process(0, 0), event_is("gave_up"))
    assert "No mpirun" in events[0]["tail"] and "headrace[mpich]" in events[0]["tail"]


def test_settings_of_the_process_are_on_disk_and_hold_no_secret(process, tmp_path):
    supervisor = process(0, 0, session=3, environment={"HEADRACE_TOKEN_FILE": "secrets/token"})
    supervisor.stop()
    settings = json.loads((tmp_path / "logs" / "supervisor-3.json").read_text())
    assert settings["session"] == 3 and settings["environment"] == {"HEADRACE_TOKEN_FILE": "secrets/token"}
