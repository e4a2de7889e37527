"""What an acknowledgement promises: an intake is killed with SIGKILL, and the next one says what is left."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.client import STOP, Connection, read_token
from headrace.online_training.intake_actor import build_intake
from headrace.online_training.ledger import Ledger, RecordWriter
from headrace.online_training.run_directory import RunDirectory
from headrace.online_training.slot_memory import SHARED_MEMORY, SlotMemory, kept_path
from headrace.online_training.study import Study
from headrace.solvers.case_file import CaseReference
from headrace.surrogates import MLP

from . import intake_setup
from .intake_setup import TrainerDouble, field_of, running_intake, use_environment, wait_until

SHAPE, STEPS = (16, 16), 21
PROGRAM = str(Path(__file__).with_name("intake_process.py"))


@pytest.fixture
def prepared(tmp_path):
    """A function that makes the run directory of a study of three simulations; its shared memory goes afterwards."""
    made = []

    def prepare(**settings) -> RunDirectory:
        reference = CaseReference.of(Path(__file__).with_name("study_driver.py"), "case")
        study = Study(
            reference, MLP(), run_dir=tmp_path / "run", simulations=3, held_out=0, batch_size=4, views=3.0, **settings
        )  # fmt: skip
        record = study._prepare(resume=False)
        with RecordWriter(study.directory.ledger / "study-1.log") as log:
            study._plan(record, log)
        made.append(record.study)
        return study.directory

    yield prepare
    for study in made:
        for path in SHARED_MEMORY.glob(f"headrace-*{study:016x}"):
            path.unlink()


@pytest.fixture
def joined(monkeypatch):
    """A function that connects to a study; a connection left open would end this process when its lease runs out."""
    connections = []

    def join(directory: RunDirectory, address: str, job: str) -> Connection:
        values = {"ADDRESS": address, "TOKEN_FILE": directory.token_file, "STUDY": f"{directory.read().study:016x}",
                  "JOB": job, "LEASE": 600}  # fmt: skip
        for name, value in values.items():
            monkeypatch.setenv(f"HEADRACE_{name}", str(value))
        connections.append(Connection({"u": SHAPE}))
        return connections[-1]

    yield join
    for connection in connections:
        connection.link._shut()  # what is still to be said to a killed intake is not waited for
        connection.link.close()


@contextmanager
def killed_intake(directory: RunDirectory):
    """An intake in a process of its own that is killed at the end of the block."""
    process = subprocess.Popen([sys.executable, PROGRAM, str(directory.path)], stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def send(stream, steps: range) -> None:
    for step in steps:
        assert stream.send(step=step, time=step / 20, values=field_of(stream.simulation, step, SHAPE)[None]) != STOP


def acknowledged(directory: RunDirectory) -> dict[int, int]:
    return {number: len(one.accepted) for number, one in Ledger(directory.ledger).simulations.items()}


@pytest.mark.parametrize("durability", ["memory", "node", "disk"])
def test_a_killed_intake_loses_what_was_not_promised_and_nothing_else(
    prepared, joined, monkeypatch, durability
) -> None:
    directory = prepared(durability=durability)
    with killed_intake(directory) as address:
        connection = joined(directory, address, "1-0001")
        simulations = connection.simulations()
        with next(simulations) as stream:
            send(stream, range(STEPS))
        stream = next(simulations)
        stream.__enter__()
        send(stream, range(10))  # step 8 is acknowledged for sure, step 9 may be on its way
        wait_until(lambda: durability == "memory" or acknowledged(directory)[1] == 10)
    # The trainer had used some windows, as its own log says.
    with RecordWriter(directory.ledger / "trainer-1-1-0.log") as log:
        for start in (0, 1, 2, 7):
            log.append({"e": "used", "s": 0, "t": start, "k": 1, "h": [0], "n": 1})
    study = directory.read().study
    assert (directory.path / "reservoir").exists() == (durability == "disk")
    assert kept_path(study, directory.path, "node").exists() == (durability == "node")

    intake = build_intake(directory, session=2)
    try:
        status = intake.status()
        if durability == "memory":
            assert (status["steps_recovered"], status["queued"], status["done"]) == (0, 3, 0)
            return
        assert (status["steps_recovered"], status["queued"], status["done"]) == (STEPS - 4 + 10, 2, 1)
        intake.start()
        connection = joined(directory, intake.addresses, "2-0001")
        for stream in connection.simulations():
            with stream:
                send(stream, range(STEPS))
        status = wait_until(lambda: (now := intake.status())["done"] == 3 and now)
        assert status["steps_accepted"] == 2 * STEPS - 10, "what was kept is not stored again"
        monkeypatch.setattr(intake_setup, "STUDY", study)
        monkeypatch.setattr(intake_setup, "TOKEN", read_token(directory.token_file))
        trainer = TrainerDouble(intake, generation=1)
        memory = SlotMemory.attach(trainer.welcome["path"], intake._settings.layout, trainer.welcome["num_slots"])
        firsts = []
        for records in drained(trainer, memory.array):
            firsts += [(int(r["simulation"]), int(r["start"])) for r in records if r["first"]]
        everything = {(simulation, step) for simulation in range(3) for step in range(STEPS)}
        assert set(firsts) == everything - {(0, 0), (0, 1), (0, 2), (0, 7)} and len(firsts) == len(set(firsts))
        trainer.close()
        memory.close()
    finally:
        intake.close()
    again = {r for r, one in Ledger(directory.ledger).simulations.items() if len(one.log) > 1}
    assert again == {1}, "a simulation that was complete is not run again"


def drained(trainer: TrainerDouble, slots: np.ndarray):
    """Every batch, with its content checked."""
    for index in range(10**6):
        if (records := trainer.draw(index)) is None:
            return
        for record in records:
            expected = field_of(int(record["simulation"]), int(record["start"]), SHAPE)
            assert np.array_equal(slots[record["slots"][0], 0], expected.astype("f4"))
            assert record["times"][0] == int(record["start"]) / 20
        yield records
        trainer.release(records)


@pytest.mark.parametrize("durability", ["node", "disk"])
def test_a_step_is_durable_before_it_is_acknowledged(tmp_path, monkeypatch, durability) -> None:
    happened = []
    layout = intake_setup.make_layout()
    memory = SlotMemory.keep(tmp_path / "reservoir", layout, 64)
    with running_intake(tmp_path, layout, memory=memory, durability=durability) as intake:
        for place, name in ((intake._ledger, "sync"), (intake._ledger, "flush"), (memory, "sync")):
            monkeypatch.setattr(place, name, noted(happened, place, name))
        monkeypatch.setattr(intake._solvers, "_tell_job", noted(happened, intake._solvers, "_tell_job"))
        intake_setup.plan(intake, 1)
        use_environment(intake, monkeypatch)
        with Connection({"u": layout.shape}) as connection, next(connection.simulations()) as stream:
            stream.send(step=0, time=0.0, values=field_of(0, 0, layout.shape)[None])
            wait_until(lambda: "_tell_job ACK" in happened)
    before = happened[: happened.index("_tell_job ACK")]
    wanted = ["SlotMemory sync", "RecordWriter sync"] if durability == "disk" else ["RecordWriter flush"]
    assert before[-len(wanted) :] == wanted


def noted(happened: list, place, name: str):
    plain = getattr(place, name)

    def call(*arguments, **fields):
        kind = f" {arguments[1].name}" if name == "_tell_job" else ""
        happened.append(f"{name}{kind}" if kind else f"{type(place).__name__} {name}")
        return plain(*arguments, **fields)

    return call


def test_what_was_overwritten_or_damaged_is_not_taken_for_kept(prepared, joined) -> None:
    directory = prepared(durability="node")
    with killed_intake(directory) as address, next(joined(directory, address, "1-0001").simulations()) as stream:
        send(stream, range(STEPS))
    path = kept_path(directory.read().study, directory.path, "node")
    step_bytes = 4 * 256
    with open(path, "r+b") as file:
        file.seek(4 * step_bytes)
        file.write(b"\1")
    intake = build_intake(directory, session=2)
    try:
        assert intake.status()["steps_recovered"] == STEPS - 1
        assert intake.status()["queued"] == 3, "its simulation is run again for the step that is gone"
    finally:
        intake.close()
