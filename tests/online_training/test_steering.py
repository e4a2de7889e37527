"""Words to one chosen simulation: from a callback to all of its ranks, one step later, and to nobody else."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from headrace.online_training.client import CONTINUE, SLOW, STOP, Connection, Kind
from headrace.online_training.feeder_process import FeederProcess
from headrace.online_training.ledger import Ledger, RecordWriter, read_records
from headrace.online_training.training_loop import train
from tests.mpi_run import run_mpi
from tests.online_training.fake_feed import FakeFeed, make_run, settings_for
from tests.online_training.intake_setup import (
    MPI_PROGRAM,
    STUDY,
    TOKEN,
    TrainerDouble,
    field_of,
    make_layout,
    plan,
    running_intake,
    use_environment,
    wait_until,
)  # fmt: skip

STEPS = 30
LAYOUT = make_layout(num_steps=STEPS)


def test_a_callback_sees_the_losses_of_simulations_and_stops_one(tmp_path: Path, monkeypatch) -> None:
    events = []

    class Told:
        verdict: dict[str, str] = {}  # noqa: RUF012

        def __init__(self, *_: object) -> None:
            pass

        def tell(self, event) -> None:
            events.append(event)
            if event.kind == "report":
                event.stop(7, "it has nothing to teach")
                event.slow(8)
                event.go_on(8)

    monkeypatch.setattr("headrace.online_training.training_loop.Callbacks", Told)
    feed = FakeFeed(10)
    found = train(settings_for(make_run(tmp_path), 10, callbacks="told"), feed)
    reports = [event for event in events if event.kind == "report"]
    told = [(7, STOP, "it has nothing to teach"), (8, SLOW, ""), (8, CONTINUE, "")]
    assert feed.steered == told * len(reports)
    assert set(reports[-1].losses) <= set(range(50)) and len(reports[-1].losses) > 20
    assert min(reports[-1].losses.values()) <= found["loss"] <= max(reports[-1].losses.values())
    assert all(not event.losses for event in events if event.kind != "report")


def test_one_simulation_is_stopped_and_its_job_goes_on_with_the_next(tmp_path: Path, monkeypatch) -> None:
    with running_intake(tmp_path, LAYOUT, slots=200) as intake:
        plan(intake, 2)
        use_environment(intake, monkeypatch)
        # By way of a feeder, as a trainer on a GPU says them.
        trainer, words = FeederProcess(intake.addresses, TOKEN, STUDY, batch_size=4, device="cpu"), {0: [], 1: []}
        trainer.steer(1, STOP, "it does not run yet")
        with Connection({"u": LAYOUT.shape}) as connection:
            for stream in connection.simulations():
                for step in range(STEPS):
                    values = field_of(stream.simulation, step, LAYOUT.shape)[None]
                    word = stream.send(step=step, time=0.0, values=values)
                    words[stream.simulation].append(word)
                    if word == STOP:
                        break
                    if (stream.simulation, step) in ((0, 9), (0, 14)):  # the trainer's words do not overtake it
                        wait_until(lambda: intake.status()["steps_accepted"] > step)  # noqa: B023
                    if (stream.simulation, step) == (0, 9):
                        trainer.steer(0, SLOW, "why")
                        wait_until(lambda: steered(intake, tmp_path) == 1)
                    if (stream.simulation, step) == (0, 14):
                        trainer.steer(0, STOP, "enough")
                        wait_until(lambda: steered(intake, tmp_path) == 2)
        assert words[1] == [CONTINUE] * STEPS
        # Step 15 ends the wait for the word to step 14, decided before; the word to 15 is the first one after.
        assert words[0][-1] == STOP and 16 <= len(words[0]) <= 18 and set(words[0][12:-1]) == {SLOW}
        status = wait_until(lambda: (s := intake.status())["done"] == 2 and s)
        kept = status["steps_accepted"] - STEPS
        assert 15 <= kept <= 17 and status["short"] == 1 and status["quarantined"] == []
        trainer.close()
    records = [r for r in read_records(tmp_path / "ledger" / "intake-1.log") if r["e"] == "steered"]
    assert [(r["s"], r["word"]) for r in records] == [(0, SLOW), (0, STOP)] and records[1]["reason"] == "enough"


def steered(intake, tmp_path: Path) -> int:
    """How many words of the trainer's the ledger knows."""
    intake._ledger.flush()
    return sum(record["e"] == "steered" for record in read_records(tmp_path / "ledger" / "intake-1.log"))


@pytest.mark.mpi
def test_all_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    with running_intake(tmp_path, LAYOUT, slots=20) as intake:  # nobody draws: it cannot end before it is stopped
        plan(intake, 1)
        trainer, done = TrainerDouble(intake), []
        settings = {"shape": LAYOUT.shape, "fields": LAYOUT.fields, "steps": STEPS, "cut": [1, 3], "pause": 0.05}

        def run() -> None:
            done.append(run_mpi(3, [MPI_PROGRAM, json.dumps(settings)], env=intake.environment))

        thread = threading.Thread(target=run)
        thread.start()
        wait_until(lambda: intake.status()["steps_accepted"] >= 5)
        trainer.link.send(Kind.STEER, {"reason": "why"}, simulation=0, value=int(STOP))
        thread.join()
        trainer.close()
    assert done[0].returncode == 0, done[0].stderr
    words = [json.loads(line)["words"][0] for line in done[0].stdout.splitlines() if line.startswith("{")]
    assert words[0] == words[1] == words[2] == [CONTINUE] * (len(words[0]) - 1) + [STOP] and len(words[0]) < STEPS


def test_a_stopped_simulation_is_not_run_again_once_its_windows_were_used(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    with RecordWriter(ledger / "study-1.log") as log:
        for number in range(2):
            log.append({"e": "planned", "s": number, "held_out": False, "parameters": {}, "seed": 0})
    with RecordWriter(ledger / "intake-1.log") as log:
        for number in range(2):
            log.append({"e": "assigned", "s": number, "a": 1, "job": "1-0001"})
            log.append({"e": "step", "s": number, "a": 1, "t": 0, "h": 1})
            log.append({"e": "steered", "s": number, "a": 1, "t": 1, "word": [STOP, SLOW][number], "reason": ""})
            log.append({"e": "ended", "s": number, "a": 1, "status": 2, "steps": 1})
    with RecordWriter(ledger / "trainer-1-1-0.log") as log:
        for number in range(2):
            log.append({"e": "used", "s": number, "t": 0, "k": 1, "h": [1], "n": 0})
    assert [one.simulation for one in Ledger(ledger).assignments()] == [1]
    assert np.all([not one.quarantine for one in Ledger(ledger).simulations.values()])
