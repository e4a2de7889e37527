"""The intake: real MPI ranks stream into it, nothing is lost or stored twice, and every fault has its answer."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.client import SLOW, STOP, Connection, Kind, Link, StreamLost, connect
from headrace.online_training.fifo import FIFO
from headrace.online_training.intake import Assignment
from headrace.online_training.ledger import Ledger, RecordWriter, read_records
from tests.mpi_run import mpirun, run_mpi
from tests.online_training.intake_setup import (
    MPI_PROGRAM,
    PATIENCE,
    STUDY,
    TOKEN,
    TrainerDouble,
    field_of,
    make_layout,
    plan,
    records_of,
    running_intake,
    send_all,
    solver_environment,
    wait_until,
)
from tests.online_training.raw_link import next_of, request, solver_link


def run_job(intake, ranks: int, *, job: str = "1-0001", **settings: object) -> list[dict]:
    """Run mpi_stream.py and return what each rank reported."""
    layout = intake.settings.layout
    values = {"shape": layout.shape, "fields": layout.fields, "steps": layout.num_steps, **settings}
    environment = {**intake.environment, "HEADRACE_JOB": job}
    done = run_mpi(ranks, [MPI_PROGRAM, json.dumps(values)], env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def start_job(intake, ranks: int, *, job: str = "1-0001", **settings: object) -> subprocess.Popen:
    layout = intake.settings.layout
    values = {"shape": layout.shape, "fields": layout.fields, "steps": layout.num_steps, **settings}
    version = subprocess.run([mpirun(), "--version"], capture_output=True, text=True, check=False).stdout
    extra = ["--allow-run-as-root", "--oversubscribe"] if "Open MPI" in version else []
    return subprocess.Popen(
        [mpirun(), *extra, "-n", str(ranks), sys.executable, MPI_PROGRAM, json.dumps(values)],
        env=solver_environment(intake, HEADRACE_JOB=job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


# What ranks do does not depend on which socket carries the frames; starting them costs 2 s of a core each time.
by_ring_and_frames = pytest.mark.parametrize("study", ["shm", "tcp"], indirect=True)


# -- real ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize(("ranks", "cut"), [(4, [2, 2]), (4, [4, 1])])
def test_blocks_of_unequal_size_and_two_fields_are_put_together(study, tmp_path: Path, ranks: int, cut: list) -> None:
    layout = make_layout(fields=("u", "v"))
    intake = study(layout)
    plan(intake, 2)
    reports = run_job(intake, ranks, cut=cut)
    buffer, array = intake.settings.buffer, intake.settings.memory.array
    for simulation in range(2):
        for step in range(layout.num_steps):
            for field in range(2):
                expected = field_of(simulation, step, layout.shape, field).astype(np.float32)
                assert np.array_equal(array[buffer.slots[simulation, step], field], expected)
    status = intake.status()
    assert status["bytes_received"] == sum(r["bytes"] for r in reports) == 2 * layout.num_steps * layout.step_bytes
    assert status["done"] == 2 and status["rejected"] == {} and status["duplicates"] == 0
    assert all(r["seen"] == [[0, 1, 0.5], [1, 1, 1.5]] for r in reports), "all ranks run the same simulations"
    intake.close()
    sent = {json.dumps(r) for p in (tmp_path / "ledger").glob("solver-*") for r in read_records(p) if r["e"] == "block"}
    received = {json.dumps(r) for r in records_of(tmp_path, "block")}
    assert sent == received and len(sent) == 2 * layout.num_steps * ranks, "small fields travel together"


@pytest.mark.mpi
@by_ring_and_frames
@pytest.mark.parametrize(("slots", "pause"), [(20, 0.02), (400, 0.0)], ids=["slow", "quick"])
def test_the_word_stop_is_the_same_on_all_ranks(study, slots: int, pause: float) -> None:
    """Also where many steps are on their way and acknowledged together."""
    # Nobody draws: it cannot end before it is stopped.
    intake = study(make_layout(num_steps=3 * slots), slots=slots)
    plan(intake, 5)
    job = start_job(intake, 4, cut=[2, 2], pause=pause)
    wait_until(lambda: intake.status()["steps_accepted"] > slots // 4)
    intake.request_stop()
    out, errors = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, errors
    words = [json.loads(line)["words"] for line in out.splitlines() if line.startswith("{")]
    assert len(words) == 4 and all(w == words[0] for w in words)
    assert len(words[0]) == 1 and words[0][0][-1] == STOP and len(words[0][0]) < 3 * slots
    assert wait_until(lambda: intake.status()["ended"])


@pytest.mark.mpi
@by_ring_and_frames
def test_a_killed_rank_costs_one_attempt(study, tmp_path: Path) -> None:
    layout = make_layout()
    intake = study(layout)
    plan(intake, 2)
    job = start_job(intake, 2, cut=[2, 1], crash=[1, 1, 3])
    job.communicate(timeout=PATIENCE)
    assert job.returncode != 0
    assert intake.job_ended("1-0001", job.returncode) == [1]
    reports = run_job(intake, 2, cut=[2, 1], job="1-0002")
    assert [r["seen"] for r in reports] == [[[1, 2, 1.5]]] * 2
    status = intake.status()
    assert status["done"] == 2 and status["lost"] == 1 and status["steps_accepted"] == 2 * layout.num_steps
    intake.close()
    steps = [(r["s"], r["t"]) for r in records_of(tmp_path, "step")]
    assert sorted(steps) == [(s, t) for s in range(2) for t in range(layout.num_steps)], "each step once"
    assert [(r["s"], r["a"]) for r in records_of(tmp_path, "lost")] == [(1, 1)]


@pytest.mark.mpi
@by_ring_and_frames
def test_nan_puts_a_simulation_into_quarantine_and_the_job_goes_on(study, tmp_path: Path) -> None:
    intake = study()
    plan(intake, 3)
    reports = run_job(intake, 2, cut=[1, 2], nan=[1, 2])
    status = intake.status()
    (entry,) = status["quarantined"]
    assert entry["simulation"] == 1 and entry["parameters"] == {"nu": 1.5}
    assert "NaN or infinity in field u, block at [0, 3], step 2" in entry["reason"]
    assert status["done"] == 2
    assert reports[0]["words"] == reports[1]["words"]
    assert reports[0]["words"][1][-1] == STOP and len(reports[0]["words"][1]) == 4, "effective one step later"
    assert not any(key[0] == 1 and key[1] >= 2 for key in intake.settings.buffer.slots), "the rest is not stored"
    assert [(r["s"], r["t"]) for r in records_of(tmp_path, "quarantined")] == [(1, 2)]


@pytest.mark.mpi
@by_ring_and_frames
def test_a_restarted_intake_is_joined_by_the_ranks_that_live(study, tmp_path: Path) -> None:
    layout = make_layout(num_steps=30)
    first = study(layout, slots=20)  # nobody draws: the simulation cannot end before its intake is gone
    plan(first, 1)
    job = start_job(first, 2, cut=[2, 1], pause=0.02)
    wait_until(lambda: first.status()["steps_accepted"] > 3)
    port = int(first.addresses.rsplit(":", 1)[1])
    first.close()
    second = study(layout, slots=80, session=2, port=port)
    second.plan([Assignment(simulation=0, parameters={"nu": 0.5}, attempt=2)])
    second.all_planned()
    out, errors = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, errors
    reports = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    for report in reports:
        assert report["seen"] == [[0, 1, 0.5], [0, 2, 0.5]] and report["lost"] == [True, False]
    status = second.status()
    assert status["done"] == 1 and status["steps_accepted"] == 30


# -- one process -----------------------------------------------------------------------------------------------------


def test_a_full_reservoir_blocks_the_solver_and_loses_nothing(study) -> None:
    layout = make_layout(num_steps=20, window=1)
    intake = study(layout, slots=5)
    plan(intake, 2)
    sent: list[int] = []

    def solve() -> None:
        with Connection({"u": layout.shape}) as connection:
            for stream in connection.simulations():
                with stream:
                    for step in range(layout.num_steps):
                        values = field_of(stream.simulation, step, layout.shape)[None]
                        stream.send(step=step, time=0.1 * step, values=values)
                        sent.append(step)

    solver = threading.Thread(target=solve)
    solver.start()
    wait_until(lambda: intake.status()["population"] == len(sent) == 5)
    time.sleep(0.2)
    assert len(sent) == 5, "no credit beyond the reservoir's slots"
    trainer = TrainerDouble(intake)
    array, seen = intake.settings.memory.array, []
    while (records := trainer.draw(len(seen) // 4)) is not None:
        for record in records:
            expected = field_of(record["simulation"], record["start"], layout.shape).astype(np.float32)
            assert np.array_equal(array[record["slots"][0], 0], expected)
            assert record["times"][0] == 0.1 * record["start"] and record["parameters"][0] == record["simulation"] + 0.5
            seen.append((int(record["simulation"]), int(record["start"])))
        trainer.release(records)
    trainer.close()
    solver.join()
    assert sorted(seen) == [(s, t) for s in range(2) for t in range(20)]
    status = intake.status()
    assert status["blocked_seconds"] > 0 and status["ended"] and status["starts_used"] == 40


@pytest.mark.mpi
@by_ring_and_frames
def test_solvers_that_outrun_the_trainer_hear_slow_on_all_ranks_at_the_same_step(study) -> None:
    """Five slots, windows of one step, nobody draws: step 4 is the last one with room, and its word says so."""
    layout = make_layout(num_steps=20, window=1)
    intake = study(layout, slots=5)
    plan(intake, 1)
    job = start_job(intake, 2, cut=[2, 1])
    wait_until(lambda: intake.status()["population"] == 5)
    trainer = TrainerDouble(intake)
    trainer.drain(batch=1)
    trainer.close()
    out, _ = job.communicate(timeout=PATIENCE)
    first, second = (json.loads(line)["words"][0] for line in out.splitlines() if line.startswith("{"))
    assert first == second, "decided once for all ranks"
    assert first[:5] == [0] * 5 and first[5] == SLOW, "send(step=k) returns the word of step k-1"
    assert STOP not in first and len(first) == 20


def test_admission_waits_until_the_smallest_window_fits(study) -> None:
    intake = study(make_layout(window=3, num_steps=4), slots=5)
    plan(intake, 2)
    links = [solver_link(intake, f"1-000{i}") for i in range(2)]
    first = request(links[0])
    assert first.kind == Kind.ASSIGN
    second = request(links[1], timeout=0.3)
    assert second is None, "3 of 5 slots are the first one's"
    links[0].send(Kind.END, {"reason": "no"}, simulation=0, attempt=1, value=1)
    header, _ = links[1].receive(PATIENCE)
    assert (header.kind, header.simulation) == (Kind.ASSIGN, 1)
    for link in links:
        link.close()


def test_held_out_simulations_are_written_and_not_trained_on(study) -> None:
    written = {}

    def write(simulation, parameters, times, states) -> None:
        time.sleep(0.05)
        written[simulation] = (dict(parameters), times, states)

    intake = study(write_held_out=write)
    plan(intake, 2, held_out=True)
    with Connection({"u": (7, 5)}) as connection:
        for stream in connection.simulations():
            with stream:
                send_all(stream, (7, 5), range(6))
    assert wait_until(lambda: intake.status()["done"] == 2)
    for simulation in range(2):
        parameters, times, states = written[simulation]
        assert parameters == {"nu": simulation + 0.5} and np.allclose(times, 0.1 * np.arange(6), atol=0)
        assert np.array_equal(states[:, 0], [field_of(simulation, t, (7, 5)).astype(np.float32) for t in range(6)])
    assert intake.status()["windows_accepted"] == 0


def test_a_held_out_file_that_cannot_be_written_is_reported_and_made_by_the_next_session(study, tmp_path) -> None:
    def write(*_) -> None:
        raise OSError(28, "No space left on device", "held_out/sim-000000.h5")

    intake = study(write_held_out=write)
    with RecordWriter(tmp_path / "ledger" / "study-1.log") as log:
        log.append({"e": "planned", "s": 0, "held_out": True, "parameters": {"nu": 0.5}, "seed": 0})
    plan(intake, 1, held_out=True)
    with connect({"u": (7, 5)}) as stream:
        send_all(stream, (7, 5), range(6))
    (entry,) = wait_until(lambda: intake.status()["quarantined"])
    assert "could not be written: [Errno 28] No space left on device: 'held_out/sim-000000.h5'" in entry["reason"]
    ledger = wait_until(lambda: (now := Ledger(tmp_path / "ledger")).lacking_files and now)
    (again,) = ledger.assignments()
    assert (again.simulation, again.attempt, again.held_out) == (0, 2, True)
    assert ledger.simulations[0].log[1].reason == entry["reason"]


def test_a_short_simulation_is_done_with_the_windows_it_has(study) -> None:
    intake = study()
    plan(intake, 1)
    with connect({"u": (7, 5)}) as stream:
        send_all(stream, (7, 5), range(3))
    status = intake.status()
    assert status["done"] == 1 and status["short"] == 1 and status["windows_accepted"] == 2
    trainer = TrainerDouble(intake)
    assert [len(records) for records in trainer.drain()] == [2]
    trainer.close()


def test_simulations_that_give_no_window_end_the_study_with_what_to_change(study) -> None:
    intake = study(make_layout(window=4), max_failures=2)
    plan(intake, 6)
    with Connection({"u": (7, 5)}) as connection:
        for _, stream in zip(range(2), connection.simulations(), strict=False):
            assert intake.status()["fatal"] == ""
            with stream:
                send_all(stream, (7, 5), range(3))
    message = "2 simulations ended in order but gave no window.* after 3 of 6 steps, and a window has 4. Let the solver"
    assert re.match(message, intake.status()["fatal"])


# -- steps left out where there is no room ---------------------------------------------------------------------------


def make_skipping(study, slots: int = 8, window: int = 2, num_steps: int = 40):
    """An intake with a real FIFO whose solvers leave steps out."""
    layout = make_layout(num_steps=num_steps, window=window)
    return study(layout, slots=slots, buffer=FIFO(slots, window), when_full="skip")


@pytest.mark.mpi
@by_ring_and_frames
def test_all_ranks_leave_out_the_same_steps_and_never_wait(study, tmp_path: Path) -> None:
    intake = make_skipping(study)
    plan(intake, 1)
    first, second = run_job(intake, 2, cut=[1, 2])
    # Without a trainer the reservoir stays full: the first steps are all that there is room for.
    status = intake.status()
    assert status["done"] == 1 and status["rejected"] == {}
    assert first["words"] == second["words"] == [[0] * 40]
    assert first["skipped"] == second["skipped"] == 40 - status["steps_accepted"] == status["steps_skipped"] > 30


def test_windows_never_reach_over_a_gap(study, tmp_path: Path) -> None:
    intake = make_skipping(study)
    plan(intake, 1)
    trainer = TrainerDouble(intake)
    array, seen = intake.settings.memory.array, []

    def use(index: int) -> None:
        records = trainer.draw(index, 3)
        for record in records:
            for place, slot in enumerate(record["slots"]):
                step = int(record["start"]) + place
                assert np.array_equal(array[slot, 0], field_of(0, step, (7, 5)).astype(np.float32))
            seen.append(int(record["start"]))
        trainer.release(records)

    with connect({"u": (7, 5)}) as stream:
        send_all(stream, (7, 5), range(12))
        assert 0 < stream.steps_skipped < 12
        use(0)
        use(1)
        wait_until(lambda: intake.status()["unreleased"] == 0)
        send_all(stream, (7, 5), range(12, 40))
        skipped = stream.steps_skipped
    index = 2
    while (records := trainer.draw(index, 3)) is not None:
        seen += records["start"].tolist()
        trainer.release(records)
        index += 1
    trainer.close()
    status = intake.status()
    assert status["steps_skipped"] == skipped and status["steps_accepted"] == 40 - skipped
    intake.close()
    accepted = {r["t"] for r in records_of(tmp_path, "step")}
    assert max(accepted) > 12, "when there is room again, steps are sent again"
    assert sorted(seen) == [s for s in range(39) if {s, s + 1} <= accepted], "every whole window once, no other"
    assert status["windows_accepted"] == len(seen)


def test_a_step_that_was_not_to_be_left_out_is_named(study) -> None:
    intake = make_skipping(study)
    plan(intake, 1)
    link = solver_link(intake, "1-0001")
    request(link)
    link.send(Kind.SKIP, simulation=0, attempt=1, step=0, num_blocks=1)
    assert wait_until(lambda: intake.status()["rejected"]) == {"skip": 1}
    link.close()


def test_what_to_do_when_full_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="when_full is 'wait'; it must be 'block', 'skip' or 'spool'"):
        with running_intake(tmp_path, make_layout(), when_full="wait"):
            pass


# -- faults ----------------------------------------------------------------------------------------------------------


def test_a_busy_port_is_named(study, tmp_path: Path) -> None:
    intake = study()
    port = int(intake.addresses.rsplit(":", 1)[1])
    with (
        pytest.raises(RuntimeError, match=f"Port {port} on 127.0.0.1 is in use. Choose another port, or 0"),
        running_intake(tmp_path, make_layout(), session=2, port=port),
    ):
        pass


def test_an_interface_of_another_machine_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"cannot listen on 192\.0\.2\.1:0"),
        running_intake(tmp_path, make_layout(), interface="192.0.2.1"),
    ):
        pass


@by_ring_and_frames
def test_a_rank_that_falls_silent_is_forgotten_and_its_simulation_runs_again(study) -> None:
    intake = study(lease=2.0)
    plan(intake, 1)
    program = "import time\nfrom headrace.online_training.client import connect\nconnect({'u': (7, 5)})\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], env=solver_environment(intake))
    try:
        wait_until(lambda: intake.status()["running"] == 1)
        os.kill(process.pid, signal.SIGSTOP)
        status = wait_until(lambda: (s := intake.status())["peers"] == 0 and s)
        assert status["queued"] == 1 and status["lost"] == 1
    finally:
        process.kill()
        process.wait()


def test_a_lost_stream_is_computed_to_its_end_and_then_says_so(study) -> None:
    """Leaving the time loop on one rank alone would leave the others waiting inside MPI."""
    intake = study()
    plan(intake, 1)
    with pytest.raises(StreamLost, match="Simulation 0 was not kept"), connect({"u": (7, 5)}) as stream:
        send_all(stream, (7, 5), range(2))
        intake.close()
        send_all(stream, (7, 5), range(2, 6))


def test_a_full_disk_stops_the_intake_with_the_reason(study, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = study()

    def flush() -> None:
        raise OSError(28, "No space left on device", "ledger/intake-1.log")

    monkeypatch.setattr(intake._ledger, "flush", flush)
    assert "No space left on device: 'ledger/intake-1.log'" in wait_until(lambda: intake.status()["error"])


def test_an_encrypted_intake_serves_those_who_know_the_token_and_nobody_else(tmp_path):
    layout = make_layout()
    with running_intake(tmp_path, layout, encrypt=True) as intake:
        assert intake.addresses.startswith("curve+tcp://") and "ipc" not in intake.addresses
        plan(intake, 1)
        trainer = TrainerDouble(intake)
        run_job(intake, 2, cut=[2, 1], mode="all")
        assert sum(map(len, trainer.drain())) == layout.num_starts
        trainer.close()
        plain = intake.addresses.removeprefix("curve+")
        for address, token in ((plain, TOKEN), (intake.addresses, bytes(32))):
            link = Link(address, token, STUDY, hello={"role": "trainer", "job": "t", "rank": 0, "ranks": 1}, lease=0.5)
            with pytest.raises(ConnectionError, match="No intake answered"):
                link.join()
            link.close()
        assert intake.status()["rejected"] == {}, "nothing of theirs came as far as our own checks"


def test_the_number_of_running_simulations_is_lowered_and_raised(study) -> None:
    """Two jobs that ask: the second waits until two may run; neither is cut off when it is one again."""
    intake = study(make_layout(), max_running=2)
    plan(intake, 4)
    intake.limit_running(1)
    links = [solver_link(intake, f"1-000{i}") for i in range(2)]
    try:
        first = request(links[0])
        assert first is not None and first.simulation == 0
        assert request(links[1], timeout=0.3) is None, "one at a time"
        intake.limit_running(2)
        second = next_of(links[1], Kind.ASSIGN)
        assert second is not None and second.simulation == 1
        intake.limit_running(1)
        assert intake.status()["running"] == 2 and intake.status()["running_limit"] == 1
        with pytest.raises(ValueError, match="made for 1 to 2"):
            intake.limit_running(3)
    finally:
        for link in links:
            link.close()
