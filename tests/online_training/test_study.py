"""Whole studies with real ranks and Ray, while processes of theirs are killed."""

import contextlib
import importlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from headrace.online_training import FIFO, FIRO, Reservoir
from headrace.online_training.audit import audit
from headrace.online_training.ledger import Ledger, intake_records, read_records
from headrace.online_training.metrics_log import last_record
from headrace.online_training.run_directory import RunDirectory, StudyError
from headrace.online_training.step_limit import StepLimit
from headrace.online_training.study import Study
from headrace.solvers.case_file import CaseReference
from headrace.surrogates import LPINN, MLP, load_surrogate

from .running_study import (
    DRIVER,
    Driver,
    Meanwhile,
    command_of,
    left_over,
    reference,
    require_no_process,
    study_here,
)
from .study_driver import HOLD, SETTINGS

pytestmark = [pytest.mark.ray, pytest.mark.mpi, pytest.mark.timeout(1200)]

# Room for three of the driver's simulations, and on disk for six: then solvers wait, so that a signal finds them.
SPOOLING = {"buffer": "64KiB", "when_full": "spool", "spool": "128KiB", "durability": "node"}


def steps_of(run_dir: Path) -> int:
    record = last_record(run_dir / "intake.jsonl")
    return record["steps_accepted"] if record else 0


def batches_of(run_dir: Path) -> int:
    record = last_record(run_dir / "metrics.jsonl")
    return record["batch"] if record else 0


def kill_a_simulation(driver: Driver, ledger: Path) -> None:
    """SIGKILL the ranks while they stand still in a simulation, which has to run again; between two there is none."""

    def running() -> set[tuple[int, int]]:
        simulations = Ledger(ledger).simulations
        return {(number, len(one.accepted)) for number, one in simulations.items() if one.status == "running"}

    def killed() -> bool:
        ranks = driver.processes("solver_job")
        each(ranks, psutil.Process.suspend)
        before = running()
        time.sleep(1.0)  # what they sent has come by then
        interrupted = bool(before) and running() == before
        each(ranks, psutil.Process.kill if interrupted else psutil.Process.resume)
        return interrupted

    driver.wait_until(killed)


def each(processes: list[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            act(process)


def require_clean(run_dir: Path) -> dict[str, int]:
    report = audit(run_dir)
    assert report.ok, report.lines
    counts = report.counts
    accounted = counts["steps accepted"] + counts["steps of simulations in quarantine"]
    assert counts["steps planned"] == accounted == (SETTINGS["simulations"] + SETTINGS["held_out"]) * 21
    assert counts["double"] == 0
    return counts


def require_guarded(driver: Driver) -> None:
    """Of all that a study has running now: nothing is open to the network, or to whom the token is not known.

    MPI is left out: where mpirun and ranks listen, and whom they hear, is that MPI's own matter.
    """
    processes = [*left_over(driver.run_dir, driver.process.pid), psutil.Process(driver.process.pid)]
    ports = {}
    keys = [driver.run_dir / "secrets" / name for name in ("token", "ray")]
    secrets = [path.read_bytes().strip() for path in keys]
    assert {path.stat().st_mode & 0o777 for path in keys} == {0o600}
    assert len(set(secrets)) == 2 and all(len(secret) == 64 for secret in secrets)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            mpi = any(word in command_of(process) for word in ("mpirun", "hydra", "solver_job"))
            for one in [] if mpi else process.net_connections(kind="inet"):
                if one.status == psutil.CONN_LISTEN:
                    ports[one.laddr.port] = (one.laddr.ip.removeprefix("::ffff:"), command_of(process))
            told = "\n".join([*process.cmdline(), *process.environ().values()]).encode()
            assert not any(secret in told for secret in secrets), command_of(process)
    assert len(ports) > 3 and {address for address, _ in ports.values()} == {"127.0.0.1"}, ports
    open_to_all = {port: said for port in ports if (said := ask_without_token(port))}
    assert not open_to_all, (open_to_all, ports)
    ray_folder = Path((driver.run_dir / "secrets" / "ray-folder").read_text())
    walks = (walk for folder in (driver.run_dir, ray_folder) for walk in os.walk(folder))  # and folders come and go
    files = [path for folder, _, names in walks for name in names if (path := Path(folder, name)).is_file()]
    assert len(files) > 20
    for path in set(files) - set(keys):
        with contextlib.suppress(FileNotFoundError):  # some come and go
            assert not any(secret in path.read_bytes() for secret in secrets), path


def ask_without_token(port: int) -> bytes:
    """What a stranger gets from a port for a request in plain HTTP, other than a refusal."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            stranger.settimeout(1)
            said = stranger.recv(4096)
    except (TimeoutError, ConnectionError):  # or the process that listened has ended
        return b""
    return said if said.startswith(b"HTTP/1.1 2") else b""


def test_a_study_loses_nothing_by_deaths_and_stops_behind_its_token(tmp_path, monkeypatch, ray_here):
    run_dir, ledger, hold = tmp_path / "run", tmp_path / "run" / "ledger", Path(os.environ[HOLD])
    with monkeypatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "3")
        driver = Driver(run_dir, "new", held=True, **SPOOLING)
    driver.wait_until(lambda: steps_of(run_dir) > 10)
    # A validator that stands still keeps nobody from sending and receiving.
    validator = driver.wait_until(lambda: driver.processes("training.validator"))[0]
    validator.suspend()
    steps = steps_of(run_dir)
    driver.wait_until(lambda: steps_of(run_dir) >= steps + 42)
    validator.resume()
    assert {rank.environ()["OMP_NUM_THREADS"] for rank in driver.processes("solver_job")} == {"3"}
    kill_a_simulation(driver, ledger)
    driver.wait_until(lambda: batches_of(run_dir) > 5 and list((run_dir / "checkpoints").iterdir()))
    driver.wait_until(lambda: max(one.attempts for one in Ledger(ledger).simulations.values()) == 2)
    require_guarded(driver)
    driver.kill("RayTrainWorker")
    driver.wait_until(lambda: (last_record(run_dir / "metrics.jsonl") or {}).get("generation", 0) >= 2)
    driver.stop(signal.SIGTERM)
    stopped_at = batches_of(run_dir)

    (run_dir / "secrets" / "ray-folder").unlink()
    driver = Driver(run_dir, "resume", **SPOOLING)
    driver.wait_until((run_dir / "secrets" / "ray-folder").exists)  # written just before Ray's processes are started
    driver.stop(signal.SIGTERM)
    assert len(list(ledger.glob("study-*.log"))) == 1, "no session was begun"

    def sigint(meanwhile: Meanwhile) -> None:
        meanwhile.wait_until((ledger / "intake-2.log").exists)
        os.kill(os.getpid(), signal.SIGINT)

    assert Meanwhile().run(study_here(run_dir, **SPOOLING), sigint, resume=True).status == "stopped"
    assert not list(ledger.glob("trainer-2-*")), "it stopped before the trainer was up, and did not wait for it"

    def kill_the_intake(meanwhile: Meanwhile) -> None:
        meanwhile.wait_until(lambda: batches_of(run_dir) > stopped_at + 5)
        meanwhile.kill("IntakeActor")
        hold.unlink()

    hold.touch()
    finished = Meanwhile().run(study_here(run_dir, **SPOOLING), kill_the_intake, resume=True)
    assert finished.status == "finished"
    assert len(list(ledger.glob("study-*.log"))) == 4, "the intake was replaced in a session of its own"
    require_no_process(run_dir)
    counts = require_clean(run_dir)
    assert counts["steps kept for a later session"] > 0 and counts["steps lost before use and run again"] == 0
    assert not list(Path("/dev/shm").glob(f"headrace-kept-{RunDirectory(run_dir).read().study:016x}"))
    history = Ledger(ledger).simulations
    bad = {number for number, one in history.items() if one.parameters["x0"] > 0.66}
    assert bad and {n for n, one in history.items() if one.quarantine is not None} == bad, "and nothing else"
    assert counts["steps of simulations in quarantine"] == 21 * len(bad)
    assert any(record["e"] == "spooled" for record in intake_records(ledger)), "the spool was of use"
    assert not list((run_dir / "spool").iterdir()), "and is empty"
    with sqlite3.connect(ledger / "index.sqlite") as index:
        assert index.execute("SELECT status FROM sessions ORDER BY session").fetchall()[-1] == ("finished",)
    surrogate = RunDirectory(run_dir).load_model(run_dir)
    assert type(surrogate).__name__ == "OwnMLP" and surrogate.problem.case == "slow_decay"
    with pytest.raises(ValueError, match="Give your own class"):
        load_surrogate(run_dir)
    again = study_here(run_dir, **SPOOLING).run(resume=True)
    assert again == finished, "a finished study only repeats its result"


def test_a_deterministic_run_has_the_same_bits_killed_and_resumed_or_not(tmp_path, ray_here):
    what = {"deterministic": True, "simulations": 8, "held_out": 0, "ranks": 1, "jobs": 2, "views": 10.0}
    what["buffer"] = "60KB"  # a third of all steps
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert study_here(whole, **what).run().status == "finished"

    def trained(*, generation: int, more: int) -> bool:
        record = last_record(parts / "metrics.jsonl") or {"generation": 0, "batch": 0}
        return record["generation"] >= generation and record["batch"] > more and list((parts / "checkpoints").iterdir())

    driver = Driver(parts, "new", held=True, **what)
    driver.wait_until(lambda: trained(generation=1, more=8))
    driver.kill("RayTrainWorker")
    driver.wait_until(lambda: trained(generation=2, more=8))
    driver.sigkill()
    assert study_here(parts, **what).run(resume=True).status == "finished"
    assert len(list((parts / "ledger").glob("study-*.log"))) == 3, "trainer and driver were killed in time"
    one, two = (last_record(run / "metrics.jsonl") for run in (whole, parts))
    assert (one["batch"], one["windows"]) == (two["batch"], two["windows"])
    assert (whole / "model" / "model.safetensors").read_bytes() == (parts / "model" / "model.safetensors").read_bytes()
    report = audit(parts)
    assert report.ok and report.counts["steps lost before use and run again"] > 0, report.lines
    require_no_process(parts)


def test_a_finished_deterministic_study_makes_a_missing_file_without_running_the_others_again(tmp_path, ray_here):
    run_dir = tmp_path / "run"
    what = {"deterministic": True, "simulations": 4, "held_out": 1, "ranks": 1, "jobs": 2, "views": 2.0}
    in_the_way = run_dir / "held_out" / "sim-000004.h5.part"
    in_the_way.mkdir(parents=True)
    assert study_here(run_dir, **what).run().status == "finished"
    weights = (run_dir / "model" / "model.safetensors").read_bytes()
    in_the_way.rmdir()
    before = Ledger(run_dir / "ledger").simulations
    assert study_here(run_dir, **what).run(resume=True).status == "finished"
    assert (run_dir / "held_out" / "sim-000004.h5").exists() and audit(run_dir).ok
    now = Ledger(run_dir / "ledger").simulations
    assert [now[number].attempts for number in range(4)] == [before[number].attempts for number in range(4)]
    assert (run_dir / "model" / "model.safetensors").read_bytes() == weights


HANGS_ONCE = """
import os
import time
from dataclasses import replace

from headrace.cases.heat2d import case as heat


def initial(x, p, rng):
    if "HEADRACE_JOB" in os.environ:
        try:
            open({marker!r}, "x").close()
        except FileExistsError:
            pass
        else:
            time.sleep(1e6)
    return heat.initial(x, p, rng)


case = replace(heat, initial=initial).resized((8, 8))
"""


@pytest.mark.ray
def test_what_hangs_is_given_up_and_what_could_not_be_written_is_made_by_a_resume(tmp_path, monkeypatch, ray_here):
    run_dir, file, marker = tmp_path / "run", tmp_path / "hangs.py", tmp_path / "marker"
    file.write_text(HANGS_ONCE.format(marker=str(marker)))

    class LimitOfTheFirst(StepLimit):
        """Looks at simulation 0 alone, once it hangs: on a busy machine any other may stand still for a second."""

        def look(self, running, now):
            hanging = {job: one for job, one in running.items() if one[0].simulation == 0 and marker.exists()}
            return super().look(hanging, now)

    monkeypatch.setattr("headrace.online_training.session.StepLimit", LimitOfTheFirst)
    in_the_way = run_dir / "held_out" / "sim-000004.h5.part"
    in_the_way.mkdir(parents=True)

    def study() -> Study:
        return Study(CaseReference.of(file), MLP(hidden=(8,)), run_dir=run_dir, simulations=4, held_out=2, ranks=1,
                     views=2.0, step_limit=1.0)  # fmt: skip

    def held_out() -> list[str]:
        return sorted(path.name for path in (run_dir / "held_out").glob("*.h5"))

    assert study().run().status == "finished"
    history = Ledger(run_dir / "ledger").simulations
    assert "--step-limit" in history[0].quarantine and history[0].attempts == 1
    assert [one.number for one in history.values() if one.quarantine is not None] == [0]
    assert (run_dir / "logs" / "job-1-0002.log").exists(), "the job that hung was replaced"
    assert audit(run_dir).ok and held_out() == ["sim-000005.h5"]
    in_the_way.rmdir()
    assert study().run(resume=True).status == "finished"
    assert audit(run_dir).ok and held_out() == ["sim-000004.h5", "sim-000005.h5"]
    attempts = {number: one.attempts for number, one in Ledger(run_dir / "ledger").simulations.items()}
    assert attempts == {**dict.fromkeys(range(6), 1), 4: 2}


@pytest.mark.ray
def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path, ray_here):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system; run as root")
    try:
        run_dir = disk / "run"
        with pytest.raises(StudyError, match="No space left on device") as raised:
            study_here(run_dir, held_out=0).run()
        assert "cannot write the checkpoint" in str(raised.value), "it comes from the trainer's worker"
        assert str(run_dir) in str(raised.value), "the error names the file"
        assert [path.name for path in (run_dir / "generations").iterdir() if path.name.isdigit()] == ["1"]
        require_no_process(run_dir)
        assert all((folder / "state.json").exists() for folder in (run_dir / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_run_directory_of_another_study_is_refused(tmp_path):
    study = Study(reference(), MLP(), run_dir=tmp_path / "run", simulations=4, held_out=1)
    study._prepare(resume=False)
    with pytest.raises(StudyError, match="already holds a study"):
        Study(reference(), MLP(), run_dir=tmp_path / "run")._prepare(resume=False)
    with pytest.raises(StudyError, match="simulations = 4; it cannot go on with 5"):
        Study(reference(), MLP(), run_dir=tmp_path / "run", simulations=5, held_out=1)._prepare(resume=True)
    other = CaseReference.of(DRIVER.parents[2] / "cases" / "heat2d.py")
    with pytest.raises(StudyError, match="another study: its case is 'slow_decay'"):
        Study(other, MLP(), run_dir=tmp_path / "run", simulations=4, held_out=1)._prepare(resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(StudyError, match="not empty and holds no study"):
        Study(reference(), MLP(), run_dir=tmp_path / "full")._prepare(resume=False)
    with pytest.raises(StudyError, match=r"thesis\.tex is a file"):
        Study(reference(), MLP(), run_dir=tmp_path / "full" / "thesis.tex")._prepare(resume=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranks": 100}, "cannot be split over 100 ranks"),
        ({"buffer": "20KB", "batch_size": 32}, "14 too few"),
        ({"batch_size": 1, "workers": 2}, "a batch of 1 windows cannot be dealt to 2 workers"),
        ({"batch_size": 8, "workers": (2, 9)}, "a batch of 8 windows cannot be dealt to 9 workers"),
        ({"workers": 3, "most_workers": 2}, "less than workers"),
        ({"deterministic": True, "durability": "node"}, "leave durability at memory"),
        ({"buffer": "40KB", "shards": 100}, "too few for 100 shards"),
        ({"deterministic": True, "sampler": "breed"}, "sampler breed follows the clock.*take sobol"),
        ({"deterministic": True, "when_full": "skip"}, "when_full skip follows the clock.*take block"),
        ({"deterministic": True, "most_jobs": 3}, "most_jobs follows the clock"),
        ({"deterministic": True, "patience": 3}, "patience follows the clock"),
        ({"deterministic": True, "step_limit": 60.0}, "step_limit follows the clock.*leave it out"),
        ({"deterministic": True, "workers": (1, 2)}, "most_workers follows the clock"),
        ({"deterministic": True, "buffer": "40KB", "batch_size": 30}, "beside 12 steps that wait for their turn"),
        ({"buffer": "many"}, "is not a size"),
        ({"views": -1}, "greater than 0"),
        ({"simulation": 3}, "simulation"),
        ({"simulations": 1, "views": 1.0, "batch_size": 32}, "11 too few for one batch of 32"),
        ({"buffer": "30KB", "batch_size": 8, "jobs": 4, "most_jobs": 30}, "9 too few"),
        ({"buffer_kind": "fifo", "views": 2.0}, "set views to 1"),
        ({"buffer_kind": "lifo"}, "'reservoir', 'fifo' or 'firo'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_starts(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        Study(reference(), MLP(), run_dir=tmp_path / "run", **settings)._prepare(resume=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": "OWN"}, "no-such-program is not on PATH"),
        ({"scheduler": "slurm-steps"}, "No srun on PATH|in no Slurm allocation"),
        ({"when_full": "spool", "spool_folder": "OWN"}, "that is a file, or in one"),
        ({"when_full": "spool", "spool_folder": "OWN/spool"}, "that is a file, or in one"),
    ],
)
def test_what_this_node_lacks_is_said_before_anything_starts(tmp_path, monkeypatch, settings, message):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    slurm = DRIVER.parents[2] / "online_training" / "schedulers" / "slurm.toml"
    (tmp_path / "own.toml").write_text(slurm.read_text().replace('"sbatch"', '"no-such-program"'))
    given = {name: value.replace("OWN", str(tmp_path / "own.toml")) for name, value in settings.items()}
    with pytest.raises(StudyError, match=message):
        Study(reference(), MLP(), run_dir=tmp_path / "run", **given)._prepare(resume=False)
    assert not (tmp_path / "run").exists()


def test_what_this_node_lacks_is_said_where_a_study_goes_on_but_not_where_it_has_ended(tmp_path, monkeypatch):
    from headrace.online_training.ledger import RecordWriter

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    settings = {"run_dir": tmp_path / "run", "simulations": 4, "held_out": 1}
    Study(reference(), MLP(), **settings)._prepare(resume=False)
    for lacking, message in (
        ({"scheduler": "slurm-steps"}, "No srun on PATH|in no Slurm allocation"),
        ({"when_full": "spool", "spool_folder": __file__}, "that is a file, or in one"),
    ):
        with pytest.raises(StudyError, match=message):
            Study(reference(), MLP(), **settings, **lacking)._prepare(resume=True)
    with RecordWriter(tmp_path / "run/ledger/study-1.log") as log:
        log.append({"e": "session", "n": 1})
        log.append({"e": "finished"})
    Study(reference(), MLP(), **settings, scheduler="slurm-steps")._prepare(resume=True)


def test_a_case_that_the_model_refuses_leaves_no_run_directory(tmp_path):
    """It is refused where the model is saved with its case, after the first folders are made."""
    case = CaseReference.of(DRIVER.parents[2] / "cases" / "lorenz.py")
    with pytest.raises(ValueError, match="lorenz starts from random states"):
        Study(case, LPINN(), run_dir=tmp_path / "run", ranks=1)._prepare(resume=False)
    assert not (tmp_path / "run").exists()


def test_a_case_is_taken_from_the_file_that_defines_it(tmp_path, monkeypatch):
    (tmp_path / "a_script_of_a_user.py").write_text("from headrace.cases.heat2d import case\n")
    monkeypatch.syspath_prepend(tmp_path)
    case = importlib.import_module("a_script_of_a_user").case
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["a_script_of_a_user"])
    study = Study(case, MLP(), run_dir=tmp_path / "run")
    assert study.case.file == DRIVER.parents[2] / "cases" / "heat2d.py"


def test_a_buffer_is_chosen_by_what_it_is(tmp_path):
    def chosen(**settings):
        study = Study(reference(), MLP(), run_dir=tmp_path / "run", **settings)
        return [getattr(study.settings, name) for name in ("buffer", "buffer_kind", "watermark", "views")]

    assert chosen(buffer=Reservoir("512MB", watermark=0.2), views=5) == ["512MB", "reservoir", 0.2, 5]
    assert chosen(buffer=FIFO(2**20)) == [str(2**20), "fifo", 0.1, 1]
    with pytest.raises(ValueError, match="set views to 1"):
        chosen(buffer=FIRO("1MB"), views=2)
    with pytest.raises(ValueError, match="'many' is not a size"):
        chosen(buffer=Reservoir("many"))


def test_two_drivers_do_not_run_one_study(tmp_path):
    settings = {"run_dir": tmp_path / "run", "simulations": 4, "held_out": 1}
    study = Study(reference(), MLP(), **settings)
    study._prepare(resume=False)
    with study.directory.locked(), pytest.raises(StudyError, match="Another process runs the study"):
        Study(reference(), MLP(), **settings).run(resume=True)


def test_a_busy_port_and_a_missing_mpirun_are_named_before_anything_starts(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"cannot listen on 127.0.0.1:{port} .*another port or 0"):
            Study(reference(), MLP(), run_dir=tmp_path / "run", port=port)._prepare(resume=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(StudyError, match=r"No mpirun .*headrace\[mpich\]"):
        Study(reference(), MLP(), run_dir=tmp_path / "run")._prepare(resume=False)
    assert not (tmp_path / "run").exists()


def test_the_design_is_written_once_and_survives_a_cut(tmp_path):
    study = Study(reference(), MLP(), run_dir=tmp_path / "run", simulations=4, held_out=2)
    record = study._prepare(resume=False)
    from headrace.online_training.ledger import RecordWriter

    with RecordWriter(tmp_path / "run/ledger/study-1.log") as log:
        study._plan(record, log)
    first = list(read_records(tmp_path / "run/ledger/study-1.log"))
    # The machine died after three records; the next session writes the others, with the same parameters.
    lines = (tmp_path / "run/ledger/study-1.log").read_bytes().splitlines(keepends=True)
    (tmp_path / "run/ledger/study-1.log").write_bytes(b"".join(lines[:3]))
    with RecordWriter(tmp_path / "run/ledger/study-2.log") as log:
        study._plan(record, log)
    assert list(read_records(tmp_path / "run/ledger/study-2.log")) == first[3:]
    assert [record["held_out"] for record in first] == [False] * 4 + [True] * 2
