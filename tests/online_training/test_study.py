"""Whole studies with real ranks and Ray, while processes of theirs are killed."""

import contextlib
import importlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from headrace.online_training import FIFO, FIRO, Reservoir
from headrace.online_training.audit import audit
from headrace.online_training.ledger import Ledger, intake_records, read_records
from headrace.online_training.metrics_log import last_record, read_metrics
from headrace.online_training.run_directory import RunDirectory, StudyError
from headrace.online_training.study import Study
from headrace.solvers.case_file import CaseReference
from headrace.surrogates import MLP, load_surrogate

pytestmark = [pytest.mark.ray, pytest.mark.mpi, pytest.mark.timeout(1200)]

DRIVER = Path(__file__).with_name("study_driver.py")


# Room for three of the driver's simulations: while the trainer starts, the others wait on disk.
SPOOLING = {"buffer": "64KiB", "when_full": "spool", "spool": "4MB"}


class Driver:
    """A study in a process of its own; if held, its trainer takes its time until `release`."""

    def __init__(
        self, run_dir: Path, model: str, how: str, *, log_folder: Path | None = None, held: bool = False,
        **settings: object,
    ) -> None:  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.run_dir, self._hold = run_dir, run_dir.with_name(f"{run_dir.name}.hold")
        environment["HEADRACE_TEST_HOLD"] = str(self._hold)
        if held:
            self._hold.touch()
        self.output = open((log_folder or run_dir.parent) / f"driver-{time.monotonic_ns()}.log", "w+")
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(run_dir), model, how, json.dumps(settings)],
            stdout=self.output, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip

    def wait_until(self, condition, seconds=300.0):
        """Wait for a condition while the driver lives."""
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, f"the driver ended early:\n{self.text()}"
            assert time.monotonic() < deadline, f"not in time; the driver said:\n{self.text()}"
            time.sleep(0.05)
        return value

    def release(self) -> None:
        """Let the trainer go as fast as it can."""
        self._hold.unlink()

    def text(self) -> str:
        self.output.flush()
        return Path(self.output.name).read_text()

    def finish(self, seconds=500.0) -> str:
        self.process.wait(seconds)
        return self.text()

    def processes(self, word: str) -> list[psutil.Process]:
        """Processes of this run, apart from the driver, with a word in their command line."""
        return [process for process in left_over(self.run_dir, self.process.pid) if word in command_of(process)]

    def kill(self, word: str) -> int:
        """SIGKILL one process and return its id."""
        victim = self.wait_until(lambda: self.processes(word))[0]
        victim.kill()
        return victim.pid


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def left_over(run_dir: Path, driver: int = -1) -> list[psutil.Process]:
    """Processes that carry the run directory in their environment: everything that a study starts inherits it."""
    found = []
    for process in psutil.process_iter():
        try:
            named = any(str(run_dir) in value for value in process.environ().values())
            if named and process.pid not in (driver, os.getpid()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def steps_of(run_dir: Path) -> int:
    record = last_record(run_dir / "intake.jsonl")
    return record["steps_accepted"] if record else 0


def batches_of(run_dir: Path) -> int:
    record = last_record(run_dir / "metrics.jsonl")
    return record["batch"] if record else 0


def require_clean(run_dir: Path, simulations: int = 33) -> dict[str, int]:
    report = audit(run_dir)
    assert report.ok, report.lines
    counts = report.counts
    accounted = counts["steps accepted"] + counts["steps of simulations in quarantine"]
    assert counts["steps planned"] == accounted == simulations * 21
    assert counts["double"] == 0
    return counts


def require_no_process(run_dir: Path, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while remaining := left_over(run_dir):
        assert time.monotonic() < deadline, [command_of(process) for process in remaining]
        time.sleep(0.2)


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
    files = [path for folder in (driver.run_dir, ray_folder) for path in folder.rglob("*") if path.is_file()]
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


def test_a_study_survives_the_death_of_a_rank_and_of_its_trainer_behind_its_token(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    driver = Driver(run_dir, "mlp", "new", held=True)
    driver.wait_until(lambda: steps_of(run_dir) > 10)
    # A validator that stands still keeps nobody from sending and receiving.
    validator = driver.wait_until(lambda: driver.processes("training.validator"))[0]
    validator.suspend()
    steps = steps_of(run_dir)
    driver.wait_until(lambda: steps_of(run_dir) >= steps + 42)
    validator.resume()
    assert {rank.environ()["OMP_NUM_THREADS"] for rank in driver.processes("solver_job")} == {"3"}
    driver.kill("solver_job")
    driver.wait_until(lambda: batches_of(run_dir) > 5 and list((run_dir / "checkpoints").iterdir()))
    require_guarded(driver)
    driver.kill("RayTrainWorker")
    driver.release()
    text = driver.finish()
    assert driver.process.returncode == 0 and "status finished" in text, text

    counts = require_clean(run_dir)
    history = Ledger(run_dir / "ledger").simulations
    assert max(one.attempts for one in history.values()) == 2, "the killed rank's simulation was run again"
    bad = {number for number, one in history.items() if one.parameters["x0"] > 0.66}
    assert bad and {n for n, one in history.items() if one.quarantine is not None} == bad, "and nothing else"
    assert counts["steps of simulations in quarantine"] == 21 * len(bad)
    assert {record["generation"] for record in read_metrics(run_dir / "metrics.jsonl")} >= {1, 2}
    surrogate = RunDirectory(run_dir).load_model(run_dir)
    assert type(surrogate).__name__ == "OwnMLP" and surrogate.problem.case == "slow_decay"
    with pytest.raises(ValueError, match="Give your own class"):
        load_surrogate(run_dir)
    require_no_process(run_dir)


def test_a_killed_driver_and_ctrl_c_are_resumed(tmp_path):
    run_dir = tmp_path / "run"
    driver = Driver(run_dir, "fno", "new", held=True, **SPOOLING)
    driver.wait_until(lambda: (last_record(run_dir / "intake.jsonl") or {}).get("waiting_in_spool", 0) > 20)
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    require_no_process(run_dir)

    driver = Driver(run_dir, "fno", "resume", **SPOOLING)
    driver.wait_until(lambda: (run_dir / "ledger" / "intake-2.log").exists())
    driver.process.send_signal(signal.SIGTERM)
    assert "status stopped" in driver.finish(), "also before the trainer is up"
    assert not list((run_dir / "ledger").glob("trainer-2-*")), "and without waiting for it"
    require_no_process(run_dir)

    driver = Driver(run_dir, "fno", "resume", **SPOOLING)
    driver.wait_until(lambda: batches_of(run_dir) > 3)
    driver.process.send_signal(signal.SIGINT)
    assert "status stopped" in driver.finish()
    assert driver.process.returncode == 0
    driver.release()
    stopped_at = batches_of(run_dir)
    require_no_process(run_dir)

    driver = Driver(run_dir, "fno", "resume", **SPOOLING)
    text = driver.finish()
    assert driver.process.returncode == 0 and "status finished" in text, text
    assert batches_of(run_dir) > stopped_at, "training went on from the checkpoint"
    counts = require_clean(run_dir)
    assert counts["steps lost before use and run again"] > 0
    assert any(record["e"] == "spooled" for record in intake_records(run_dir / "ledger")), "the spool was of use"
    assert not list((run_dir / "spool").iterdir()), "and is empty"
    with sqlite3.connect(run_dir / "ledger" / "index.sqlite") as index:
        assert index.execute("SELECT status FROM sessions ORDER BY session").fetchall()[-1] == ("finished",)
    require_no_process(run_dir)

    again = Driver(run_dir, "fno", "resume", **SPOOLING).finish()
    assert text.splitlines()[-1] == again.splitlines()[-1], "a finished study only repeats its result"


def test_a_stop_while_ray_starts_is_heard(tmp_path):
    run_dir = tmp_path / "run"
    driver = Driver(run_dir, "mlp", "new")
    driver.wait_until((run_dir / "secrets" / "ray-folder").exists)  # written just before Ray's processes are started
    driver.process.send_signal(signal.SIGTERM)
    text = driver.finish()
    assert driver.process.returncode == 0 and "status stopped" in text, text
    assert not list((run_dir / "ledger").iterdir()), "no session was begun"
    require_no_process(run_dir)


def test_a_killed_intake_is_replaced_and_what_was_acknowledged_is_kept(tmp_path):
    run_dir = tmp_path / "run"
    driver = Driver(run_dir, "mlp", "new", held=True, durability="node", held_out=1, simulations=14, views=20.0)
    driver.wait_until(lambda: steps_of(run_dir) > 60 and batches_of(run_dir) > 5)
    driver.kill("IntakeActor")
    driver.release()
    text = driver.finish()
    assert driver.process.returncode == 0 and "status finished" in text, text
    counts = require_clean(run_dir, simulations=15)
    assert counts["steps kept for a later session"] > 0 and counts["steps lost before use and run again"] == 0
    assert not list(Path("/dev/shm").glob(f"headrace-kept-{RunDirectory(run_dir).read().study:016x}"))
    require_no_process(run_dir)


def test_a_deterministic_run_has_the_same_bits_killed_and_resumed_or_not(tmp_path):
    what = {"deterministic": True, "simulations": 8, "held_out": 1, "ranks": 1, "jobs": 2, "views": 6.0}
    what["buffer"] = "60KB"  # a third of all steps
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    driver = Driver(whole, "mlp", "new", **what)
    text = driver.finish()
    assert driver.process.returncode == 0 and "status finished" in text, text

    driver = Driver(parts, "mlp", "new", held=True, **what)
    driver.wait_until(lambda: batches_of(parts) > 20 and list((parts / "checkpoints").iterdir()))
    driver.process.send_signal(signal.SIGKILL)
    driver.process.wait()
    require_no_process(parts)
    stopped_at = batches_of(parts)
    driver = Driver(parts, "mlp", "resume", **what)
    driver.wait_until(lambda: batches_of(parts) > stopped_at + 20)
    driver.kill("RayTrainWorker")
    driver.release()
    text = driver.finish()
    assert driver.process.returncode == 0 and "status finished" in text, text

    assert len(list((parts / "ledger").glob("study-*.log"))) == 3, "driver and trainer were killed in time"
    one, two = (last_record(run / "metrics.jsonl") for run in (whole, parts))
    assert (one["batch"], one["windows"]) == (two["batch"], two["windows"])
    assert (whole / "model" / "model.safetensors").read_bytes() == (parts / "model" / "model.safetensors").read_bytes()
    assert audit(parts).ok, audit(parts).lines
    require_no_process(parts)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small file system; run as root")
    try:
        run_dir = disk / "run"
        driver = Driver(run_dir, "mlp", "new", log_folder=tmp_path)
        text = driver.finish()
        assert driver.process.returncode == 1 and "No space left on device" in text, text
        assert "StudyError" in text and str(run_dir) in text, "the error names the file"
        require_no_process(run_dir)
        assert all((folder / "state.json").exists() for folder in (run_dir / "checkpoints").iterdir())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def reference() -> CaseReference:
    return CaseReference.of(DRIVER, "case")


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
